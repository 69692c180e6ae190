# One command a target; what it does is in scripts/ and in Python modules. `make` alone lists the targets.
.POSIX:
PYTHON = .venv/bin/python
PYTEST = $(PYTHON) -m pytest
MINUTES = 60
SECONDS = 60
CODE = shared services cli images tests

.PHONY: help setup run test check lint types contracts unit integration conformance e2e chaos vllm fuzz native native-tests \
	bench-start bench-idle bench-revoke bench-gateway bench-prefix soak lock clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 16

setup: ## make .venv with everything in it (fetches uv and Python where they are missing)
	@scripts/setup

run: setup ## the whole system on this machine, one answer from a model; MODEL=/path/file.gguf or hf:org/repo:quant
	@scripts/run "$(MODEL)"

test: setup ## all tests but the benchmarks
	@$(PYTHON) -m tests.tiers

check: setup ## what to run before a commit
	@$(MAKE) -j 2 types lint contracts unit

lint: setup ## style and format
	@$(PYTHON) -m ruff check --quiet $(CODE) && $(PYTHON) -m ruff format --quiet --check $(CODE)

types: setup ## pyright, strict
	@$(PYTHON) -m pyright

contracts: setup ## who may import whom
	@.venv/bin/lint-imports

unit: setup ## fast tests, no servers
	@$(PYTHON) -m tests.tiers unit

integration: setup ## tests against real Postgres, NATS, Redis and engines
	@$(PYTEST) -q tests/integration

conformance: setup ## the official client libraries against the gateway: every endpoint, every error
	@$(PYTHON) -m tests.tiers conformance

e2e: setup ## the newcomer's path, with everything real
	@$(PYTEST) -q tests/e2e

chaos: setup ## kill -9 and empty stores under load
	@$(PYTEST) -q tests/chaos

vllm: setup ## a real vLLM behind Cortex, on processors; installs it first (2 GiB, once)
	@program=$$(scripts/vllm-env) && CORTEX_VLLM="$$program" $(PYTHON) -m tests.tiers vllm

fuzz: setup ## a guided fuzzer over the gateway's HTTP and its state, from tests/fuzz/corpus; SECONDS=60, KEEP=--keep
	@folder=$$(scripts/fuzz-env) && CORTEX_GATEWAY_NATIVE=0 PYTHONPATH="$$folder" $(PYTHON) -m tests.fuzz $(SECONDS) $(KEEP)

native: setup ## compile the gateway's hot modules, for a quarter less CPU per request; needs a C compiler
	@scripts/native

native-tests: native ## the gateway's tests again, on its compiled form
	@CORTEX_GATEWAY_NATIVE=1 $(PYTHON) -m tests.tiers integration/gateway unit/gateway

bench-start: setup ## from the start command to the engine, and from the engine to the first answer
	@$(PYTHON) -m tests.bench.start

bench-idle: setup ## memory and CPU of everything but the engines, at rest
	@$(PYTHON) -m tests.bench.idle

bench-revoke: setup ## from a key's change in the API to the refusal at every gateway
	@$(PYTHON) -m tests.bench.revoke

bench-gateway: native ## what the gateway costs, beside other gateways: half an hour; ARGS="--quick": it alone
	@$(PYTHON) -m tests.bench.gateway $(ARGS)

soak: setup ## everything at once for an hour, and whether anything leaks or is miscounted; MINUTES=60
	@$(PYTHON) -m tests.soak --minutes "$(MINUTES)"

bench-prefix: setup ## which engine gets a request, against smg's cache_aware: 20 minutes
	@$(PYTHON) -m tests.bench.prefix $(ARGS)

lock: setup ## write the hashed requirements anew
	@scripts/lock

clean: ## remove what was built and cached here
	@rm -rf .venv .tools .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

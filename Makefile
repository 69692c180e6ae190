# One command a target; what it does is in scripts/ and in Python modules. `make` alone lists the targets.
.POSIX:
PYTHON = .venv/bin/python
PYTEST = $(PYTHON) -m pytest
CODE = shared services cli images tests

.PHONY: help setup run test check lint types contracts unit integration e2e chaos vllm \
	bench-start bench-idle bench-gateway lock clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 16

setup: ## make .venv with everything in it (fetches uv and Python where they are missing)
	@scripts/setup

run: setup ## the whole system on this machine, one answer from a model; MODEL=/path/file.gguf or hf:org/repo:quant
	@scripts/run "$(MODEL)"

test: setup ## all tests but the benchmarks
	@$(PYTHON) -m tests.tiers

check: lint types contracts unit ## what to run before a commit

lint: setup ## style and format
	@$(PYTHON) -m ruff check --quiet $(CODE) && $(PYTHON) -m ruff format --quiet --check $(CODE)

types: setup ## pyright, strict
	@$(PYTHON) -m pyright

contracts: setup ## who may import whom
	@.venv/bin/lint-imports

unit: setup ## fast tests, no servers
	@$(PYTEST) -q tests/unit

integration: setup ## tests against real Postgres, NATS, Redis and engines
	@$(PYTEST) -q tests/integration

e2e: setup ## the newcomer's path, with everything real
	@$(PYTEST) -q tests/e2e

chaos: setup ## kill -9 and empty stores under load
	@$(PYTEST) -q tests/chaos

vllm: setup ## a real vLLM behind Cortex, on processors; installs it first (2 GiB, once)
	@program=$$(scripts/vllm-env) && CORTEX_VLLM="$$program" $(PYTHON) -m tests.tiers vllm

bench-start: setup ## from the start command to the engine, and from the engine to the first answer
	@$(PYTHON) -m tests.bench.start

bench-idle: setup ## memory and CPU of everything but the engines, at rest
	@$(PYTHON) -m tests.bench.idle

bench-gateway: setup ## what the gateway adds to a request
	@$(PYTHON) -m tests.bench.gateway

lock: setup ## write the hashed requirements anew
	@scripts/lock

clean: ## remove what was built and cached here
	@rm -rf .venv .tools .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

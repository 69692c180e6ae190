"""Small parts: phases, policy, programs' targets, metrics, progress, logs, ports, files."""

import socket
from pathlib import Path
from typing import cast, get_args

import pytest
from cortex_node_agent import engine_metrics, phases, policy
from cortex_node_agent.engine_logs import EngineLog
from cortex_node_agent.engine_metrics import Numbers
from cortex_node_agent.files import ModelRoots
from cortex_node_agent.ports import Ports
from cortex_node_agent.programs import split_target
from cortex_node_agent.progress import Look, Progress
from cortex_shared.contracts.observed import Phase
from cortex_shared.contracts.plan import MetricNames, ModelFile, Plan
from cortex_shared.errors import Conflict, CortexError, Forbidden, InvalidInput
from hypothesis import given
from hypothesis import strategies as st

PHASES = cast("tuple[Phase, ...]", get_args(Phase.__value__))


def reached_from(phase: Phase) -> set[Phase]:
    reached: list[Phase] = [phase]
    for at in reached:
        reached.extend(after for after in PHASES if phases.may_follow(at, after) and after not in reached)
    return set(reached)


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_has_a_way_to_stopped_and_to_ready(phase: Phase) -> None:
    assert {"stopped", "ready"} <= reached_from(phase)


def test_a_stopped_engine_is_placed_first() -> None:
    assert phases.may_follow("stopped", "placed")
    assert not phases.may_follow("stopped", "ready")
    assert not phases.may_follow("failed", "ready")
    assert not phases.may_follow(None, "unready")


def plan(**fields: object) -> Plan:
    return Plan.model_validate({"program": "p", "argv": [], "container_name": "c", **fields})


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"remote_code": True}, "remote_code"),
        ({"env": {"LD_PRELOAD": "x"}}, "env_not_allowed"),
        ({"env": {"CORTEX_MASTER_KEY": "x"}}, "env_not_allowed"),
        ({"secrets": {"PATH": "x"}}, "env_not_allowed"),
        # Each makes an interpreter or a library load code from where it says.
        ({"env": {"PYTHONUSERBASE": "/models/evil"}}, "env_not_allowed"),
        ({"env": {"OPENSSL_CONF": "/models/evil.cnf"}}, "env_not_allowed"),
        ({"env": {"CC": "/models/evil"}}, "env_not_allowed"),
        # Whatever the plan says of itself.
        ({"argv": ["--trust-remote-code"]}, "remote_code"),
        ({"argv": ["--trust_remote=true"]}, "remote_code"),
        ({"env": {"A=B": "x"}}, "bad_plan"),
        ({"argv": ["a\0b"]}, "bad_plan"),
    ],
)
def test_policy_refuses(fields: dict[str, object], code: str) -> None:
    with pytest.raises(CortexError) as caught:
        policy.check(plan(**fields), remote_code=False)
    assert caught.value.code == code


def test_policy_lets_pass_what_does_no_harm() -> None:
    harmless = plan(env={"PYTHONUNBUFFERED": "1", "VLLM_USE_V1": "1"}, argv=["--port", "1"])
    policy.check(harmless, remote_code=False)
    policy.check(plan(remote_code=True, argv=["--trust-remote-code"]), remote_code=True)


def test_a_secret_that_no_environment_can_hold_is_refused_and_not_shown() -> None:
    with pytest.raises(InvalidInput) as caught:
        policy.environment(plan(), inherited={}, host={}, secrets={"S": "hush\0"})
    assert "hush" not in caught.value.message


def test_fill() -> None:
    places = {"port": "20000", "model": "/m/{port}.gguf"}
    argv = ["--port", "{port}", '--json={{"a": {{}}}}', "-m", "{model}", "{", "}"]
    assert policy.fill(argv, places) == [
        "--port",
        "20000",
        '--json={"a": {}}',
        "-m",
        "/m/{port}.gguf",
        "{",
        "}",
    ]
    with pytest.raises(InvalidInput, match="nonsense"):
        policy.fill(["{nonsense}"], places)


def test_environment_hides_gpus_that_are_not_the_plans() -> None:
    env = policy.environment(plan(env={"A": "1"}), inherited={}, host={"A": "0"}, secrets={"S": "x"})
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert (env["A"], env["S"]) == ("1", "x")
    env = policy.environment(plan(gpus=["GPU-1", "GPU-2"]), inherited={}, host={}, secrets={})
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"


def test_targets(tmp_path: Path) -> None:
    spaced = tmp_path / "my engine"
    spaced.touch()
    assert split_target(str(spaced)) == (str(spaced),)
    assert split_target("/usr/bin/env -i prog") == ("/usr/bin/env", "-i", "prog")
    assert split_target("no-such-thing") == ("no-such-thing",)


def test_metrics_are_summed_over_labels() -> None:
    names = MetricNames(
        requests_running="e:running", prompt_tokens_total="e:prompt_total", kv_cache_usage_ratio="e:kv"
    )
    text = (
        '# HELP e:running x\ne:running{engine="0"} 1.0\ne:running{engine="1",a="}"} 2\n'
        'e:running_other 9\ne:prompt_total 1e3\ne:kv{a="1"} 0.2\ne:kv{a="2"} 0.4\nrubbish\ne:kv NaNN\n'
    )
    found = engine_metrics.parse(text, names)
    assert found.requests_running == 3
    assert found.prompt_tokens_total == 1000
    assert found.kv_cache_usage_ratio == pytest.approx(0.3)
    assert found.requests_waiting is None


def look(at: float, cpu: float, *, running: float = 1, tokens: float = 0, gpu: float | None = None) -> Look:
    return Look(at, Numbers(requests_running=running, generation_tokens_total=tokens), cpu, gpu, True)


def test_work_without_any_movement_is_counted() -> None:
    progress = Progress()
    assert progress.still_seconds(look(0, 5.0)) == 0
    assert progress.still_seconds(look(10, 5.0)) == 10
    assert progress.still_seconds(look(20, 5.1)) == 20  # a hundredth of a core: threads that wait
    assert progress.still_seconds(look(30, 5.1, tokens=1)) == 0
    assert progress.still_seconds(look(40, 5.1, tokens=1)) == 10


def test_time_without_work_is_not_stillness() -> None:
    progress = Progress()
    # The agent was stopped for an hour between two looks, and a request has just come.
    assert progress.still_seconds(look(0, 5.0, running=0)) == 0
    assert progress.still_seconds(look(3600, 6.0)) == 0
    assert progress.still_seconds(look(3610, 6.0)) == 10


@pytest.mark.parametrize(
    "after",
    [
        look(10, 9.0),  # a long prefill on the CPU
        look(10, 0.0, gpu=0.9),  # and on a GPU
        look(10, 0.0, running=0),  # nothing to do
        Look(10, None, 0.0, None, True),  # no metrics, but it answers
        Look(10, Numbers(requests_running=1), None, None, True),  # nothing is known
    ],
)
def test_what_counts_as_progress_or_rest(after: Look) -> None:
    progress = Progress()
    progress.still_seconds(look(0, 0.0))
    assert progress.still_seconds(after) == 0


def test_an_engine_that_answers_nothing_and_does_nothing_has_work() -> None:
    progress = Progress()
    progress.still_seconds(Look(0, None, 1.0, None, False))
    assert progress.still_seconds(Look(10, None, 1.0, None, False)) == 10


@given(st.lists(st.text("aä€\n", max_size=12), max_size=20), st.integers(3, 40))
def test_a_log_read_piece_by_piece_is_the_log(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], most: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    offset = 0
    for part in parts:
        data = part.encode()
        (folder / f"{offset:020d}.log").write_bytes(data)
        offset += len(data)
    log = EngineLog(folder)
    assert log.end() == offset
    text, at = "", 0
    while at < offset:
        piece = log.read(at, most)
        if piece.next_offset == at:
            break
        text, at = text + piece.text, piece.next_offset
    assert text == "".join(parts)
    lines = "".join(parts).splitlines(keepends=True)
    assert log.tail(3, 10_000).text == "".join(lines[-3:])


def test_a_log_whose_beginning_is_gone_is_read_from_what_is_left(tmp_path: Path) -> None:
    (tmp_path / f"{1000:020d}.log").write_bytes(b"first\nsecond\n")
    log = EngineLog(tmp_path)
    assert log.read(3, 100).text == "first\nsecond\n"
    assert log.read(9999, 100).text == ""
    assert log.tail(5, 100, since=1006).text == "second\n"
    assert EngineLog(tmp_path / "none").read(0, 10).next_offset == 0


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        ports = Ports("127.0.0.1", first, first + 20)
        one = ports.give("a", wanted=None, last=None)
        two = ports.give("b", wanted=None, last=one)
        assert first not in (one, two)
        assert one != two
        assert ports.give("a", wanted=None, last=one) == one
        with pytest.raises(Conflict, match="instance a"):
            ports.give("c", wanted=one, last=None)
        with pytest.raises(Conflict, match=str(first)):
            ports.give("c", wanted=first, last=None)
        ports.release("a")
        assert ports.give("c", wanted=one, last=None) == one


def test_files_stay_under_the_roots(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (other / "secret").write_text("x")
    (root / "link").symlink_to(other / "secret")
    (root / "blobs").mkdir()
    (root / "blobs" / "b1").write_text("weights")
    (root / "model.bin").symlink_to(root / "blobs" / "b1")
    roots = ModelRoots([root])
    assert roots.find(ModelFile(path="model.bin")) == root / "model.bin"
    assert roots.find(ModelFile(path=str(root / "blobs"), format="folder")) == root / "blobs"
    for path in ("link", str(other / "secret"), "../other/secret", "/etc/passwd"):
        with pytest.raises(Forbidden) as caught:
            roots.find(ModelFile(path=path))
        assert caught.value.code == "outside_roots"
    with pytest.raises(InvalidInput, match="not a folder"):
        roots.find(ModelFile(path="model.bin", format="folder"))
    with pytest.raises(InvalidInput, match="not a file"):
        roots.find(ModelFile(path="blobs"))
    with pytest.raises(CortexError) as missing:
        roots.find(ModelFile(path="nothing"))
    assert missing.value.code == "no_file"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"NOPE" + b"\0" * 100, b"GGUF\x03\0\0\0" + b"\xff" * 16])
def test_a_broken_gguf_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        ModelRoots([tmp_path]).find(ModelFile(path="m.gguf", format="gguf"))
    assert caught.value.code == "bad_file"
    assert caught.value.remedy

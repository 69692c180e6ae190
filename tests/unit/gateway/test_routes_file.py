"""The routes file: what it says, and each way in which it is refused: file, line, field, reason, remedy."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cortex_gateway.positions import Document, Unreadable
from cortex_gateway.routes_file import PROBLEMS_MAX, Refused, Served, read
from cortex_gateway.routes_source import FILE_MAX_BYTES, RoutesSource, content_of
from cortex_shared.contracts.keys import hash_key
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VARIABLES = {"MY_KEY": "sk-mine", "EMPTY": ""}

WHOLE = """\
listen: {host: 127.0.0.1, port: 8084, workers: 1}   # workers: 1 serves in the very process started
keys:
  - {name: me, key: sk-x, models: ["*"], rpm: 0, tpm: 0, concurrency: 0}   # 0: no limit
  - name: you
    key: ${MY_KEY}
    models: [gpt-4o]
    rpm: 60
    tpm: 1000
    concurrency: 2
    tokens_per_day: 10000
    tokens_per_month: 100000
    networks: [10.0.0.0/8, "::1"]
    priority: 1
    expires_at: 2027-01-01
routes:
  - name: m
    aliases: [gpt-4o]
    engine: vllm            # vllm | llamacpp | openai
    balance: prefix         # least | prefix | round_robin
    concurrency: 0          # per endpoint over all processes, 0: no cap
    endpoints:
      - {url: "http://10.0.0.1:8000", weight: 1, key: engine-secret, model: served-name-there}
  - name: embeddings
    task: embedding
    concurrency: 4
    queue_max: 8
    queue_seconds: 2.5
    reserve: 0.2
    strict: true
    context_length: 4096
    limits: {connect_seconds: 1, total_seconds: 60}
    fallbacks: [gpt-4o]
    splits: [{to: m, share: 0.1}]
    defaults: {temperature: 0.5, stop: ["."]}
    endpoints:
      - url: https://engine.example/v1
      - {url: "http://10.0.0.1:8000", model: a}
      - {url: "http://10.0.0.1:8000", model: b, weight: 2}
"""


def served(text: str) -> Served:
    """What a file with this text says."""
    return read("routes.yaml", text.encode(), variables=VARIABLES, created=NOW, version=1)


def refusal(text: str) -> list[str]:
    """Why it is refused."""
    with pytest.raises(Refused) as refused:
        served(text)
    return refused.value.lines


def test_all_that_a_file_may_say() -> None:
    found = served(WHOLE)
    assert (found.listen.host, found.listen.port, found.listen.workers) == ("127.0.0.1", 8084, 1)
    assert not found.anyone
    me, you = found.keys
    assert (me.name, me.hash, me.models, me.requests_per_minute) == ("me", hash_key("sk-x"), ["*"], 0)
    assert you.hash == hash_key("sk-mine")
    assert (you.requests_per_minute, you.tokens_per_minute, you.concurrency) == (60, 1000, 2)
    assert (you.tokens_per_day, you.tokens_per_month, you.priority) == (10_000, 100_000, 1)
    assert you.networks == ["10.0.0.0/8", "::1"]
    assert you.expires_at == datetime(2027, 1, 1, tzinfo=UTC)
    assert me.id != you.id
    first, second = found.table.routes
    assert (first.name, first.aliases, first.engine, first.task) == ("m", ["gpt-4o"], "vllm", "chat")
    assert first.policy.balance == "prefix"
    (endpoint,) = first.endpoints
    assert (endpoint.url, endpoint.key, endpoint.model) == (
        "http://10.0.0.1:8000",
        "engine-secret",
        "served-name-there",
    )
    policy = second.policy
    assert (policy.concurrency, policy.queue_max, policy.queue_seconds, policy.reserve) == (4, 8, 2.5, 0.2)
    assert (policy.fallbacks, policy.strict) == (["gpt-4o"], True)
    assert [(split.to, split.share) for split in policy.splits] == [("m", 0.1)]
    assert policy.defaults == {"temperature": 0.5, "stop": ["."]}
    assert (policy.limits.connect_seconds, policy.limits.idle_seconds) == (1, 120)
    assert (second.engine, second.task, second.context_length) == ("openai", "embedding", 4096)
    names = [endpoint.instance for endpoint in second.endpoints]
    assert names == ["engine.example/v1", "10.0.0.1:8000", "10.0.0.1:8000#b"]
    assert [endpoint.weight for endpoint in second.endpoints] == [1, 1, 2]


def test_it_passes_from_process_to_process() -> None:
    found = served(WHOLE)
    assert content_of(found.model_dump_json().encode()) == found


def test_ids_stay_whatever_moves() -> None:
    found = served(WHOLE)
    moved = served(
        WHOLE.replace("  - {name: me, key: sk-x", "  - {name: new, key: sk-n}\n  - {name: me, key: sk-y")
    )
    assert [key.id for key in moved.keys[1:]] == [key.id for key in found.keys]
    assert not moved.same(found)
    assert served(WHOLE + "# nothing\n").same(found)


def test_open_is_said_outright() -> None:
    text = "keys: open\nroutes: [{name: m, endpoints: [{url: 'http://a:1'}]}]\n"
    assert served(text).anyone
    assert served(text).keys == []
    assert refusal(text.replace("keys: open\n", "")) == [
        "routes.yaml:1: keys: no key is given; list keys, or write `keys: open` to serve anyone who can "
        "reach the address"
    ]
    assert refusal(text.replace("open", "[]"))[0].startswith("routes.yaml:1: keys: no key is given")
    assert refusal(text.replace("open", "opne")) == [
        "routes.yaml:1: keys: must be a list; "
        "write each item on a line of its own, with `- ` before it, or in []"
    ]


def problems(text: str) -> list[str]:
    """Why it is refused, if it is."""
    try:
        served(text)
    except Refused as refused:
        return refused.lines
    return []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            "balance: prefix",
            "balence: prefix",
            "19: routes[0].balence: unknown field; did you mean 'balance'?",
        ),
        (
            "balance: prefix",
            "balance: prefixx",
            "19: routes[0].balance: 'prefixx' is none of least, prefix, session, round_robin; "
            "did you mean 'prefix'?",
        ),
        (
            "balance: prefix",
            "qqq: 1",
            "19: routes[0].qqq: unknown field; known here are aliases, balance, concurrency, ",
        ),
        ("listen:", "listne:", "1: listne: unknown field; did you mean 'listen'?"),
        ("port: 8084", "port: 70000", "1: listen.port: must be less than or equal to 65535; "),
        ("port: 8084", "prot: 8084", "1: listen.prot: unknown field; did you mean 'port'?"),
        ("workers: 1}", "workers: many}", "1: listen.workers: must be a whole number; write digits only"),
        ("name: you\n    key", "key", "4: keys[1].name: is missing; add `name: ...` here"),
        ("name: you", "name: me", "4: keys[1].name: this name is given already, on line 3; "),
        ("${MY_KEY}", "sk-x", "5: keys[1].key: this key is given already, on line 3; "),
        ("${MY_KEY}", "12345", "5: keys[1].key: must be text; put it in quotes"),
        ("${MY_KEY}", "''", "5: keys[1].key: is empty; give it, or leave the field out"),
        ("${MY_KEY}", "a b", "5: keys[1].key: a key may hold no spaces, accents or control characters; "),
        ("${MY_KEY}", "ä", "5: keys[1].key: a key may hold no spaces, accents or control characters; "),
        (
            "${MY_KEY}",
            "${NO_KEY}",
            "5: keys[1].key: the environment variable NO_KEY is not set; set it for the gateway",
        ),
        ("${MY_KEY}", "${EMPTY}", "5: keys[1].key: the environment variable EMPTY is not set; "),
        ("${MY_KEY}", "sk-${MY_KEY}", "5: keys[1].key: a variable must be all of it; write ${NAME} and "),
        ("rpm: 60", "rpm: true", "7: keys[1].rpm: must be a whole number; write digits only"),
        ("rpm: 60", "rpm: -1", "7: keys[1].rpm: must be greater than or equal to 0; choose a value within"),
        ("rpm: 60", "rps: 60", "7: keys[1].rps: unknown field; did you mean 'rpm'?"),
        ("models: [gpt-4o]", "models: gpt-4o", "6: keys[1].models: must be a list; write each item on a "),
        ("models: [gpt-4o]", "models: []", "6: keys[1].models: is empty; give at least one"),
        (
            "models: [gpt-4o]",
            "models: [gpt4o]",
            "6: keys[1].models[0]: no route is called 'gpt4o'; did you mean ",
        ),
        ("10.0.0.0/8", "10.0.0/8", "12: keys[1].networks[0]: no address range; write one like 10.0.0.0/8, "),
        ("2027-01-01", "soon", "14: keys[1].expires_at: "),
        ("name: embeddings", "name: gpt-4o", "23: routes[1].name: served already, on line 17; "),
        ("name: embeddings", "name: 7", "23: routes[1].name: must be text; put it in quotes"),
        ("task: embedding", "task: embeddings", "24: routes[1].task: 'embeddings' is none of chat, "),
        ("queue_seconds: 2.5", "queue_seconds: 2.5s", "27: routes[1].queue_seconds: must be a number; "),
        ("reserve: 0.2", "reserve: 0.9", "28: routes[1].reserve: must be less than or equal to 0.5; "),
        ("strict: true", "strict: on", "29: routes[1].strict: must be true or false; write true or false"),
        (
            "{connect_seconds: 1,",
            "{connect: 1,",
            "31: routes[1].limits.connect: unknown field; did you mean ",
        ),
        (
            "{connect_seconds: 1,",
            "{connect_seconds: 0,",
            "31: routes[1].limits.connect_seconds: must be greater",
        ),
        (
            "limits: {connect_seconds: 1, total_seconds: 60}",
            "limits: 5",
            "31: routes[1].limits: must be fields ",
        ),
        ("fallbacks: [gpt-4o]", "fallbacks: [gpt]", "32: routes[1].fallbacks[0]: no route is called 'gpt'; "),
        (
            "fallbacks: [gpt-4o]",
            "fallbacks: [embeddings]",
            "32: routes[1].fallbacks[0]: this is the route itself",
        ),
        (
            "{to: m, share: 0.1}",
            "{to: n, share: 0.1}",
            "33: routes[1].splits[0].to: no route is called 'n'; ",
        ),
        (
            "{to: m, share: 0.1}",
            "{to: m}",
            "33: routes[1].splits[0].share: is missing; add `share: ...` here",
        ),
        (
            "{to: m, share: 0.1}",
            "{to: m, share: 2}",
            "33: routes[1].splits[0].share: must be less than or equal",
        ),
        (
            "[{to: m, share: 0.1}]",
            "[{to: m, share: 0.6}, {to: gpt-4o, share: 0.6}]",
            "33: routes[1].splits: the shares are more than 1 together; lower them",
        ),
        (
            "https://engine.example/v1",
            "engine.example",
            "36: routes[1].endpoints[0].url: no address of an engine",
        ),
        ("https://engine.example/v1", "ftp://a", "36: routes[1].endpoints[0].url: no address of an engine; "),
        (
            "https://engine.example/v1",
            "http://a:x",
            "36: routes[1].endpoints[0].url: no address of an engine; ",
        ),
        ("https://engine.example/v1", "http://a/?b=c", "36: routes[1].endpoints[0].url: no address of an "),
        (
            "https://engine.example/v1",
            "http://u:p@a",
            "36: routes[1].endpoints[0].url: a user and password in ",
        ),
        (
            "model: b, weight: 2",
            "model: a",
            "38: routes[1].endpoints[2]: this endpoint is given twice; keep one",
        ),
        ("weight: 1, key", "weight: 0, key", "22: routes[0].endpoints[0].weight: must be greater than 0; "),
        (
            "key: engine-secret",
            "key: '${NONE}'",
            "22: routes[0].endpoints[0].key: the environment variable NONE ",
        ),
        (
            "key: engine-secret",
            "kye: engine-secret",
            "22: routes[0].endpoints[0].kye: unknown field; did you ",
        ),
        (
            "      - url: https",
            "      - uri: https",
            "36: routes[1].endpoints[0].url: is missing; add `url: ...`",
        ),
        (
            "model: a}",
            "model: a, health_path: x}",
            "37: routes[1].endpoints[1].health_path: is no path; write",
        ),
        ("model: a}", "model: a, ca: nonsense}", "37: routes[1].endpoints[1].ca: not PEM certificates"),
        ("defaults: {temperature: 0.5", "defaults: {1: 0.5", "34: routes[1].defaults"),
    ],
)
def test_each_error_says_where_what_why_and_what_to_do(before: str, after: str, told: str) -> None:
    assert before in WHOLE
    lines = refusal(WHOLE.replace(before, after))
    assert any(line.startswith(f"routes.yaml:{told}") for line in lines), lines
    assert all("; " in line for line in lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "1: the file must hold fields (listen, keys, routes); "),
        ("routes: []", "1: keys: no key is given; "),
        ("- 1", "1: the file must hold fields (listen, keys, routes); "),
        ("x", "1: the file must hold fields (listen, keys, routes); "),
        ("keys: open", "1: routes: is missing; add `routes: ...` here"),
        ("keys: open\nroutes: []", "2: routes: is empty; give at least one"),
        (
            "keys: open\nroutes: [{name: m, endpoints: []}]",
            "2: routes[0].endpoints: is empty; give at least one",
        ),
        ("a: 1\nb: 2\na: 3", "3: a: given twice, first on line 1; keep one of the two"),
        ("a: [1,\nb: }", "2: this is not YAML: "),
        (
            "a: {b: ${C}}",
            "1: this is not YAML: while parsing a flow mapping did not find expected ',' or '}'; "
            'put "${NAME}" in quotes, since braces mean something in YAML',
        ),
        ("a: 1\n\tb: 2", "2: this is not YAML: "),
        ("a: !!python/name:os.system", "1: this is not YAML: "),
        ("a: &x [*x]", "1: the document is too large; "),
        ("a: 1\n---\nb: 2", "2: this is not YAML: expected a single document"),
        ("? [a]\n: b", "1: a field's name must be text; "),
        ("a: 1\nb: \x07", "2: the character "),
    ],
)
def test_what_is_no_file_at_all(text: str, told: str) -> None:
    (line,) = refusal(text)
    assert line.startswith(f"routes.yaml:{told}")


def test_what_is_no_text() -> None:
    with pytest.raises(Refused, match=r"routes\.yaml:2: this is not UTF-8 text; save the file as UTF-8"):
        read("routes.yaml", b"a: 1\nb: \xff", variables={}, created=NOW, version=1)


def test_all_errors_are_told_at_once_up_to_a_bound() -> None:
    lines = refusal(WHOLE.replace("rpm: 60", "rpm: x").replace("task:", "tasks:"))
    assert [line.split(": ")[0] for line in lines] == ["routes.yaml:7", "routes.yaml:24"]
    many = "keys: open\nroutes:\n" + "  - {name: m, endpoints: [{url: 'http://a:1'}]}\n" * 50
    assert len(refusal(many)) == PROBLEMS_MAX


def test_secrets_are_in_no_error() -> None:
    text = WHOLE.replace("rpm: 0,", "rpm: [sk-inside],").replace("key: engine-secret", "key: [top-secret]")
    assert not any("sk-inside" in line or "top-secret" in line or "sk-x" in line for line in refusal(text))


def test_plain_values_are_those_of_yaml_1_2() -> None:
    text = b"a: no\nb: 1:30\nc: 2026-01-01\nd: 1.5\ne:\nf: ~\ng: 010\nh: true\ni: 1e3\nj: -5"
    found = Document(text).value
    assert found == {
        "a": "no",
        "b": "1:30",
        "c": "2026-01-01",
        "d": 1.5,
        "e": None,
        "f": None,
        "g": "010",
        "h": True,
        "i": 1000.0,
        "j": -5,
    }


def test_aliases_do_not_grow_without_end() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    with pytest.raises(Unreadable, match="too large"):
        Document(text.encode())


def test_json_is_read_too() -> None:
    assert served('{"keys": "open", "routes": [{"name": "m", "endpoints": [{"url": "http://a:1"}]}]}').anyone


def test_a_change_is_taken_when_it_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text(WHOLE)
    source = RoutesSource(path, VARIABLES)
    assert not source.due()
    quiet = source.period_seconds
    path.write_text(WHOLE.replace("name: m\n", "name: n\n").replace("to: m,", "to: n,"))
    assert not source.due()  # it may be being written still
    assert source.period_seconds < quiet
    assert source.due()
    assert source.reread()
    assert source.served.table.routes[0].name == "n"
    assert not source.due()
    assert source.period_seconds == quiet
    assert content_of(source.content) == source.served
    path.write_text("broken: [")
    assert [source.due(), source.due()] == [False, True]
    assert not source.reread()
    assert source.served.table.routes[0].name == "n"
    assert not source.due()
    path.unlink()
    assert [source.due(), source.due()] == [False, True]
    assert not source.reread()
    path.write_text(WHOLE + " " * FILE_MAX_BYTES)
    with pytest.raises(Refused, match="larger than"):
        RoutesSource(path, VARIABLES)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="it cannot be read: No such file"):
        RoutesSource(tmp_path / "none.yaml", {})


WORDS = st.sampled_from(
    [
        *WHOLE.replace(",", " ").replace("{", " { ").split(),
        "- ",
        ": ",
        "\n",
        "\n  ",
        "\n    ",
        "[",
        "}",
        "&a",
        "*a",
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.lists(WORDS, max_size=60).map(" ".join), st.text(max_size=200)))
def test_whatever_is_written_is_read_or_refused_with_a_line(text: str) -> None:
    assert all(line.startswith("routes.yaml:") for line in problems(text))


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["listen", "keys", "routes", "name", "key", "endpoints", "url", "limits", "splits"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_the_values_are_they_are_read_or_refused(value: object) -> None:
    assert all(line.startswith("routes.yaml:") for line in problems(json.dumps(value)))

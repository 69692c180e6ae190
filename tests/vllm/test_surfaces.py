"""The endpoints besides chat, and parameters in llama.cpp's words, with a real vLLM behind the gateway."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cortex_llamacpp.tiny import STORY

from tests.e2e.system import until
from tests.vllm.fleet import QUESTION, Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WORDS = STORY.split()


@pytest.fixture(scope="module")
def gateway(fleet: Fleet) -> Iterator[httpx.Client]:
    """The gateway, with a model that tells STORY and keeps responses, and one that ranks."""
    fleet.run("spoken", env={"VLLM_ENABLE_RESPONSES_API_STORE": "1"})
    fleet.run("ranks", local_path="vectors", task="embedding")
    access = fleet.system.access
    with httpx.Client(
        base_url=access["gateway_url"], headers={"x-api-key": access["api_key"]}, timeout=120
    ) as client:
        yield client
    for name in ("spoken", "ranks"):
        fleet.api("DELETE", f"/models/{name}?stop=true")
        fleet.until_gone(name)


def post(gateway: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    return gateway.post(path, json={"model": "spoken", **fields})


def good(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def typed(answer: httpx.Response) -> list[tuple[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[tuple[str, Any]] = []
    for block in answer.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line)
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_responses(gateway: httpx.Client) -> None:
    fields = {"input": "Tell me a story", "max_output_tokens": 5, "temperature": 0}
    made = good(post(gateway, "/v1/responses", **fields))
    assert made["output"][0]["content"][0]["text"].split() == WORDS[:5]
    assert made["usage"]["output_tokens"] == 5
    name, last = typed(post(gateway, "/v1/responses", stream=True, **fields))[-1]
    assert name == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"].split() == WORDS[:5]
    # It is kept under the name that the gateway gave it.
    for each in (made, last["response"]):
        assert good(gateway.get(f"/v1/responses/{each['id']}"))["id"] == each["id"]
    going_on = good(post(gateway, "/v1/responses", previous_response_id=made["id"], **fields))
    assert going_on["previous_response_id"] == made["id"]
    missing = gateway.get("/v1/responses/resp_none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "response_not_found")
    lacking = gateway.delete(f"/v1/responses/{made['id']}")
    assert (lacking.status_code, lacking.json()["error"]["code"]) == (400, "endpoint_not_supported")


def test_messages(gateway: httpx.Client) -> None:
    fields = {"messages": QUESTION, "max_tokens": 5, "temperature": 0}
    whole = good(post(gateway, "/v1/messages", **fields))
    assert whole["content"][0]["text"].split() == WORDS[:5]
    events = typed(post(gateway, "/v1/messages", stream=True, **fields))
    text = "".join(event["delta"]["text"] for name, event in events if name == "content_block_delta")
    assert text.split() == WORDS[:5]
    assert events[-1][0] == "message_stop"
    counted = good(post(gateway, "/v1/messages/count_tokens", messages=QUESTION))
    usage = whole["usage"]
    assert counted["input_tokens"] == usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    for bad in ({"max_tokens": 3}, {**fields, "max_tokens": 99999}):
        refused = post(gateway, "/v1/messages", **bad)
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
        assert refused.json()["request_id"] == refused.headers["request-id"]


def test_tokenize(gateway: httpx.Client) -> None:
    shapes = [
        good(post(gateway, path, **{name: "Once upon one"}))
        for path in ("/tokenize", "/v1/tokenize")
        for name in ("prompt", "content")
    ]
    assert all(shape == shapes[0] for shape in shapes)
    assert (shapes[0]["count"], shapes[0]["max_model_len"]) == (3, 2048)
    assert good(post(gateway, "/v1/detokenize", tokens=shapes[0]["tokens"])) == {"prompt": "Once upon one"}
    assert good(post(gateway, "/tokenize", messages=QUESTION))["count"] > 5


def test_rerank_and_score(gateway: httpx.Client) -> None:
    documents = ["hot tea", "the frozen lake"]
    for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/reranking"):
        ranked = good(post(gateway, path, model="ranks", query="the frozen lake", documents=documents))
        assert [result["index"] for result in ranked["results"]] == [1, 0]
    scored = good(post(gateway, "/score", model="ranks", text_1="hot tea", text_2="hot tea"))
    assert scored["data"][0]["score"] == pytest.approx(1, abs=1e-2)
    for path, fields in (
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/moderations", {"input": "a"}),
    ):
        refused = post(gateway, path, **fields)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "endpoint_not_supported")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n_predict": 2}, "Once upon"),
        ({"max_tokens": 8, "grammar": 'root ::= "no" " way"'}, "no way"),
        ({"max_tokens": 8, "json_schema": {"type": "string", "enum": ["a"]}}, '"a"'),
        ({"max_tokens": 8, "guided_choice": ["no"]}, "no"),
        ({"max_tokens": 8, "guided_regex": "no{2}"}, "noo"),
        ({"max_tokens": 2, "repeat_penalty": 1.0}, "Once upon"),
    ],
)
def test_parameters_in_llamacpps_words(gateway: httpx.Client, fields: dict[str, Any], expected: str) -> None:
    answer = post(gateway, "/v1/chat/completions", messages=QUESTION, temperature=0, **fields)
    assert good(answer)["choices"][0]["message"]["content"] == expected
    assert "x-cortex-ignored" not in answer.headers


def test_a_penalty_in_llamacpps_words_is_felt(gateway: httpx.Client) -> None:
    def text(**fields: Any) -> str:
        answer = post(gateway, "/v1/completions", prompt=" one upon", max_tokens=1, temperature=0, **fields)
        return good(answer)["choices"][0]["text"]

    assert text() != text(repeat_penalty=100.0) == text(repetition_penalty=100.0)


def test_what_it_lacks_is_named(gateway: httpx.Client) -> None:
    answer = post(gateway, "/v1/chat/completions", messages=QUESTION, max_tokens=1, mirostat=2, min_p=0.1)
    good(answer)
    assert answer.headers["x-cortex-ignored"] == "mirostat"


def test_usage_is_counted_for_each(fleet: Fleet, gateway: httpx.Client) -> None:
    def tokens() -> int:
        rows = fleet.api("GET", "/usage")["items"]
        return sum(row["completion_tokens"] for row in rows if row["group"] == "spoken")

    before = tokens()
    good(post(gateway, "/v1/responses", input="x", max_output_tokens=11))
    typed(post(gateway, "/v1/messages", messages=QUESTION, max_tokens=13, stream=True))
    until(lambda: tokens() >= before + 24, 90, "both are counted")

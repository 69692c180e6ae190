"""What an external server's answer to a probe, or its failure to answer, says of it. Pure."""

import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from cortex_shared.contracts.external import ServerState
from cortex_shared.contracts.observed import Reason

MODELS_PATH = "/v1/models"
HEALTH_PATH = "/health"
# llama.cpp lists its models for everybody; this it shows only to who has the key.
GUARDED_PATH = "/props"

_SHOWN_MAX = 5
_SHOWN_CHARACTERS_MAX = 80
_NO_SUCH_PATH = (404, 405, 501)


@dataclass(frozen=True, slots=True)
class Asked:
    """Who was asked, and how: `model` is the name that requests will have there."""

    url: str
    path: str
    model: str
    has_key: bool


@dataclass(frozen=True, slots=True)
class Symptom:
    """A state, and why; `certain`: a second look would find the same."""

    state: ServerState
    reason: Reason | None = None
    certain: bool = False


WELL = Symptom("running")


def of_failure(asked: Asked, error: Exception, seconds: float) -> Symptom:
    """There was no answer: `error` is what trying raised, `seconds` how long it could take."""
    if isinstance(error, TimeoutError):
        return _failed(
            "timeout",
            f"{asked.url} does not answer within {seconds:g} s",
            "see that the server runs and that no firewall is between",
        )
    if isinstance(error, socket.gaierror):
        return _failed(
            "unknown_host",
            f"the host of {asked.url} is not known: {error.strerror}",
            "correct the url, or the host's name service",
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return _failed(
            "certificate", f"the certificate of {asked.url} is not trusted: {error.verify_message}",
            "give its issuer's certificate as ca_certificate, or correct the url's host; tls_verify false"
            " trusts anybody",
        )  # fmt: skip
    if isinstance(error, ssl.SSLError):
        # Those that Python itself raises have no such attribute.
        said = getattr(error, "reason", None) or "the handshake failed"
        return _failed("tls", f"{asked.url} does not speak TLS: {said}", "use http:// if it is plain")
    if isinstance(error, ConnectionRefusedError):
        return _failed(
            "refused", f"nothing listens at {asked.url}", "start the server, or correct the url's port"
        )
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        said = error.strerror or type(error).__name__
        return _failed("unreachable", f"{asked.url} cannot be reached: {said}", "see the network in between")
    return _failed(
        "not_http",
        f"{asked.url} does not answer in HTTP",
        "use https:// if it speaks TLS, or correct the port",
    )


def of_answer(asked: Asked, status: int, headers: Mapping[str, str], body: bytes) -> Symptom:
    """It answered."""
    if 200 <= status < 300 or status == 429:
        return WELL
    if status in (401, 403):
        return _refuses(asked, status)
    if 300 <= status < 400:
        to = _shown(headers.get("location", "elsewhere"))
        return _failed(
            "redirect",
            f"{asked.url}{asked.path} redirects to {to}",
            "give the address to which it redirects: keys are not taken elsewhere",
            certain=True,
        )
    if status == 503 and b"loading" in body[:2000].lower():
        reason = Reason(code="external.loading", message=f"{asked.url} says that it is loading its model")
        return Symptom("loading", reason, certain=True)
    if status in _NO_SUCH_PATH:
        return _failed(
            "no_such_path", f"{asked.url} has no {asked.path} ({status})", "correct the url: it is the part"
            " before /v1; or set health_path to what the server has",
        )  # fmt: skip
    return _failed("status", f"{asked.url}{asked.path} answers {status}", "see the server's log")


def has_no_such_path(status: int) -> bool:
    """Whether the server is there and merely lacks the path."""
    return status in _NO_SUCH_PATH


def is_llamacpp(engine: str, headers: Mapping[str, str]) -> bool:
    """Whether it is llama.cpp's server, by what was said of it or by what it says itself."""
    return engine == "llamacpp" or headers.get("server", "").startswith("llama.cpp")


def of_list(asked: Asked, body: bytes, *, any_name: bool) -> Symptom:
    """It listed its models. `any_name`: one that serves a single model takes any name for it."""
    names = _listed(body)
    if names is None or asked.model in names or (any_name and len(names) == 1):
        return WELL
    if not names:
        told = "lists no model"
    else:
        more = ", ..." if len(names) > _SHOWN_MAX else ""
        told = f"does not list {asked.model!r}, but {', '.join(map(_shown, names[:_SHOWN_MAX]))}{more}"
    reason = Reason(
        code="external.model_not_listed",
        message=f"{asked.url} {told}",
        remedy="set the endpoint's model to a name that it lists",
    )
    return Symptom("running", reason)


def _refuses(asked: Asked, status: int) -> Symptom:
    if asked.has_key:
        return _failed(
            "key_refused", f"{asked.url} refuses the key ({status})", "set the endpoint's api_key anew",
            certain=True,
        )  # fmt: skip
    return _failed(
        "key_needed", f"{asked.url} demands a key ({status})", "set the endpoint's api_key", certain=True
    )


def _failed(code: str, message: str, remedy: str, *, certain: bool = False) -> Symptom:
    return Symptom("failed", Reason(code=f"external.{code}", message=message, remedy=remedy), certain)


def _listed(body: bytes) -> list[str] | None:
    """Names of a list of models as OpenAI has it; None when it is none."""
    try:
        document: Any = json.loads(body)
        entries = cast("list[Any]", document["data"])
        return [str(entry["id"]) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _shown(text: str) -> str:
    """What a server said, cut short and without what a terminal would act on."""
    short = text[:_SHOWN_CHARACTERS_MAX]
    return "".join(character if character.isprintable() else "?" for character in short)

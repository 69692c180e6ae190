"""The companion of `make run`: prepares a model, waits until the system is up, serves it, asks it once.

`python -m cortex_cli.first_answer HOME [MODEL]`; a line on standard input says that the system is up.
"""

import json
import sys
import time
from pathlib import Path

from cortex_shared.errors import CortexError

from cortex_cli import output
from cortex_cli.access import Access, read_access
from cortex_cli.client import Api
from cortex_cli.embedded.layout import Home
from cortex_cli.exit_codes import ExitCode, exit_code
from cortex_cli.openai_chat import Chat
from cortex_cli.progress import until_running
from cortex_cli.served import ensure_model, read_wanted
from cortex_cli.served_folders import register_folder
from cortex_cli.shapes import Json, Model

TINY = "cortex-tiny"
_QUESTION = "Tell me a story, please."
_EMBEDDING = "The quick brown fox."
_TOKENS_MAX = 64


def main(home: Home, wanted: str) -> int:
    """0 when a model answered; else the exit codes of `cortex`."""
    began = time.monotonic()
    try:
        tiny = None if wanted else _tiny_file(home)
        if not sys.stdin.readline():
            return ExitCode.interrupted  # the system did not come up, and has said why
        access = read_access(home.access_file)
        assert access.api_url is not None
        assert access.gateway_url is not None
        assert access.api_key is not None
        at = time.monotonic()
        with Api(access.api_url, access.admin_token) as api:
            model = _serve(api, home, wanted, tiny)
        print(f"{model['name']} runs after {time.monotonic() - at:.1f} s.", flush=True)
        at = time.monotonic()
        _ask(access.gateway_url, access.api_key, model)
        print(f"\nThe answer took {time.monotonic() - at:.1f} s; {time.monotonic() - began:.1f} s in all.")
        _tell(access, model)
    except CortexError as error:
        output.error(error)
        return exit_code(error)
    return ExitCode.ok


def _tiny_file(home: Home) -> Path:
    """A tiny model in the home, made when it is not there: random weights, a real file, a real tokenizer."""
    path = home.models / f"{TINY}.gguf"
    if not path.exists():
        from cortex_llamacpp.tiny import write_tiny_model

        try:
            write_tiny_model(path)
        except OSError as error:
            raise CortexError(
                f"The tiny model cannot be written: {error}", code="first.tiny", remedy="Free some space."
            ) from error
    return path


def _serve(api: Api, home: Home, wanted: str, tiny: Path | None) -> Model:
    """What was asked for; else what ran before; else the tiny model."""
    if not wanted:
        for model in api.models():
            if model["state"] not in ("stopped", "stopping"):
                print(f"Served as before: {model['name']}", flush=True)
                return until_running(api, str(model["id"]))
        assert tiny is not None
        print(
            "No MODEL was given: a tiny one is served. Its weights are random, so is what it says.",
            flush=True,
        )
        body: Json = {"engine_type": "llamacpp", "local_path": tiny.name}
        asked = read_wanted(TINY)
        found = ensure_model(api, type(asked)(TINY, body), {}, name=None)
    else:
        asked = read_wanted(wanted)
        if asked.file is not None:
            register_folder(home, asked.file)
        found = ensure_model(api, asked, {}, name=None)
    api.start_model(str(found["id"]))
    return until_running(api, str(found["id"]))


def _ask(gateway_url: str, key: str, model: Model) -> None:
    talk = Chat(gateway_url, key)
    served = model["served_model_name"]
    if model["task"] == "embedding":
        print(f"An embedding of {_EMBEDDING!r} has {talk.embedding_length(served, _EMBEDDING)} numbers.")
        return
    print(f"\n> {_QUESTION}")
    messages = [{"role": "user", "content": _QUESTION}]
    with talk.stream(served, messages, {"max_tokens": _TOKENS_MAX, "temperature": 0}) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


def _tell(access: Access, model: Model) -> None:
    body = {"model": model["served_model_name"], "messages": [{"role": "user", "content": "Hello"}]}
    print(f"\n  curl {access.gateway_url}/v1/chat/completions \\")
    print(f"    -H 'Authorization: Bearer {access.api_key}' -H 'Content-Type: application/json' \\")
    print(f"    -d '{json.dumps(body)}'\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(Home(Path(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else ""))

"""`cortex-llama-server`: llama.cpp's HTTP server, out of the xllamacpp wheel, with llama-server's argv."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cortex_llamacpp.arguments import BadArgument, fill
from cortex_llamacpp.environment import api_keys, ignored_variables
from cortex_llamacpp.flags import FLAGS
from cortex_llamacpp.refused import REFUSED
from cortex_llamacpp.wheel import load_wheel

__all__ = ["main"]

_PROGRAM = "cortex-llama-server"
# llama-server's own default has moved (8080, now 9931); plans always pass --port.
_PORT_DEFAULT = 9931
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then end the process with 0; 1 and a line on standard error otherwise.

    While the model loads, /health answers 503 and a signal ends the process by that signal, as with
    llama-server: the wheel holds the interpreter until the model is there.
    """
    words = sys.argv[1:] if argv is None else argv
    if "-h" in words or "--help" in words or "--usage" in words:
        sys.stdout.write(_usage())
        return 0
    try:
        wheel = load_wheel()
    except ImportError as error:
        _say(
            f"the xllamacpp wheel does not load ({error}); install it, and libstdc++ and libgomp "
            "(Debian: libstdc++6 libgomp1; Fedora: libstdc++ libgomp), or run a llama-server binary"
        )
        return 1
    if "--version" in words:
        sys.stdout.write(f"{_PROGRAM} (xllamacpp {wheel.__version__}, {wheel.BUILD_INFO['build_target']})\n")
        return 0
    try:
        params = _parameters(words, wheel)
    except BadArgument as error:
        _say(str(error))
        return 1
    reason = _unloadable(params.model.path)
    if reason:
        _say(reason)
        return 1
    return _serve(params, wheel)


def _parameters(words: Sequence[str], wheel: Any) -> Any:
    params = wheel.CommonParams()
    params.port = _PORT_DEFAULT
    params.api_keys = api_keys()
    for warning in fill(params, words, wheel):
        _say(f"warning: {warning}")
    for name in ignored_variables():
        _say(f"warning: {name}: environment variables other than LLAMA_API_KEY are not read; pass the flag")
    return params


def _unloadable(path: str) -> str:
    """A sentence where llama.cpp's own message would not say what is wrong with the file; else nothing."""
    file = Path(path)
    if file.is_dir():
        return f"--model: {path!r} is a folder; pass the GGUF file in it"
    if not file.exists():
        return f"--model: there is no file {path!r}; check the path"
    if not os.access(file, os.R_OK):
        return f"--model: {path!r} is not readable by this user; change its permissions"
    return ""


def _serve(params: Any, wheel: Any) -> int:
    for number in _STOP_SIGNALS:
        # Until the model is loaded no Python code can run, so the system's default has to act.
        signal.signal(number, signal.SIG_DFL)
    try:
        _server = wheel.Server(params)
    except (RuntimeError, ValueError) as error:
        _say(f"llama.cpp did not start; the lines above say why ({error})")
        return 1
    number = _wait_for_stop()
    _say(f"{signal.Signals(number).name}: stopping")
    # Ended at once, with the server alive: tearing it down would wait, with the interpreter held, for the
    # prompt being read and up to --sse-ping-interval (30 s) for each open stream. The system closes them.
    os._exit(0)


def _wait_for_stop() -> int:
    """Sleep until a stop signal comes, whichever thread of llama.cpp's the system hands it to; its number."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _STOP_SIGNALS:
        # The handler has nothing to do: the number arrives through the pipe.
        signal.signal(number, lambda _number, _frame: None)
    while True:
        number = os.read(reader, 1)[0]
        if number in _STOP_SIGNALS:
            return number


def _usage() -> str:
    accepted = sorted({", ".join(flag.names) for flag in FLAGS.values()}, key=str.lower)
    lines = "".join(f"  {names}\n" for names in accepted)
    return (
        f"usage: {_PROGRAM} --model FILE.gguf --host ADDRESS --port PORT [flags of llama-server]\n\n"
        f"The flags mean what they mean for llama-server. The API key may come in LLAMA_API_KEY.\n\n{lines}\n"
        f"Refused, each with what to use instead: {' '.join(sorted(REFUSED))}\n"
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{_PROGRAM}: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

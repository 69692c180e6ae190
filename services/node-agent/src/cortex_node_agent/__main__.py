"""`python -m cortex_node_agent`: reads settings and flags, and runs the agent or stops its engines."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from cortex_shared import logs
from cortex_shared.errors import CortexError
from cortex_shared.process import run
from cortex_shared.settings import from_environment

from cortex_node_agent.main import main as agent_main
from cortex_node_agent.settings import Settings
from cortex_node_agent.stop_engines import stop_engines


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 ended as asked, 1 could not run, 2 wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _stop(words[1:]) if words[:1] == ["stop-engines"] else _serve(words)
    except CortexError as error:
        return _fail(error)
    except BaseExceptionGroup as group:
        # A part that cannot go on takes the others with it, in a task group.
        expected, other = group.split(CortexError)
        if other is not None or expected is None:
            raise
        return _fail(_first(expected))


def _serve(words: Sequence[str]) -> int:
    settings = _settings(_parser().parse_args(words))
    logs.configure(settings.log, service="node-agent")
    run(partial(agent_main, settings))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cortex-node-agent",
        description="Runs this host's engines. Settings come from CORTEX_*; flags win. "
        "`stop-engines --state DIR [--grace SECONDS]` stops all engines of a state folder.",
    )
    parser.add_argument("--nats", metavar="URL", help="address of NATS")
    parser.add_argument("--credentials", metavar="FILE", type=Path, help="NATS credentials of this node")
    parser.add_argument("--node", metavar="NAME", help="node id; default: the credentials' name")
    parser.add_argument("--address", metavar="IP", help="address at which gateways reach engines here")
    parser.add_argument("--state", metavar="DIR", type=Path, help="folder of state and logs")
    parser.add_argument(
        "--model-root", metavar="DIR", type=Path, action="append", help="a folder of models (repeatable)"
    )
    parser.add_argument(
        "--program", metavar="NAME=TARGET", type=_program, action="append", help="what a program is here"
    )
    return parser


def _program(text: str) -> tuple[str, str]:
    name, sign, target = text.partition("=")
    if not (name and sign and target):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TARGET")
    return name, target


def _settings(flags: argparse.Namespace) -> Settings:
    settings = from_environment(Settings)
    agent: dict[str, Any] = {
        "node": flags.node,
        "address": flags.address,
        "state": flags.state,
        "model_roots": flags.model_root,
        "programs": {**settings.agent.programs, **dict(flags.program)} if flags.program else None,
    }
    nats: dict[str, Any] = {"url": flags.nats, "credentials": flags.credentials}
    return settings.model_copy(
        update={
            "agent": settings.agent.model_copy(update=_given(agent)),
            "nats": settings.nats.model_copy(update=_given(nats)),
        }
    )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _stop(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="cortex-node-agent stop-engines")
    parser.add_argument("--state", metavar="DIR", type=Path, required=True)
    parser.add_argument("--grace", metavar="SECONDS", type=float, help="at most; default: each plan's own")
    flags = parser.parse_args(words)
    if not flags.state.is_dir():
        return 0  # no agent ever ran with it

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    anyio.run(partial(stop_engines, flags.state, flags.grace, say))
    return 0


def _fail(error: CortexError) -> int:
    remedy = f" ({error.remedy})" if error.remedy else ""
    sys.stderr.write(f"cortex-node-agent: {error.message}{remedy}\n")
    return 1


def _first(group: BaseExceptionGroup[CortexError]) -> CortexError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


if __name__ == "__main__":
    sys.exit(main())

"""The `cortex` command."""

import os
import sys

import typer
from cortex_shared.errors import CortexError

from cortex_cli import output
from cortex_cli.app import build
from cortex_cli.exit_codes import ExitCode, exit_code


def main() -> int:
    """Run the command; the exit code, as `cortex --help` lists them."""
    try:
        result: object = build()(standalone_mode=False)
        sys.stdout.flush()
    except CortexError as error:
        output.error(error)
        return exit_code(error)
    except typer.Abort:
        return ExitCode.interrupted
    except typer.TyperException as error:
        _say(error)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.interrupted
    except BrokenPipeError:
        # The reader (`head`) has left; nothing more may be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.ok
    return result if isinstance(result, int) else ExitCode.ok


def _say(error: typer.TyperException) -> None:
    """Wrong words on the command line; a command without any is answered with its help."""
    words = error.format_message()
    print(words if words.startswith("Usage:") else f"error: {words}", file=sys.stderr)
    if not words.startswith("Usage:"):
        print("remedy: see the command's --help.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

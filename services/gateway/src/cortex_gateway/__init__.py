"""The data plane: authenticates, admits, balances, relays bytes, meters.

Its hot modules can be compiled (`make native`, services/gateway/compile.py). What was compiled of exactly
these sources by this Python is used instead of them; CORTEX_GATEWAY_NATIVE=0: never, 1: or nothing starts.
"""

import hashlib
import os
import sys
from pathlib import Path

_HERE = Path(__file__).parent
NATIVE_FOLDER = Path(sys.prefix) / "lib/cortex-gateway-native"
_SOURCES = "sources"


def sources_digest(modules: list[str]) -> str:
    """What the compiled form of these modules was made of, as one line: it is good for nothing else.

    The other modules are in it too, for what is compiled relies on their types.
    """
    found = hashlib.sha256(sys.version.encode())
    for source in sorted(_HERE.glob("*.py")):
        found.update(b"%s\0%s\0" % (source.stem.encode(), source.read_bytes()))
    return " ".join((found.hexdigest(), *modules))


def _use_native() -> bool:
    # Settings cannot say it: reading them imports modules that are to be replaced.
    wanted = os.environ.get("CORTEX_GATEWAY_NATIVE", "")  # noqa: TID251 (see above)
    if wanted == "0":
        return False
    try:
        told = (NATIVE_FOLDER / _SOURCES).read_text()
        fits = told == sources_digest(told.split(" ")[1:])
    except OSError:
        fits = False
    if fits:
        __path__.insert(0, str(NATIVE_FOLDER / "cortex_gateway"))
        sys.path.append(str(NATIVE_FOLDER))  # for what the compiled modules share
    elif wanted == "1":
        raise ImportError(f"{NATIVE_FOLDER} is not of these sources; remedy: make native")
    return fits


NATIVE = _use_native()
"""Whether the hot modules are the compiled ones."""

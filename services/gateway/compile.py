"""Compile the gateway's hot modules for the Python that runs this: python compile.py.

mypyc makes C of them, by their types, and a C compiler the rest; it takes a minute or two. The result lies in
the environment's lib/cortex-gateway-native, and is used as long as the sources stay what they are. Needs mypy
and setuptools (requirements-native.txt), gcc or clang, and Python's headers.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import cortex_gateway

# What runs with each request. Modules with msgspec's or pydantic's classes cannot be compiled.
MODULES = (
    *("answering", "attempts", "balance", "body", "budget", "chunks", "ending", "endpoint", "estimate"),
    *("event_relay", "exchange", "gateway", "gist", "heads", "incoming", "journal", "key_limits", "keys"),
    *(
        "large_body",
        "large_reads",
        "limits",
        "line",
        "open_requests",
        "paths",
        "pipeline",
        "pool",
        "prefix",
        "protocol",
    ),
    *("quick", "recall", "recorder", "relay", "rerouting", "sse", "stats", "sticky", "sweep", "table"),
    *("typed", "upstream", "usage", "usage_batches", "usage_log", "usage_record", "wire"),
)

_SETUP = """\
from mypyc.build import mypycify
from setuptools import setup

modules = mypycify(["--config-file", "mypy.ini", {files}], opt_level="3", group_name="cortex_gateway")
for module in modules:
    # Nobody replaces a function from outside: calls within are direct, and small ones inlined.
    module.extra_compile_args.append("-fno-semantic-interposition")
setup(name="cortex-gateway-native", ext_modules=modules, packages=[])
"""
_MYPY = f"""\
[mypy]
python_executable = {sys.executable}
follow_imports = silent
ignore_missing_imports = True
disable_error_code = import-untyped
"""


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _mend() -> None:
    # mypyc 2.4 raises SystemError for a slice of bytes that ends before it begins, which is an empty one.
    found = find_spec("mypyc")
    if found is None or found.origin is None:
        raise SystemExit("error: mypyc is not here. remedy: make native, or install requirements-native.txt")
    source = Path(found.origin).parent / "lib-rt/bytes_ops.c"
    least = "slice_len = endn > startn ? endn - startn : 0;"
    source.write_text(source.read_text().replace("slice_len = endn - startn;", least))


def main() -> int:
    """0 when the compiled form is there; does nothing when it is there already."""
    modules = sorted(MODULES)
    digest = cortex_gateway.sources_digest(modules)
    folder = cortex_gateway.NATIVE_FOLDER
    if (folder / "sources").exists() and (folder / "sources").read_text() == digest:
        return 0
    _say("compiling the gateway's hot modules (a minute or two) ...")
    _mend()
    package = Path(cortex_gateway.__file__).parent
    with tempfile.TemporaryDirectory(prefix="cortex-native-") as made:
        work = Path(made)
        shutil.copytree(package, work / "cortex_gateway", ignore=shutil.ignore_patterns("__pycache__"))
        files = ", ".join(f'"cortex_gateway/{module}.py"' for module in modules)
        (work / "setup.py").write_text(_SETUP.format(files=files))
        (work / "mypy.ini").write_text(_MYPY)
        told = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "native"],
            cwd=work,
            env={**os.environ, "MYPYPATH": str(work), "CORTEX_GATEWAY_NATIVE": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if told.returncode:
            _say(told.stdout[-4000:])
            _say("error: the gateway was not compiled. It runs without that, at a higher cost.")
            _say("remedy: a C compiler and Python's headers (Debian: gcc python3-dev).")
            return 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work / "native", folder)
        (folder / "sources").write_text(digest)  # last: what is not whole is not used
    return 0


if __name__ == "__main__":
    sys.exit(main())

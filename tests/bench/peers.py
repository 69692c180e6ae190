"""Other gateways, each installed apart from Cortex and started as a plain proxy before one engine.

Environments are made once, under ~/.cache/cortex/peers; a peer that cannot be installed is left out.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import KEY

_ROOT = Path(__file__).parents[2]
_INSTALL_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway to compare with. `command(folder, port, engine port)` may write files into `folder`."""

    name: str
    version: str
    command: Callable[[Path, int, int], list[str]]
    rust: bool = False
    slow: bool = False  # a hundredth of the requests, and no load at a rate that it cannot follow


def environment(package: str, version: str) -> Path:
    """The folder of an environment that holds this package, made if it is not there.

    Raises OSError or subprocess.SubprocessError when it cannot be made.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cortex" / "peers"
    cache.mkdir(parents=True, exist_ok=True)
    name = package.partition("[")[0]
    folder = cache / f"{name}-{version}"
    with (cache / f".{name}-{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".made").exists():
            uv = shutil.which("uv", path=f"{_ROOT / '.tools/bin'}:{os.environ.get('PATH', '')}") or "uv"
            shutil.rmtree(folder, ignore_errors=True)
            for command in (
                [uv, "venv", "-q", "--no-project", "--python", os.path.realpath(sys.executable), str(folder)],
                [uv, "pip", "install", "-q", "--python", f"{folder}/bin/python", f"{package}=={version}"],
            ):
                subprocess.run(command, check=True, timeout=_INSTALL_SECONDS)
            (folder / ".made").touch()
    return folder


def _vllm_router(programs: Path) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, port: int, engine: int) -> list[str]:
        del folder
        return [
            *(str(programs / "bin/vllm-router"), "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{engine}", "--policy", "round_robin"),
            *("--log-level", "error", "--prometheus-port", str(_beside(port))),
        ]

    return command


def _sglang_router(programs: Path) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, port: int, engine: int) -> list[str]:
        del folder
        return [
            *(str(programs / "bin/python"), "-m", "sglang_router.launch_router", "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{engine}", "--policy", "round_robin"),
            *("--log-level", "error", "--prometheus-port", str(_beside(port))),
        ]

    return command


def _smg(programs: Path) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, port: int, engine: int) -> list[str]:
        del folder
        return [
            *(str(programs / "bin/smg"), "launch", "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{engine}", "--policy", "round_robin"),
            *("--log-level", "error", "--prometheus-port", str(_beside(port))),
            "--disable-tokenizer-autoload",
        ]

    return command


def _beside(port: int) -> int:
    # For a metrics server that must have a port of its own; ports of ours are below the kernel's range.
    return port + 10_000 if port < 50_000 else port - 10_000


_LITELLM = """\
model_list:
  - model_name: m
    litellm_params:
      model: openai/m
      api_base: http://127.0.0.1:{engine}/v1
      api_key: engine
general_settings:
  master_key: {key}
litellm_settings:
  telemetry: false
"""


def _litellm(programs: Path) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, port: int, engine: int) -> list[str]:
        config = folder / "litellm.yaml"
        config.write_text(_LITELLM.format(engine=engine, key=KEY))
        return [
            *(
                "env",
                "LITELLM_LOG=ERROR",
                "LITELLM_LOCAL_MODEL_COST_MAP=True",
                f"PATH={programs}/bin:/usr/bin",
            ),
            *(str(programs / "bin/litellm"), "--config", str(config), "--host", "127.0.0.1"),
            *("--port", str(port), "--num_workers", "1"),
        ]

    return command


# As a plain proxy would be set up by who knows it: connections kept on both sides, bodies in memory, no log.
_NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    client_max_body_size 64m;
    client_body_buffer_size 1m;
    keepalive_requests 100000000;
    upstream engine {{
        server 127.0.0.1:{engine};
        keepalive 256;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


def _nginx(folder: Path, port: int, engine: int) -> list[str]:
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, engine=engine))
    return ["nginx", "-c", str(config), "-e", f"{folder}/nginx-error.log"]


_PACKAGES = (
    ("vllm-router", "0.1.17", "vllm-router", _vllm_router, False),
    ("sglang-router", "0.3.2", "sglang-router", _sglang_router, False),
    ("smg", "1.13.0", "smg", _smg, False),
    ("litellm", "1.108.7", "litellm[proxy]", _litellm, True),
)
NAMES = ("nginx", *(name for name, *_ in _PACKAGES))


def available(names: list[str]) -> tuple[list[Peer], dict[str, str]]:
    """Those of these peers that can be had here, and why the others cannot."""
    found: list[Peer] = []
    missing: dict[str, str] = {}
    if "nginx" in names:
        if shutil.which("nginx"):
            told = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
            found.append(Peer("nginx", told.rpartition("/")[2].strip(), _nginx))
        else:
            missing["nginx"] = "no nginx on the PATH (apt-get install nginx-light)"
    for name, version, package, command, slow in _PACKAGES:
        if name in names:
            try:
                programs = environment(package, version)
            except (OSError, subprocess.SubprocessError) as error:
                missing[name] = f"not installed: {error}"
                continue
            found.append(Peer(name, version, command(programs), rust=not slow, slow=slow))
    return found, missing

"""Writes the secrets and server configurations that docker-compose.yml mounts."""

import base64
import os
import secrets
import sys
from pathlib import Path

from cortex_shared.nats_auth import Authority


def _files() -> dict[str, str]:
    authority = Authority.create()
    postgres, redis = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    master = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    engine = secrets.token_urlsafe(32)
    redis_url = f"CORTEX_REDIS__URL=redis://:{redis}@redis:6379/0\n"

    def credentials(service: str) -> str:
        return f"CORTEX_NATS__CREDENTIALS=/etc/cortex/{service}.creds\n"

    return {
        "postgres.env": f"POSTGRES_USER=cortex\nPOSTGRES_DB=cortex\nPOSTGRES_PASSWORD={postgres}\n",
        "redis.conf": f"dir /data\nappendonly yes\nrequirepass {redis}\n",
        "nats.conf": (
            'listen: "0.0.0.0:4222"\nmax_payload: 8MB\njetstream { store_dir: /data }\n'
            + authority.server_config()
        ),
        "authority.json": authority.to_json(),
        "api.env": (
            f"CORTEX_DATABASE__URL=postgresql+asyncpg://cortex:{postgres}@postgres/cortex\n"
            f"CORTEX_MASTER_KEY={master}\nCORTEX_ENGINE_SECRET={engine}\n"
            "CORTEX_NATS_AUTHORITY=/etc/cortex/authority.json\n" + credentials("api") + redis_url
        ),
        "monitor.env": f"CORTEX_ENGINE_SECRET={engine}\n" + credentials("monitor") + redis_url,
        "gateway.env": f"CORTEX_ENGINE_SECRET={engine}\n" + credentials("gateway") + redis_url,
        **{
            f"{service}.creds": authority.credentials(service, role="service")
            for service in ("api", "monitor", "gateway")
        },
    }


def main(arguments: list[str]) -> int:
    """Write all files into the folder named by the one argument; refuses to overwrite any."""
    if len(arguments) != 1:
        print("usage: python -m cortex_cli.compose_secrets FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    if folder.exists() and any(folder.iterdir()):
        print(f"{folder} is not empty; secrets that exist are not made anew.", file=sys.stderr)
        return 1
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in _files().items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    print(f"Secrets written to {folder}; keep a copy where backups are kept.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

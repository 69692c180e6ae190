"""NATS accounts and credentials: an operator's keys, and JWTs signed with them.

The decentralised scheme of NATS (nats-server configuration "operator mode"): the server holds only public
keys and verifies signed claims, so a node can be given credentials, and reconnect, while no Cortex service
is alive. Key and claim formats are those of github.com/nats-io/nkeys and github.com/nats-io/jwt, version 2.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cortex_shared.clock import utc_now
from cortex_shared.contracts.rpc import node_rpc_subject, secrets_subject
from cortex_shared.errors import InvalidInput

type KeyKind = Literal["operator", "account", "user"]
type Role = Literal["service", "node"]

_PREFIX: dict[KeyKind, int] = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
_SEED = 18 << 3
_BLOCK = re.compile(r"-----BEGIN ([A-Z ]+)-----\s+(\S+)\s+------?END")


def _crc16(data: bytes) -> bytes:
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc.to_bytes(2, "little")


def _base32(data: bytes) -> str:
    return base64.b32encode(data + _crc16(data)).decode().rstrip("=")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@dataclass(frozen=True)
class KeyPair:
    """An nkey: an Ed25519 key with a kind."""

    kind: KeyKind
    private: Ed25519PrivateKey

    @classmethod
    def create(cls, kind: KeyKind) -> Self:
        """A new random key."""
        return cls(kind, Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: str) -> Self:
        """Read a seed `S...`; raises InvalidInput when it is none."""
        try:
            raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
        except ValueError as error:
            raise InvalidInput("not an nkey seed", code="credentials.invalid") from error
        if len(raw) != 36 or raw[0] & 0xF8 != _SEED or _crc16(raw[:-2]) != raw[-2:]:
            raise InvalidInput("not an nkey seed", code="credentials.invalid")
        prefix = (raw[0] & 0x07) << 5 | raw[1] >> 3
        for kind, value in _PREFIX.items():
            if value == prefix:
                return cls(kind, Ed25519PrivateKey.from_private_bytes(raw[2:34]))
        raise InvalidInput("a seed of an unknown kind of nkey", code="credentials.invalid")

    @property
    def public(self) -> str:
        """The public key `O...`, `A...` or `U...`."""
        raw = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _base32(bytes([_PREFIX[self.kind]]) + raw)

    @property
    def seed(self) -> str:
        """The secret seed `SO...`, `SA...` or `SU...`."""
        prefix = _PREFIX[self.kind]
        head = bytes([_SEED | prefix >> 5, (prefix & 31) << 3])
        return _base32(head + self.private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature of `data`, 64 bytes."""
        return self.private.sign(data)


def _jwt(
    issuer: KeyPair, subject: str, name: str, claims: dict[str, Any], *, expires_at: datetime | None = None
) -> str:
    body: dict[str, Any] = {
        "iat": int(utc_now().timestamp()),
        "iss": issuer.public,
        "name": name,
        "sub": subject,
        "nats": claims,
    }
    if expires_at is not None:
        body["exp"] = int(expires_at.timestamp())
    digest = hashlib.sha256(json.dumps(body, separators=(",", ":")).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    head = _base64url(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}, separators=(",", ":")).encode())
    signed = f"{head}.{_base64url(json.dumps(body, separators=(',', ':')).encode())}"
    return f"{signed}.{_base64url(issuer.sign(signed.encode()))}"


def _account_claims(*, jetstream: bool) -> dict[str, Any]:
    stored = -1 if jetstream else 0
    return {
        "limits": {
            "subs": -1,
            "data": -1,
            "payload": -1,
            "imports": -1,
            "exports": -1,
            "wildcards": True,
            "conn": -1,
            "leaf": -1,
            "mem_storage": stored,
            "disk_storage": stored,
            "streams": stored,
            "consumer": stored,
        },
        "default_permissions": {"pub": {}, "sub": {}},
        "type": "account",
        "version": 2,
    }


def _node_permissions(node: str) -> dict[str, Any]:
    """What a node may say and hear: its own subjects and keys, and nothing of another's."""
    return {
        "pub": {
            "allow": [
                secrets_subject(node),
                f"$KV.cortex_observed_v1.{node}",
                f"cortex.v1.telemetry.{node}",
                f"cortex.v1.events.node.{node}",
                f"$JS.API.CONSUMER.CREATE.CORTEX_COMMANDS.*.cortex.v1.commands.{node}.*",
                "$JS.API.CONSUMER.DELETE.CORTEX_COMMANDS.*",
            ]
        },
        "sub": {"allow": [f"{inbox_prefix(node)}.>", node_rpc_subject(node, "*")]},
        "resp": {"max": 1, "ttl": 60_000_000_000},
    }


def inbox_prefix(name: str) -> str:
    """Where answers to `name` arrive: a prefix of its own, so that no node reads another's answers."""
    return f"_INBOX_{name}"


@dataclass(frozen=True)
class Authority:
    """The keys that sign credentials of one fleet. Secret: whoever has it may be anybody."""

    operator: KeyPair
    account: KeyPair
    system: KeyPair

    @classmethod
    def create(cls) -> Self:
        """New random keys."""
        return cls(KeyPair.create("operator"), KeyPair.create("account"), KeyPair.create("account"))

    def to_json(self) -> str:
        """The secret seeds, for a file of mode 0600."""
        return json.dumps(
            {"operator": self.operator.seed, "account": self.account.seed, "system": self.system.seed}
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what to_json gave; raises InvalidInput when it is something else."""
        try:
            seeds = json.loads(text)
            return cls(*(KeyPair.from_seed(seeds[name]) for name in ("operator", "account", "system")))
        except (InvalidInput, ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                "the file of NATS signing keys is damaged",
                code="nats_auth.damaged",
                remedy="restore it from a backup; every node's credentials depend on it",
            ) from error

    def server_config(self) -> str:
        """Lines for nats-server's configuration; they hold public claims only, no secret."""
        operator = _jwt(
            self.operator,
            self.operator.public,
            "cortex",
            {"system_account": self.system.public, "type": "operator", "version": 2},
        )
        preload = {
            self.account.public: _jwt(
                self.operator, self.account.public, "cortex", _account_claims(jetstream=True)
            ),
            self.system.public: _jwt(
                self.operator, self.system.public, "system", _account_claims(jetstream=False)
            ),
        }
        lines = [f"operator: {operator}", f"system_account: {self.system.public}", "resolver: MEMORY"]
        lines += ["resolver_preload: {", *(f"  {key}: {jwt}" for key, jwt in preload.items()), "}"]
        return "\n".join(lines) + "\n"

    def credentials(self, name: str, *, role: Role, expires_at: datetime | None = None) -> str:
        """A .creds text for a service, which may do all, or for the node `name`, which may be only itself."""
        user = KeyPair.create("user")
        permissions: dict[str, Any] = _node_permissions(name) if role == "node" else {"pub": {}, "sub": {}}
        claims = {**permissions, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2}
        token = _jwt(self.account, user.public, name, claims, expires_at=expires_at)
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            "The seed below is secret: whoever has it can act as this user.\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )


@dataclass(frozen=True)
class Credentials:
    """What a .creds file holds."""

    jwt: str
    key: KeyPair

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a .creds file; raises InvalidInput that names the file when it is missing or none."""
        try:
            blocks = dict(_BLOCK.findall(path.read_text()))
            return cls(blocks["NATS USER JWT"], KeyPair.from_seed(blocks["USER NKEY SEED"]))
        except (OSError, KeyError, UnicodeDecodeError, InvalidInput) as error:
            raise InvalidInput(
                f"{path} is not a readable NATS credentials file",
                code="credentials.invalid",
                field="nats.credentials",
                remedy="make one with `cortex nodes add NAME` and copy it to this host",
            ) from error

    @property
    def name(self) -> str:
        """The user's name: for a node, its node id."""
        payload = self.jwt.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(claims["name"])

    def connect_options(self) -> dict[str, Callable[..., Any]]:
        """Options for nats-py's connect: it hands us the nonce, we sign it."""

        def sign(nonce: str) -> bytes:
            return base64.b64encode(self.key.sign(nonce.encode()))

        return {"user_jwt_cb": lambda: bytearray(self.jwt, "ascii"), "signature_cb": sign}

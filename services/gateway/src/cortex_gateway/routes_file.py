"""The routes file: all that a gateway standing alone is told, as people write it, checked throughout."""

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, cast
from urllib.parse import urlsplit

from cortex_shared.contracts.base import Contract
from cortex_shared.contracts.keys import KeyRecord, hash_key
from cortex_shared.contracts.routes import Endpoint as EndpointContract
from cortex_shared.contracts.routes import (
    Route,
    RoutePolicy,
    RoutingTable,
)
from cortex_shared.errors import InvalidInput
from cortex_shared.tls import client_context
from pydantic import ValidationError

from cortex_gateway.positions import Document, Path, Unreadable, shown
from cortex_gateway.routes_form import EndpointEntry, File, Listen, RouteEntry, known_fields

OPEN = "open"
PROBLEMS_MAX = 20
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Served(Contract):
    """What a file says, as the gateway takes it. `anyone`: no key is asked for, and `keys` is empty."""

    listen: Listen
    anyone: bool
    keys: list[KeyRecord]
    table: RoutingTable

    def summary(self) -> str:
        """How much it is, for people."""
        routes, endpoints = self.table.routes, sum(len(route.endpoints) for route in self.table.routes)
        keys = "open to anyone" if self.anyone else f"{len(self.keys)} keys"
        return f"{len(routes)} routes, {endpoints} endpoints, {keys}"

    def same(self, other: "Served") -> bool:
        """Whether both say the same of keys and routes."""
        mine, others = self.table.routes, other.table.routes
        return (self.anyone, self.keys, mine) == (other.anyone, other.keys, others)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in the file."""

    line: int
    field: str
    reason: str
    remedy: str

    def told(self, file: str) -> str:
        """As one line: file, line, field, reason, remedy."""
        where = f"{file}:{self.line}: " + (f"{self.field}: " if self.field else "")
        return f"{where}{self.reason}; {self.remedy}"


class Refused(InvalidInput):
    """The file is not taken. `problems` are all that were found, PROBLEMS_MAX at most."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)[:PROBLEMS_MAX]
        self.lines = [problem.told(file) for problem in self.problems]
        super().__init__(
            "\n".join(self.lines),
            code="routes_file.refused",
            field=self.problems[0].field,
            remedy="mend the lines named; docs/gateway.md lists every field",
        )


def read(file: str, data: bytes, *, variables: Mapping[str, str], created: datetime, version: int) -> Served:
    """What the file with this content says. Raises Refused.

    `variables` are for `${NAME}` in place of keys; `created` is what models show, at each reading.
    """
    try:
        document = Document(data)
    except Unreadable as error:
        problem = Problem(error.line, error.field or "", error.message, error.remedy or "")
        raise Refused(file, [problem]) from error
    value, anyone = _without_open(document.value)
    if anyone is None:
        raise Refused(file, [_no_keys(document)])
    try:
        told = File.model_validate(value)
    except ValidationError as error:
        problems = [
            _problem(document, cast("dict[str, Any]", each)) for each in error.errors(include_url=False)
        ]
        raise Refused(file, problems) from error
    check = _Check(document, variables)
    served = check.served(told, anyone=anyone, created=created, version=version)
    if check.problems:
        raise Refused(file, check.problems)
    return served


def _without_open(value: object) -> tuple[object, bool | None]:
    # (what File takes, whether anyone may use it); None if nothing is said of keys.
    if not isinstance(value, dict):
        return value, False
    fields = cast("dict[str, Any]", value)
    if fields.get("keys") == OPEN:
        nobody = {"name": OPEN, "key": OPEN}
        return {**fields, "keys": [nobody]}, True
    return fields, None if not fields.get("keys") else False


def _no_keys(document: Document) -> Problem:
    return Problem(
        document.line(("keys",)),
        "keys",
        "no key is given",
        "list keys, or write `keys: open` to serve anyone who can reach the address",
    )


_REMEDIES = {
    "string_type": ("must be text", "put it in quotes"),
    "string_too_short": ("is empty", "give it, or leave the field out"),
    "list_type": ("must be a list", "write each item on a line of its own, with `- ` before it, or in []"),
    "too_short": ("is empty", "give at least one"),
    "dict_type": ("must be fields with values", "write `field: value` on lines of their own"),
    "model_type": ("must be fields with values", "write `field: value` on lines of their own"),
    "model_attributes_type": ("must be fields with values", "write `field: value` on lines of their own"),
    "int_type": ("must be a whole number", "write digits only"),
    "float_type": ("must be a number", "write it with a point, without a unit"),
    "string_pattern_mismatch": ("is no path", "write one that begins with /"),
    "bool_type": ("must be true or false", "write true or false"),
}


def _problem(document: Document, error: dict[str, Any]) -> Problem:
    path = cast("Path", error["loc"])
    kind, context = cast("str", error["type"]), cast("dict[str, Any]", error.get("ctx") or {})
    reason = cast("str", error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    remedy = "docs/gateway.md lists what it may be"
    if kind == "missing":
        reason, remedy = "is missing", f"add `{path[-1]}: ...` here"
    elif kind == "extra_forbidden":
        reason, remedy = "unknown field", _nearest(str(path[-1]), known_fields(path[:-1]), "known here are ")
    elif kind == "literal_error":
        choices = [text.strip("'") for text in re.findall(r"'[^']+'", str(context["expected"]))]
        reason = f"{error['input']!r} is none of {', '.join(choices)}"
        remedy = _nearest(str(error["input"]), choices, "choose one of ")
    elif kind in _REMEDIES:
        reason, remedy = _REMEDIES[kind]
    elif context:
        reason, remedy = f"must be {reason}", "choose a value within its bounds"
    if not path:
        reason, remedy = "the file must hold fields (listen, keys, routes)", "see docs/gateway.md"
    return Problem(document.line(path), shown(path), reason, remedy)


def _nearest(name: str, known: list[str], otherwise: str) -> str:
    found = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else otherwise + ", ".join(sorted(known))


class _Check:
    # What one field alone does not tell, and what the gateway makes of it.

    def __init__(self, document: Document, variables: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._document = document
        self._variables = variables

    def served(self, told: File, *, anyone: bool, created: datetime, version: int) -> Served:
        names = self._names(told)
        routes = [self._route(route, ("routes", at), names, created) for at, route in enumerate(told.routes)]
        keys = [] if anyone else list(self._keys(told, names))
        table = RoutingTable(term=1, version=version, written_at=created, routes=routes)
        return Served(listen=told.listen, anyone=anyone, keys=keys, table=table)

    def _wrong(self, path: Path, reason: str, remedy: str) -> None:
        self.problems.append(Problem(self._document.line(path), shown(path), reason, remedy))

    def _names(self, told: File) -> list[str]:
        unique = self._unique("served")
        for at, route in enumerate(told.routes):
            unique(route.name, ("routes", at, "name"))
            for number, alias in enumerate(route.aliases):
                unique(alias, ("routes", at, "aliases", number))
        return [name for route in told.routes for name in (route.name, *route.aliases)]

    def _unique(self, what: str) -> Callable[[str, Path], None]:
        lines: dict[str, int] = {}

        def check(text: str, path: Path) -> None:
            if text in lines:
                self._wrong(
                    path, f"{what} already, on line {lines[text]}", "remove one, or name it otherwise"
                )
            lines.setdefault(text, self._document.line(path))

        return check

    def _keys(self, told: File, names: list[str]) -> Iterator[KeyRecord]:
        name, secret = self._unique("this name is given"), self._unique("this key is given")
        for at, entry in enumerate(told.keys):
            path = ("keys", at)
            key = self._secret(entry.key, (*path, "key"))
            name(entry.name, (*path, "name"))
            secret(key, (*path, "key"))
            for number, model in enumerate(entry.models):
                if model != "*":
                    self._known_name(model, names, (*path, "models", number))
            for number, network in enumerate(entry.networks):
                self._network(network, (*path, "networks", number))
            expires = entry.expires_at
            if expires is not None and expires.tzinfo is None:
                expires = expires.replace(tzinfo=UTC)
            yield KeyRecord(
                id=_number(entry.name),
                name=entry.name,
                hash=hash_key(key),
                models=entry.models,
                requests_per_minute=entry.rpm,
                tokens_per_minute=entry.tpm,
                concurrency=entry.concurrency,
                tokens_per_day=entry.tokens_per_day,
                tokens_per_month=entry.tokens_per_month,
                networks=entry.networks,
                priority=entry.priority,
                expires_at=expires,
            )

    def _network(self, text: str, path: Path) -> None:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            self._wrong(path, "no address range", "write one like 10.0.0.0/8, or one address")

    def _known_name(self, name: str, names: list[str], path: Path) -> None:
        if name not in names:
            self._wrong(path, f"no route is called {name!r}", _nearest(name, names, "routes are "))

    def _route(self, entry: RouteEntry, path: Path, names: list[str], created: datetime) -> Route:
        for number, fallback in enumerate(entry.fallbacks):
            self._other(fallback, entry, names, (*path, "fallbacks", number))
        for number, split in enumerate(entry.splits):
            self._other(split.to, entry, names, (*path, "splits", number, "to"))
        if sum(split.share for split in entry.splits) > 1:
            self._wrong((*path, "splits"), "the shares are more than 1 together", "lower them")
        policy = RoutePolicy.model_validate(entry.model_dump(include=set(RoutePolicy.model_fields)))
        return Route(
            name=entry.name,
            aliases=entry.aliases,
            model_id=_number(entry.name),
            task=entry.task,
            engine=entry.engine,
            created=int(created.timestamp()),
            context_length=entry.context_length,
            policy=policy,
            endpoints=list(self._endpoints(entry, path)),
        )

    def _other(self, name: str, entry: RouteEntry, names: list[str], path: Path) -> None:
        self._known_name(name, names, path)
        if name in (entry.name, *entry.aliases):
            self._wrong(path, "this is the route itself", "name another route")

    def _endpoints(self, entry: RouteEntry, route: Path) -> Iterator[EndpointContract]:
        seen: set[tuple[str, str | None, str | None]] = set()
        names: set[str] = set()
        for at, endpoint in enumerate(entry.endpoints):
            path = (*route, "endpoints", at)
            self._url(endpoint.url, (*path, "url"))
            key = None if endpoint.key is None else self._secret(endpoint.key, (*path, "key"))
            identity = (endpoint.url, key, endpoint.model)
            if identity in seen:
                self._wrong(path, "this endpoint is given twice", "keep one, with the weight of both")
            seen.add(identity)
            name = endpoint.url.partition("://")[2].rstrip("/")
            if name in names:
                name += f"#{endpoint.model or at}"
            names.add(name)
            self._trust(endpoint, (*path, "ca"))
            yield EndpointContract(
                instance=name,
                url=endpoint.url,
                weight=endpoint.weight,
                model=endpoint.model,
                key=key,
                external=True,
                tls_verify=endpoint.tls_verify,
                ca=endpoint.ca,
                health_path=endpoint.health_path,
            )

    def _trust(self, endpoint: EndpointEntry, path: Path) -> None:
        try:
            client_context(verify=endpoint.tls_verify, ca=endpoint.ca)
        except ValueError as error:
            self._wrong(
                path, str(error), "paste the certificate, with its BEGIN and END lines, after `ca: |`"
            )

    def _url(self, url: str, path: Path) -> None:
        try:
            parts = urlsplit(url)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fine = False
        else:
            fine = fine and url.isascii() and url.isprintable() and " " not in url
            fine = fine and not (parts.query or parts.fragment)
            if fine and "@" in parts.netloc:
                self._wrong(path, "a user and password in the address are not used", "give `key` beside it")
        if not fine:
            self._wrong(path, "no address of an engine", "write one like http://10.0.0.1:8000")

    def _secret(self, text: str, path: Path) -> str:
        if "${" in text:
            match = _VARIABLE.fullmatch(text)
            if match is None:
                self._wrong(path, "a variable must be all of it", "write ${NAME} and nothing beside it")
                return text
            text = self._variables.get(match[1], "")
            if not text:
                self._wrong(
                    path,
                    f"the environment variable {match[1]} is not set",
                    "set it for the gateway",
                )
                return match[0]
        if not (text.isascii() and text.isprintable()) or " " in text:
            self._wrong(path, "a key may hold no spaces, accents or control characters", "choose another key")
        return text


def _number(name: str) -> int:
    # The same after every start, whatever moves in the file: limits and usage go by it. 48 bits, for JSON.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])


def key_of_anyone() -> KeyRecord:
    """The key that everybody has of a gateway with `keys: open`."""
    return KeyRecord(id=0, name="anyone", hash="")

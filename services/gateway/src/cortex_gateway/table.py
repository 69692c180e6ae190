"""Routes in memory: names and aliases, endpoints, slots, and the line of requests that wait for one."""

import random
from collections.abc import Callable, Collection
from typing import Protocol

from cortex_shared.contracts.routes import Endpoint as EndpointContract
from cortex_shared.contracts.routes import Route as RouteContract
from cortex_shared.contracts.routes import RoutingTable
from cortex_shared.logs import get_logger

from cortex_gateway.balance import Affinity, Chooser, RetryBudget
from cortex_gateway.choosing import Choosers
from cortex_gateway.dialect import Dialect
from cortex_gateway.endpoint import Endpoint
from cortex_gateway.estimate import Estimate
from cortex_gateway.line import LOW, NORMAL, Line, Reserve
from cortex_gateway.settings import UpstreamSettings
from cortex_gateway.stats import RouteStats, Stats

_log = get_logger("table")

type CapMaker = Callable[["Route", Endpoint, int], None]
type EndpointId = tuple[str | bool | None, ...]


class Waiter(Protocol):
    """A request in line for a slot."""

    @property
    def affinity(self) -> Affinity | None:
        """What of it says where it should go."""
        ...

    def admitted(self, slot: "Slot") -> None:
        """The slot is the request's now."""
        ...

    def unrouted(self) -> None:
        """The route is gone; there will be no slot."""
        ...


class Slot:
    """One request's place on an endpoint. Released exactly once, however often `release` is called."""

    __slots__ = ("_held", "_probe", "_route", "endpoint")

    def __init__(self, route: "Route", endpoint: Endpoint, *, probe: bool) -> None:
        self._route = route
        self.endpoint = endpoint
        self._held = True
        self._probe = probe
        endpoint.outstanding += 1
        if probe:
            endpoint.probing = True

    def release(self) -> None:
        """Give the place to the next in line."""
        if self._held:
            self._held = False
            self.endpoint.outstanding -= 1
            if self._probe:
                self.endpoint.probing = False
            cap = self.endpoint.cap
            if cap is not None:
                cap.released()
            if self._route.waiting:
                self._route.serve_waiting()


class Route:
    """One served name. Lives across routing tables, so that its line, budget and counts do."""

    def __init__(
        self,
        contract: RouteContract,
        stats: RouteStats,
        settings: UpstreamSettings,
        clock: "Clock",
        choosers: Choosers,
        caps: "CapMaker | None" = None,
    ) -> None:
        self.name = contract.name
        self.stats = stats
        self.estimate = Estimate()
        self.budget = RetryBudget(settings.retry_share, settings.retry_burst)
        self.waiting: Line[Waiter] = Line()
        self._reserve = Reserve(0)
        self._clock = clock
        self._by_id: dict[EndpointId, Endpoint] = {}
        self.contract = contract
        self.model_id = contract.model_id
        self.limits = contract.policy.limits
        # Of `limits` and `dialect` what every request asks for.
        self.total_seconds: float = self.limits.total_seconds
        self.first_token_seconds: float = self.limits.first_token_seconds
        self.adapts_all = False
        self.reroutes = False
        self.endpoints: list[Endpoint] = []
        self._choosers = choosers
        self._caps = caps
        self.chooser: Chooser[Endpoint] = Chooser([], 0, clock.chance)
        self.dialect = Dialect(contract.engine, {}, strict=False)

    def update(self, contract: RouteContract, fleet_secret: str, forget: Callable[[Endpoint], None]) -> None:
        """Take what a new table says of this route; endpoints that are the same keep their state."""
        self.contract = contract
        policy = contract.policy
        self.model_id, self.limits = contract.model_id, policy.limits
        self.total_seconds = policy.limits.total_seconds
        self.first_token_seconds = policy.limits.first_token_seconds
        self.reroutes = bool(policy.splits or policy.fallbacks)
        self.dialect = Dialect(contract.engine, policy.defaults, strict=policy.strict)
        self.adapts_all = self.dialect.always
        self.stats.engine = contract.engine
        self._reserve.share = policy.reserve if policy.concurrency else 0
        kept: dict[EndpointId, Endpoint] = {}
        for told in contract.endpoints:
            identity = _identity(told)
            endpoint = self._by_id.get(identity)
            if endpoint is None:
                try:
                    endpoint = Endpoint(told, fleet_secret)
                except ValueError as error:
                    _log.warning("route.endpoint_unusable", route=self.name, error=str(error))
                    continue
                self.stats.watch(endpoint)
            endpoint.weight = told.weight
            kept[identity] = endpoint
        for identity, endpoint in self._by_id.items():
            if identity not in kept:
                forget(endpoint)
        self._by_id = kept
        self.endpoints = list(kept.values())
        if self._caps is not None:
            for endpoint in self.endpoints:
                self._caps(self, endpoint, policy.concurrency)
        self.chooser = self._choosers.make(policy.balance, self.endpoints, policy.concurrency, self.chooser)
        self.serve_waiting()

    def admit(
        self, tried: Collection[Endpoint] = (), rank: int = NORMAL, affinity: Affinity | None = None
    ) -> Slot | None:
        """A slot now, or None when there is none. Who waits longer goes first; who was admitted once, again.

        `rank`: the request's class of priority. `affinity`: what the route's chooser was told of it.
        """
        if not tried:
            if self.waiting:
                return None
            if self._reserve.share and self._lowest(rank) < rank:
                return None
        endpoint = self.chooser.pick(self._clock.time(), tried, affinity)
        if endpoint is None:
            return None
        return self._slot(endpoint)

    def _lowest(self, rank: int) -> int:
        # The lowest class that may have a slot now; `rank` is the class that asks, and may be none.
        now = self._clock.time()
        if rank >= 0:
            self._reserve.asks(rank, now)
        total = self.contract.policy.concurrency * len(self.endpoints)
        used = sum(each.outstanding + each.elsewhere for each in self.endpoints)
        return self._reserve.lowest(total - used, total, now)

    def wait(self, waiter: Waiter, key: int, rank: int) -> None:
        """Stand in line; it may be its turn at once, if slots are kept free for its class."""
        self.waiting.add(waiter, key, rank)
        if self._reserve.share:
            self.serve_waiting()
        if self._caps is not None:
            for endpoint in self.endpoints:
                if endpoint.cap is not None:
                    endpoint.cap.wanted()

    def slot_of(self, instance: str) -> Slot | None:
        """A slot on one engine, whatever its load: for what only that engine has. None if it is not here."""
        for endpoint in self.endpoints:
            if endpoint.instance == instance:
                return Slot(self, endpoint, probe=False)
        return None

    def serve_waiting(self) -> None:
        """Hand free slots to those that wait: higher classes first, keys in turns."""
        waiting = self.waiting
        while waiting:
            first = waiting.first(self._lowest(-1) if self._reserve.share else LOW)
            if first is None:
                return
            endpoint = self.chooser.pick(self._clock.time(), (), first[0].affinity)
            if endpoint is None:
                return
            waiting.take(first[0])
            first[0].admitted(self._slot(endpoint))

    def look_again(self, waiter: Waiter) -> None:
        """Serve the line if `waiter` is its first: an endpoint that was ejected may be back, unannounced."""
        first = self.waiting.first()
        if first is not None and first[0] is waiter:
            self.serve_waiting()

    def close(self, forget: Callable[[Endpoint], None]) -> None:
        """The route is gone."""
        for endpoint in self.endpoints:
            forget(endpoint)
        self._by_id, self.endpoints = {}, []
        for waiter in self.waiting:
            if self.waiting.remove(waiter):
                waiter.unrouted()

    def _slot(self, endpoint: Endpoint) -> Slot:
        probe = endpoint.failures > 0 and endpoint.half_open(self._clock.time())
        return Slot(self, endpoint, probe=probe)


class Clock:
    """The loop's time, and chance: what deciding takes from outside."""

    __slots__ = ("chance", "time")

    def __init__(self, time: Callable[[], float], chance: random.Random) -> None:
        self.time = time
        self.chance = chance


class Table:
    """All routes. `loaded` says whether a table was ever received."""

    def __init__(
        self,
        settings: UpstreamSettings,
        stats: Stats,
        clock: Clock,
        *,
        fleet_secret: str,
        forget: Callable[[Endpoint], None],
        caps: "CapMaker | None" = None,
    ) -> None:
        """`forget` is told of each endpoint that left. `caps` shares slots with other gateways."""
        self._settings = settings
        self._stats = stats
        self._clock = clock
        self._fleet_secret = fleet_secret
        self._forget = forget
        self._caps = caps
        self.choosers = Choosers(clock.chance, settings.affinity_max_bytes)
        self._routes: dict[str, Route] = {}
        self._names: dict[str, Route] = {}
        self.loaded = False

    def replace(self, table: RoutingTable) -> None:
        """Take a whole table: requests from now on see it, requests under way are left alone."""
        routes: dict[str, Route] = {}
        names: dict[str, Route] = {}
        for contract in table.routes:
            route = self._routes.get(contract.name)
            if route is None:
                stats = self._stats.route(contract.name)
                route = Route(contract, stats, self._settings, self._clock, self.choosers, self._caps)
            routes[contract.name] = route
            route.update(contract, self._fleet_secret, self._forget)
        for route in routes.values():
            for alias in route.contract.aliases:
                names.setdefault(alias, route)
        names.update(routes)
        gone = [route for name, route in self._routes.items() if name not in routes]
        self._routes, self._names = routes, names
        self.loaded = True
        for route in gone:
            route.close(self._forget)
            self._stats.forget_route(route.name)

    def find(self, name: str) -> Route | None:
        """The route of a name or alias."""
        return self._names.get(name)

    def routes(self) -> list[Route]:
        """All routes, in the table's order."""
        return list(self._routes.values())


def _identity(endpoint: EndpointContract) -> EndpointId:
    return (
        endpoint.instance,
        endpoint.url,
        endpoint.key,
        endpoint.sealed_key,
        endpoint.model,
        endpoint.tls_verify,
        endpoint.ca,
    )

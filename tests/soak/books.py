"""The books of a soak: what engines sent, what clients saw and what Postgres counted must agree, id by id."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tests.fakes.ledger import Entry
from tests.soak.users import Seen

_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class Counted:
    """A row of Postgres."""

    request_id: str
    outcome: str
    source: str
    status: int
    prompt: int
    completion: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What does not agree, told with examples, and sums for people."""

    wrong: list[str]
    sums: dict[str, int]


def settle(entries: Iterable[Entry], seen: list[Seen], counted: list[Counted], *, unseen: int) -> Verdict:
    """Compare the three books.

    `unseen` requests were left by their clients before they saw an id. A record that the engine's own usage
    made must hold what the engine said. One that was counted must lie between the events that the client got
    and those that the engine wrote, for what was under way between the two when one of them left is nobody's
    to know; where the engine ended the stream in order, it must be all that it wrote.
    """
    ledger: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        ledger[entry.request_id].append(entry)
    rows = {row.request_id: row for row in counted}
    clients = {each.request_id: each for each in seen}
    accepted = {name for name, each in clients.items() if each.ended != "refused" and each.status != 429}
    wrong: dict[str, list[str]] = defaultdict(list)
    for name, times in Counter(each.request_id for each in seen).items():
        if times > 1 or not name:
            wrong["a request id that clients saw twice"].append(name)
    for name in (accepted | ledger.keys()) - rows.keys():
        wrong["not counted"].append(name)
    for name, each in clients.items():
        if each.ended == "refused" and name in rows:
            wrong["refused, yet counted"].append(name)
    unknown = [row for name, row in rows.items() if name not in ledger and name not in clients]
    if sum(row.outcome == "client_left" for row in unknown) > unseen:
        wrong["more clients that left than left"].append(str(len(unknown)))
    for row in unknown:
        if row.completion or row.outcome != "client_left":
            wrong["counted, but nobody knows it"].append(str(row))
    for name, row in rows.items():
        problem = _of_row(row, ledger.get(name, []), clients.get(name))
        if problem:
            wrong[problem].append(f"{row} {ledger.get(name)} {clients.get(name)}")
    return Verdict(
        [f"{what}: {len(names)}, such as {'; '.join(names[:_SHOWN_MAX])}" for what, names in wrong.items()],
        {
            "requests that clients saw": len(seen),
            "requests that engines saw": len(ledger),
            "requests counted": len(rows),
            "events that clients got": sum(each.tokens for each in seen),
            "events that engines wrote": sum(entry.sent for of in ledger.values() for entry in of),
            "completion tokens counted": sum(row.completion for row in counted),
            "prompt tokens counted": sum(row.prompt for row in counted),
        },
    )


def _of_row(row: Counted, entries: list[Entry], seen: Seen | None) -> str:
    if row.source == "engine":
        if not any((row.prompt, row.completion) == (entry.prompt, entry.said) for entry in entries):
            return "not what the engine said"
        if seen is not None and seen.tokens > row.completion:
            return "less than the client got"
        return ""
    sent = max((entry.sent for entry in entries), default=0)
    if row.completion > sent + 1:  # the finish event may count as one
        return "more than the engine wrote"
    if seen is not None and row.completion < seen.tokens:
        return "less than the client got"
    if seen is not None and seen.kind == "breaks" and seen.ended == "told" and row.completion != seen.tokens:
        return "a broken stream is not counted to its last event"
    return ""

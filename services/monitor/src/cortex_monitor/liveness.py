"""Judge nodes: heart-beat ages and what gateways saw, in; live, silent, lost or frozen, out. Pure."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from cortex_shared.contracts.verdicts import Verdict

from cortex_monitor.settings import LivenessSettings

NEVER = float("-inf")

NO_HEARTBEAT = "no heart-beat"
NOT_HEARD_YET = "not heard since the monitor began"
ANSWERS = "its engines answer gateways"
ACCEPTS = "its engines accept connections"
REFUSES = "gateways cannot connect to its engines"
TOGETHER = "most nodes fell silent together"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known of one node. Times are monotonic seconds; NEVER where it has not happened.

    `heard_at`: the last heart-beat. Before the first one (`heard` False): when it became known.
    `patient_from`: silence before this moment does not count (the monitor itself was deaf, or a freeze
    ended). `answered_at`, `refused_at`: the last success and failed connection that gateways reported.
    `reached_at`: when one of its engines last accepted a connection of the monitor's own.
    """

    node: str
    heard: bool
    heard_at: float
    patient_from: float
    heartbeat_seconds: float
    verdict: Verdict
    answered_at: float = NEVER
    refused_at: float = NEVER
    reached_at: float = NEVER


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and why."""

    verdict: Verdict
    evidence: tuple[str, ...] = ()


def judge(nodes: Iterable[NodeFacts], rules: LivenessSettings, now: float) -> dict[str, Judgement]:
    """A judgement for each node. Call it only while the monitor itself can hear."""
    nodes = list(nodes)
    quiet = [node for node in nodes if _is_quiet(node, rules, now)]
    frozen = _frozen(nodes, quiet, rules)
    judgements = {node.node: Judgement("live") for node in nodes}
    for node in quiet:
        judgements[node.node] = _judge_quiet(node, rules, now, frozen=node.node in frozen)
    return judgements


def _is_quiet(node: NodeFacts, rules: LivenessSettings, now: float) -> bool:
    limit = rules.silent_intervals * node.heartbeat_seconds
    if node.heard and now - node.heard_at <= limit:
        return False
    # Patience keeps a live node live; it does not make a silent one live again: only being heard does.
    return node.verdict != "live" or now - max(node.heard_at, node.patient_from) > limit


def _frozen(nodes: list[NodeFacts], quiet: list[NodeFacts], rules: LivenessSettings) -> set[str]:
    """The nodes that fell silent together, if they are many; else none.

    Nodes lost earlier do not count, nor do those that were never heard: a monitor that begins with an
    empty NATS has heard nobody, and for them there is `adopt_seconds`.
    """
    present = [node for node in nodes if node.verdict != "lost"]
    fell = sorted(
        (node.heard_at, node.node)
        for node in quiet
        if node.verdict == "frozen" or (node.heard and node.verdict != "lost")
    )
    best: list[tuple[float, str]] = []
    for first, (began, _) in enumerate(fell):
        after = bisect_right(fell, began + rules.freeze_window_seconds, key=lambda fallen: fallen[0])
        if after - first > len(best):
            best = fell[first:after]
    if len(best) < rules.freeze_nodes_min or len(best) <= rules.freeze_ratio * len(present):
        return set()
    return {node for _, node in best}


def _judge_quiet(node: NodeFacts, rules: LivenessSettings, now: float, *, frozen: bool) -> Judgement:
    evidence = [NO_HEARTBEAT if node.heard else NOT_HEARD_YET]
    answers = now - node.answered_at <= rules.answer_seconds
    if answers:
        evidence.append(ANSWERS)
    elif now - node.refused_at <= rules.answer_seconds:
        evidence.append(REFUSES)
    # Without traffic no gateway can vouch: an agent that is away does not take its engines with it.
    accepts = now - node.reached_at <= rules.answer_seconds
    if accepts:
        evidence.append(ACCEPTS)
    if frozen:
        return Judgement("frozen", (*evidence, TOGETHER))
    if answers or accepts:
        return Judgement("silent", tuple(evidence))
    limit = rules.lost_seconds if node.heard else rules.adopt_seconds
    if node.verdict == "lost":
        return Judgement("lost", tuple(evidence))
    # A node leaving a freeze gets its whole patience anew: the caller sets patient_from for the next look.
    silent_for = now - max(node.heard_at, node.patient_from)
    if silent_for <= limit or node.verdict == "frozen":
        return Judgement("silent", tuple(evidence))
    return Judgement("lost", tuple(evidence))

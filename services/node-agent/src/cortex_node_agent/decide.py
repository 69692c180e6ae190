"""Decisions of the agent, as pure functions: what commands mean, and what an instance needs next."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cortex_shared.contracts.commands import Manifest, Start, Stop

from cortex_node_agent.store import Desired, FleetMemory

# Generations of removed instances are remembered, so that an old Start does not bring one back.
REMOVED_MAX = 512


@dataclass(frozen=True, slots=True)
class Sequenced[C]:
    """A command with its place in the stream: higher is newer, while the server holds both."""

    command: C
    sequence: int


@dataclass(frozen=True)
class Heard:
    """What the command stream holds for this node now. It may be empty, which means nothing at all."""

    commands: Mapping[str, Sequenced[Start | Stop]] = field(
        default_factory=dict[str, Sequenced[Start | Stop]]
    )
    manifest: Sequenced[Manifest] | None = None


@dataclass(frozen=True)
class Outcome:
    """What changes: new or changed wishes by instance, and what to remember of fleets (None: as before)."""

    desired: dict[str, Desired]
    memory: FleetMemory | None = None


def listen(heard: Heard, held: Mapping[str, Desired], memory: FleetMemory) -> Outcome:
    """Apply what was heard to what is held. Doing it again changes nothing.

    A Start or Stop counts if its generation is newer. A manifest counts if its epoch is not older than the
    newest seen of its fleet; it removes what it does not list, except what was started after it was sent.
    """
    changed: dict[str, Desired] = {}
    manifest = heard.manifest
    if manifest is not None and manifest.command.epoch < memory.epochs.get(manifest.command.fleet, 0):
        manifest = None
    for instance, command in heard.commands.items():
        wish = _command(command, held.get(instance), manifest, memory)
        if wish is not None:
            changed[instance] = wish
    if manifest is None:
        return Outcome(changed)
    fleet, epoch = manifest.command.fleet, manifest.command.epoch
    for instance, desired in ({**held, **changed}).items():
        if desired.wish != "remove" and _excluded(instance, fleet, desired, heard, manifest):
            changed[instance] = desired.model_copy(
                update={"wish": "remove", "reason": "no longer in the manifest"}
            )
    if memory.epochs.get(fleet) == epoch:
        return Outcome(changed)
    return Outcome(changed, memory.model_copy(update={"epochs": {**memory.epochs, fleet: epoch}}))


def _command(
    heard: Sequenced[Start | Stop],
    held: Desired | None,
    manifest: Sequenced[Manifest] | None,
    memory: FleetMemory,
) -> Desired | None:
    command = heard.command
    if isinstance(command, Stop):
        if held is None or held.start.fleet != command.fleet or command.generation <= held.generation:
            return None
        update = {
            "generation": command.generation,
            "wish": "remove" if held.wish == "remove" else "stop",
            "reason": command.reason,
            "drain_seconds": command.drain_seconds,
        }
        return held.model_copy(update=update)
    if held is not None:
        if held.start.fleet != command.fleet or command.generation <= held.generation:
            return None
    elif _superseded(heard.sequence, command, manifest) or _outlived(command, manifest, memory):
        return None
    return Desired(start=command, generation=command.generation, port=held.port if held else None)


def _superseded(sequence: int, command: Start, manifest: Sequenced[Manifest] | None) -> bool:
    """Whether a manifest of its fleet that was sent after this Start does without the instance."""
    return (
        manifest is not None
        and manifest.command.fleet == command.fleet
        and manifest.sequence > sequence
        and all(entry.instance != command.instance for entry in manifest.command.instances)
    )


def _outlived(command: Start, manifest: Sequenced[Manifest] | None, memory: FleetMemory) -> bool:
    """Whether the instance was removed at this generation or a later one.

    Unless the manifest wants this very generation: the API's database may have been put back.
    """
    listed = manifest is not None and any(
        entry.instance == command.instance and entry.generation == command.generation
        for entry in manifest.command.instances
    )
    return not listed and command.generation <= memory.removed.get(command.instance, 0)


def _excluded(
    instance: str, fleet: str, desired: Desired, heard: Heard, manifest: Sequenced[Manifest]
) -> bool:
    if desired.start.fleet != fleet:
        return False
    if any(entry.instance == instance for entry in manifest.command.instances):
        return False
    newest = heard.commands.get(instance)
    started_since = (
        newest is not None
        and isinstance(newest.command, Start)
        and newest.sequence > manifest.sequence
        and newest.command.generation == desired.generation
    )
    return not started_since


def removed(memory: FleetMemory, instance: str, generation: int) -> FleetMemory:
    """Memory with one more removed instance; the oldest are forgotten beyond REMOVED_MAX."""
    kept = {name: old for name, old in memory.removed.items() if name != instance}
    kept[instance] = generation
    return memory.model_copy(update={"removed": dict(list(kept.items())[-REMOVED_MAX:])})


@dataclass(frozen=True, slots=True)
class Failure:
    """The last try of a generation that failed, and when the next one is due (monotonic seconds)."""

    generation: int
    next_try: float


@dataclass(frozen=True, slots=True)
class Launch:
    """Prepare and start it."""


@dataclass(frozen=True, slots=True)
class Watch:
    """It runs as wanted: see that it does."""


@dataclass(frozen=True, slots=True)
class End:
    """It runs and should not, or not so: drain it, then stop it."""


@dataclass(frozen=True, slots=True)
class Pause:
    """It failed: wait until then (monotonic seconds)."""

    until: float


@dataclass(frozen=True, slots=True)
class Rest:
    """It is stopped, as wanted."""


@dataclass(frozen=True, slots=True)
class Forget:
    """It is stopped and no longer wanted here."""


type Action = Launch | Watch | End | Pause | Rest | Forget


def next_action(desired: Desired, running_plan: str | None, failure: Failure | None, now: float) -> Action:
    """What an instance needs. `running_plan`: hash of the plan that runs, None when nothing runs.

    An engine whose plan is still the wanted one is kept, whatever its generation: a restored database
    numbers anew what runs already.
    """
    if desired.wish != "run":
        if running_plan is not None:
            return End()
        return Forget() if desired.wish == "remove" else Rest()
    if running_plan is not None:
        return Watch() if running_plan == desired.start.plan_hash else End()
    if failure is not None and failure.generation == desired.generation and failure.next_try > now:
        return Pause(failure.next_try)
    return Launch()


def backoff_seconds(failures: int, seconds_max: float) -> float:
    """Wait after so many failures in a row: the first restart is immediate, then 1 s, doubling."""
    return 0.2 if failures <= 1 else min(seconds_max, 2.0 ** min(failures - 2, 16))

"""Settings to command line arguments where they are one-to-one, and the guard on further arguments."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from cortex_shared.errors import InvalidInput

from cortex_api.engines.base import EngineSettings, literal


@dataclass(frozen=True, slots=True)
class Flag:
    """A setting that is one flag. `names`: as emitted first, then the engine's other spellings.

    A bool setting emits `names[0]` for true and `off` (or nothing, if None) for false; a list is joined by
    commas, or, if `spread`, follows as arguments of its own.
    """

    setting: str
    names: tuple[str, ...]
    off: str | None = None
    spread: bool = False


def flag(setting: str, names: str, *, off: str | None = None, spread: bool = False) -> Flag:
    """A Flag with its names separated by spaces."""
    return Flag(setting, tuple(names.split()), off, spread)


def render(flags: Iterable[Flag], settings: EngineSettings) -> list[str]:
    """argv of the settings that are set, in the order of `flags`."""
    argv: list[str] = []
    for entry in flags:
        value: object = getattr(settings, entry.setting)
        if value is None or value == []:
            continue
        if isinstance(value, bool):
            if value:
                argv.append(entry.names[0])
            elif entry.off is not None:
                argv.append(entry.off)
        elif isinstance(value, list):
            items = [shown(item) for item in cast("list[object]", value)]
            argv += [entry.names[0], *(items if entry.spread else [",".join(items)])]
        else:
            argv += [entry.names[0], shown(value)]
    return argv


def shown(value: object) -> str:
    """A value as an argument: whole numbers without a fraction, braces doubled."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return literal(str(value))


def owners(flags: Iterable[Flag], more: Mapping[str, str]) -> dict[str, str]:
    """Which setting owns each spelling of a flag; `more`: setting → spellings separated by spaces."""
    found = {name: entry.setting for entry in flags for name in entry.names}
    found |= {entry.off: entry.setting for entry in flags if entry.off is not None}
    return found | {name: setting for setting, names in more.items() for name in names.split()}


def check_extra(
    extra: Sequence[str],
    owned: Mapping[str, str],
    refused: Mapping[str, str],
    *,
    engine: str,
    watched: Collection[str] | None = None,
) -> None:
    """Raise InvalidInput when a further argument is one that Cortex sets, or one that it must not have.

    `owned`: spelling → setting. `refused`: spelling → reason and what to do, as one clause. `watched`: for an
    engine that takes shortened flags, further spellings that mean something; then flags are written in full.
    """
    for position, argument in enumerate(extra):
        if "\0" in argument:
            raise _refused("an argument holds a NUL character", "remove it", position)
        if position == 0 and not argument.startswith("-"):
            raise _refused(
                f"{argument!r} comes before any flag", "write each flag, then its value, as single items", 0
            )
        if not argument.startswith("-"):
            continue
        name = spelled(argument)
        if name in refused:
            raise _refused(f"{name}: {refused[name]}", f"leave {name} out of extra_args", position)
        if name in owned:
            setting = owned[name]
            raise _refused(
                f"{name} is set by Cortex from {setting}", f"use {setting} instead of extra_args", position
            )
        meant = None if watched is None else _meant(name, {*owned, *refused, *watched})
        if meant is not None:
            raise _refused(
                f"{argument!r} is short for {meant}", f"write {meant}, if it may be given at all", position
            )
        if name in ("--help", "-h", "--version"):
            raise _refused(f"{name} would make {engine} print and exit", "leave it out", position)


def spelled(argument: str) -> str:
    """The name of a flag as tables spell it: without `=value` and `.key` (vLLM's), dashes for underscores."""
    name = argument.partition("=")[0]
    return name.partition(".")[0].replace("_", "-") if name.startswith("--") else name


def _meant(name: str, known: Collection[str]) -> str | None:
    """Which known flag argparse takes a name for that is none: the beginning of it, or `-nVALUE`."""
    if name in known:
        return None
    for flag_ in sorted(known):
        if len(name) > 2 and flag_.startswith(name):
            return flag_
        if len(flag_) == 2 and name.startswith(flag_):
            return flag_
    return None


def _refused(message: str, remedy: str, position: int) -> InvalidInput:
    return InvalidInput(message, code="settings.extra_args", field=f"extra_args.{position}", remedy=remedy)

"""Turns llama-server's argv into the wheel's parameters, or into one sentence that says what is wrong."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from cortex_llamacpp.flags import FLAGS, Choice, Flag, Number, Special, Switch, Text
from cortex_llamacpp.refused import REFUSED

__all__ = ["BadArgument", "fill"]

# The wheel has neither type stubs nor a protocol of its own: its module and its parameters are Any here.
type Wheel = Any
type Params = Any

_GPU_LAYERS = {"auto": -1, "all": -2}
_KEY_FILE_BYTES_MAX = 1024 * 1024
_TEMPLATE_BYTES_MAX = 16 * 1024 * 1024


class BadArgument(ValueError):
    """An argument that cannot be used: its flag, the reason, and what to do instead."""

    def __init__(self, flag: str, reason: str) -> None:
        super().__init__(f"{flag}: {reason}")
        self.flag = flag


def fill(params: Params, argv: Sequence[str], wheel: Wheel) -> list[str]:
    """Set `params`, a new CommonParams of the module `wheel`, from llama-server's argv; return warnings.

    Defaults are llama-server's. A repeated flag counts once, the last time. Raises BadArgument for a flag
    that is unknown, was removed or cannot be expressed, and for a value that does not fit.
    """
    params.n_parallel = -1
    given: dict[str, tuple[str, Flag, str]] = {}
    warnings: list[str] = []
    for name, flag, value in _pairs(argv):
        key = " ".join(flag.targets) or flag.names[0]
        if key in given and not isinstance(flag.value, Switch):
            warnings.append(f"{name}: given more than once; the last value counts")
        # Taken out first: the order of the last mentions is the order in which flags are applied.
        given.pop(key, None)
        given[key] = name, flag, value
    for name, flag, value in given.values():
        try:
            _set(params, name, flag, value, wheel)
        except BadArgument:
            raise
        except (ValueError, TypeError, OverflowError) as error:
            # The wheel's own check, of a device's name for instance.
            raise BadArgument(name, f"the value does not fit ({error}); correct it") from error
    _follow_defaults(params, wheel)
    if not params.model.path:
        raise BadArgument("--model", "no model is given; pass the path of a GGUF file with --model")
    return [*warnings, *_without_gpu(given, wheel)]


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, Flag, str]]:
    words = iter(argv)
    for word in words:
        # llama-server takes --ctx_size for --ctx-size.
        name = word.replace("_", "-") if word.startswith("--") else word
        if name in REFUSED:
            raise BadArgument(name, REFUSED[name])
        flag = FLAGS.get(name)
        if flag is None:
            shown = name.partition("=")[0] if name.startswith("-") else "an argument that is no flag"
            raise BadArgument(shown, f"unknown; {_unknown_remedy(name)}")
        value = ""
        if not isinstance(flag.value, Switch) and getattr(flag.value, "takes_value", True):
            value = next(words, "")
            if not value:
                raise BadArgument(name, "a value is missing; write it as the next argument")
        yield name, flag, value


def _unknown_remedy(name: str) -> str:
    if name.partition("=")[0] in FLAGS:
        return "write the value as an argument of its own, without '='"
    return "check the spelling (--help lists the flags) or leave it out"


def _set(params: Params, name: str, flag: Flag, value: str, wheel: Wheel) -> None:
    match flag.value:
        case Special(function):
            _SPECIAL[function](params, name, value, wheel)
        case Switch(stored):
            _store(params, flag, stored)
        case Number() as number:
            _store(params, flag, _number(name, value, number))
        case Text(many):
            _store(params, flag, _items(name, value) if many else value)
        case Choice(enumeration, members):
            if value not in members:
                raise BadArgument(name, f"{value!r} is not a choice; use one of {', '.join(members)}")
            _store(params, flag, getattr(getattr(wheel, enumeration), members[value]))
    if flag.sampling:
        bits = wheel.common_params_sampling_config
        params.sampling.user_sampling_config |= int(
            getattr(bits, f"COMMON_PARAMS_SAMPLING_CONFIG_{flag.sampling}")
        )


def _store(params: Params, flag: Flag, value: object) -> None:
    for target in flag.targets:
        *parents, attribute = target.split(".")
        owner = params
        for parent in parents:
            owner = getattr(owner, parent)
        if isinstance(getattr(owner, attribute), set):
            value = set(cast("list[str]", value))
        setattr(owner, attribute, value)


def _number(name: str, text: str, rule: Number) -> int | float:
    try:
        value = float(text) if rule.real else int(text)
    except ValueError:
        kind = "number" if rule.real else "whole number"
        raise BadArgument(name, f"{text!r} is not a {kind}; write one") from None
    if not math.isfinite(value) or not rule.minimum <= value <= rule.maximum:
        low, high = (f"{bound:g}" if rule.real else str(int(bound)) for bound in (rule.minimum, rule.maximum))
        raise BadArgument(name, f"{text} is out of range; use {low} to {high}")
    return value * rule.times


def _items(name: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise BadArgument(name, f"{text!r} has an empty item; write a,b,c")
    return items


def _read(name: str, path: str, bytes_max: int) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(bytes_max + 1)
        text = data.decode()
    except OSError as error:
        raise BadArgument(name, f"cannot read {path!r} ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise BadArgument(name, f"{path!r} is not UTF-8 text; convert it") from error
    if len(data) > bytes_max:
        raise BadArgument(name, f"{path!r} is larger than {bytes_max} bytes; use a smaller file")
    return text


# Flags that need code. Each function: (params, flag as written, value, wheel).


def _threads(path: str) -> Callable[[Params, str, str, Wheel], None]:
    def apply(params: Params, name: str, value: str, _wheel: Wheel) -> None:
        owner = params
        for part in path.split("."):
            owner = getattr(owner, part)
        owner.n_threads = _number(name, value, Number(minimum=-1, maximum=512))

    return apply


def _context(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    params.n_ctx = _number(name, value, Number(minimum=0))
    if params.n_ctx == 0:
        # As in llama-server: who asks for the model's whole context does not want --fit to shrink it.
        params.fit_params_min_ctx = -1


def _parallel(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    slots = _number(name, value, Number(minimum=-1, maximum=256))
    if slots == 0:
        raise BadArgument(name, "0 is out of range; use 1 or more, or -1 for automatic")
    params.n_parallel = slots


def _rope_scale(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    scale = _number(name, value, Number(0, 1e38, real=True))
    if scale == 0:
        raise BadArgument(name, "0 is out of range; use a number above 0")
    params.rope_freq_scale = 1.0 / scale


def _layers(name: str, value: str) -> int:
    if value in _GPU_LAYERS:
        return _GPU_LAYERS[value]
    try:
        layers = int(value)
    except ValueError:
        raise BadArgument(name, f"{value!r} is not a choice; use a number, auto or all") from None
    if not -1 <= layers < 2**31:
        raise BadArgument(name, f"{value} is out of range; use 0 or more, auto or all")
    return layers


def _gpu_layers(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    params.n_gpu_layers = _layers(name, value)


def _gpu_layers_draft(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    params.speculative.draft.n_gpu_layers = _layers(name, value)


def _tensor_split(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    share = Number(0, 1e9, real=True)
    shares = [float(_number(name, part, share)) for part in _items(name, value.replace("/", ","))]
    slots = len(params.tensor_split)
    if len(shares) > slots:
        raise BadArgument(name, f"{len(shares)} shares for at most {slots} devices; write fewer")
    params.tensor_split = shares + [0.0] * (slots - len(shares))


def _override_tensor(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    try:
        params.tensor_buft_overrides = value
    except ValueError as error:
        raise BadArgument(name, f"{error} in {value!r}; write PATTERN=CPU,...") from error


def _fit(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    params.fit_params = _on_off(name, value)


def _on_off(name: str, value: str) -> bool:
    if value not in ("on", "off"):
        raise BadArgument(name, f"{value!r} is not a choice; use on or off")
    return value == "on"


def _fit_target(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    margin = Number(minimum=0, times=1024 * 1024)
    targets = [int(_number(name, part, margin)) for part in _items(name, value)]
    devices = len(params.fit_params_target)
    if len(targets) > devices:
        raise BadArgument(name, f"{len(targets)} margins for at most {devices} devices; write fewer")
    # One value is for every device; devices not named keep the default.
    filled = targets * devices if len(targets) == 1 else targets + params.fit_params_target[len(targets) :]
    params.fit_params_target = filled


def _sleep_idle(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    seconds = _number(name, value, Number(minimum=-1))
    if seconds == 0:
        raise BadArgument(name, "0 is out of range; use seconds above 0, or -1 for never")
    params.sleep_idle_seconds = seconds


def _lora(params: Params, name: str, value: str, wheel: Wheel) -> None:
    params.lora_adapters = [wheel.CommonAdapterLoraInfo(path, 1.0) for path in _items(name, value)]


def _lora_scaled(params: Params, name: str, value: str, wheel: Wheel) -> None:
    adapters: list[object] = []
    for item in _items(name, value):
        path, colon, scale = item.rpartition(":")
        if not colon:
            raise BadArgument(name, f"{item!r} has no scale; write FILE:SCALE")
        adapters.append(wheel.CommonAdapterLoraInfo(path, _number(name, scale, Number(-1e9, 1e9, real=True))))
    params.lora_adapters = adapters


def _draft_model(params: Params, _name: str, value: str, _wheel: Wheel) -> None:
    params.speculative.draft.mparams.path = value


def _speculative_types(params: Params, name: str, value: str, wheel: Wheel) -> None:
    prefix = "COMMON_SPECULATIVE_TYPE_"
    known = {
        member.removeprefix(prefix).lower().replace("_", "-"): entry
        for member, entry in wheel.common_speculative_type.__members__.items()
        if member != f"{prefix}COUNT"
    }
    chosen = _items(name, value)
    for item in chosen:
        if item not in known:
            raise BadArgument(name, f"{item!r} is not a choice; use some of {', '.join(known)}")
    params.speculative.types = [known[item] for item in chosen]


def _api_key(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    keys = [key.strip() for key in value.split(",") if key.strip()]
    if not keys:
        # The value itself is never shown: it may be most of a secret.
        raise BadArgument(name, "no key in the value; pass one, better by the variable LLAMA_API_KEY")
    params.api_keys = [*params.api_keys, *keys]


def _api_key_file(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    lines = [line.strip() for line in _read(name, value, _KEY_FILE_BYTES_MAX).splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        # An empty list of keys would mean a server that is open to everyone.
        raise BadArgument(name, f"{value!r} has no key; write one on each line")
    params.api_keys = [*params.api_keys, *keys]


def _cors_origins(params: Params, _name: str, value: str, _wheel: Wheel) -> None:
    params.cors_origins = value
    params.cors_origins_explicit = True


def _slot_save_path(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    if not Path(value).is_dir():
        raise BadArgument(name, f"{value!r} is not a folder; make it first")
    params.slot_save_path = value if value.endswith(os.sep) else value + os.sep


def _verbose(params: Params, _name: str, _value: str, _wheel: Wheel) -> None:
    params.verbosity = 2**31 - 1


def _rerank(params: Params, _name: str, _value: str, wheel: Wheel) -> None:
    params.embedding = True
    params.pooling_type = wheel.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


def _chat_template_file(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    params.chat_template = _read(name, value, _TEMPLATE_BYTES_MAX)


def _chat_template_kwargs(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadArgument(name, 'the value is not a JSON object; write {"name": value}')
    # The wheel keeps each value as JSON text, and takes bytes or str for it.
    params.default_template_kwargs = {str(key): json.dumps(item) for key, item in document.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] # JSON


def _reasoning(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    states = {"auto": -1, "off": 0, "on": 1}
    if value not in states:
        raise BadArgument(name, f"{value!r} is not a choice; use on, off or auto")
    params.enable_reasoning = states[value]
    if value != "auto":
        enabled = "true" if value == "on" else "false"
        params.default_template_kwargs = {**params.default_template_kwargs, "enable_thinking": enabled}


def _seed(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    # -1, "random", is the largest unsigned number of 32 bits.
    params.sampling.seed = int(_number(name, value, Number(minimum=-1, maximum=2**32 - 1))) % 2**32


def _samplers(params: Params, name: str, value: str, _wheel: Wheel) -> None:
    known = params.sampling.samplers.split(";")
    for sampler in value.split(";"):
        if sampler not in known:
            raise BadArgument(name, f"{sampler!r} is not a choice; use some of {';'.join(known)}")
    params.sampling.samplers = value


_SPECIAL: dict[str, Callable[[Params, str, str, Wheel], None]] = {
    "api_key": _api_key,
    "api_key_file": _api_key_file,
    "chat_template_file": _chat_template_file,
    "chat_template_kwargs": _chat_template_kwargs,
    "context": _context,
    "cors_origins": _cors_origins,
    "draft_model": _draft_model,
    "fit": _fit,
    "fit_target": _fit_target,
    "gpu_layers": _gpu_layers,
    "gpu_layers_draft": _gpu_layers_draft,
    "lora": _lora,
    "lora_scaled": _lora_scaled,
    "override_tensor": _override_tensor,
    "parallel": _parallel,
    "reasoning": _reasoning,
    "rerank": _rerank,
    "rope_scale": _rope_scale,
    "samplers": _samplers,
    "seed": _seed,
    "sleep_idle": _sleep_idle,
    "slot_save_path": _slot_save_path,
    "speculative_types": _speculative_types,
    "tensor_split": _tensor_split,
    "threads": _threads("cpuparams"),
    "threads_batch": _threads("cpuparams_batch"),
    "threads_batch_draft": _threads("speculative.draft.cpuparams_batch"),
    "threads_draft": _threads("speculative.draft.cpuparams"),
    "verbose": _verbose,
}


def _follow_defaults(params: Params, wheel: Wheel) -> None:
    """What follows from other settings where it was not given: threads, and the use of a draft model."""
    draft = params.speculative.draft
    if params.cpuparams.n_threads <= 0:
        params.cpuparams.n_threads = _physical_cores()
    for follower, leader in (
        (params.cpuparams_batch, params.cpuparams),
        (draft.cpuparams, params.cpuparams),
        (draft.cpuparams_batch, params.cpuparams_batch),
    ):
        if follower.n_threads <= 0:
            follower.n_threads = leader.n_threads
    types = wheel.common_speculative_type
    if draft.mparams.path and params.speculative.types == [types.COMMON_SPECULATIVE_TYPE_NONE]:
        # A draft model without a type would be loaded and never asked.
        params.speculative.types = [types.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]


def _physical_cores(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that this process may use, each counted once whatever its hardware threads."""
    cores: set[str] = set()
    for cpu in os.sched_getaffinity(0):
        try:
            cores.add((root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def _without_gpu(given: dict[str, tuple[str, Flag, str]], wheel: Wheel) -> list[str]:
    """llama-server warns rather than refuses where GPU flags meet a build or a host without GPUs."""
    backends = {part.partition(":")[0].strip() for part in wheel.get_system_info().split("|") if ":" in part}
    if backends != {"CPU"}:
        return []
    gpu_names = {"-ngl", "-ts", "-mg", "-sm"}
    return [
        f"{name}: this build of the xllamacpp wheel has no GPU support; the flag has no effect"
        for name, flag, value in given.values()
        if flag.names[0] in gpu_names and value not in ("0", "auto")
    ]

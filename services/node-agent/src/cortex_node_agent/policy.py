"""What a plan may ask of this host: the host's word, not the API's. And filling a plan's placeholders."""

import re
from collections.abc import Mapping

from cortex_shared.contracts.plan import Plan
from cortex_shared.errors import Forbidden, InvalidInput

# What chooses the code that an executable loads, and what the agent itself sets.
_HOST_ONLY = frozenset(
    {
        *("PATH", "HOME", "CUDA_VISIBLE_DEVICES", "BASH_ENV", "ENV", "GCONV_PATH"),
        *("OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES"),
        *("CC", "CXX", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"),
    }
)
_HOST_ONLY_PREFIXES = ("LD_", "CORTEX_", "PYTHON", "GLIBC_")
_HARMLESS = frozenset({"PYTHONUNBUFFERED", "PYTHONHASHSEED", "PYTHONMALLOC", "PYTHONWARNINGS"})
# An engine may take the beginning of a flag for the flag.
_TRUST_FLAGS = ("--trust", "-trust")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z0-9_]+)\}")


def check(plan: Plan, *, remote_code: bool) -> None:
    """Raises Forbidden (`remote_code`, `env_not_allowed`) or InvalidInput (`bad_plan`)."""
    # The plan's own word is not enough: what counts is what the engine will be told.
    trusts = plan.remote_code or any(word.lower().startswith(_TRUST_FLAGS) for word in plan.argv)
    if trusts and not remote_code:
        raise Forbidden(
            "the model wants to run code that comes with its files, which this host does not allow",
            code="remote_code",
            remedy="turn the model's trust_remote_code off, or set remote_code on this host's agent",
        )
    for name in (*plan.env, *plan.secrets):
        if _ENV_NAME.fullmatch(name) is None:
            raise InvalidInput(
                f"{name!r} is no name of an environment variable", code="bad_plan", field="env"
            )
        if name in _HOST_ONLY or (name.startswith(_HOST_ONLY_PREFIXES) and name not in _HARMLESS):
            raise Forbidden(
                f"the environment variable {name} is this host's to set",
                code="env_not_allowed",
                field="env",
                remedy="remove it from the model's environment, or set it in the agent's engine_env",
            )
    for text in (*plan.argv, *plan.env.values()):
        if "\0" in text:
            raise InvalidInput("a zero byte in argv or environment", code="bad_plan")


def fill(argv: list[str], places: Mapping[str, str]) -> list[str]:
    """argv with `{name}` replaced and doubled braces made single; InvalidInput for an unknown name."""

    def place(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group()[0]
        if name not in places:
            raise InvalidInput(
                f"the plan has a placeholder {{{name}}} that means nothing here",
                code="bad_plan",
                remedy="run an agent of the API's version",
            )
        return places[name]

    return [_PLACE.sub(place, word) for word in argv]


def environment(
    plan: Plan, *, inherited: Mapping[str, str], host: Mapping[str, str], secrets: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of an engine. GPUs that the plan does not name are hidden from it.

    Raises InvalidInput (`bad_secret`).
    """
    for name, value in secrets.items():
        if "\0" in value:
            raise InvalidInput(
                f"the secret in {name} holds a zero byte",
                code="bad_secret",
                remedy="set it on the model again",
            )
    gpus = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(plan.gpus)}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", **inherited, **host, **gpus, **plan.env, **secrets}

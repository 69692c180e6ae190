"""The environment variables that the server reads or sets: the API key must not stand in argv."""

import os

__all__ = ["api_keys", "ignored_variables", "set_unless_given"]


def api_keys() -> list[str]:
    """Keys in LLAMA_API_KEY, separated by commas as llama-server takes them; none where it is not set."""
    value = os.environ.get("LLAMA_API_KEY", "")  # noqa: TID251 # the one settings module; pydantic costs 20 MiB
    return [key.strip() for key in value.split(",") if key.strip()]


def ignored_variables() -> list[str]:
    """Variables that llama-server would take for flags and this program does not; names only."""
    return sorted(name for name in os.environ if name.startswith("LLAMA_ARG_"))  # noqa: TID251 # as above


def set_unless_given(name: str, value: str) -> None:
    """Set a variable that a library of this process reads while it starts, unless the caller has set it."""
    os.environ.setdefault(name, value)  # noqa: TID251 # as above

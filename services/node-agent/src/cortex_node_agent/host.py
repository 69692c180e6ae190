"""Host: everything that instances share on one host, passed on as one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from cortex_shared.contracts.commands import Start

from cortex_node_agent.download import Downloader
from cortex_node_agent.files import ModelRoots
from cortex_node_agent.ports import Ports
from cortex_node_agent.programs import Programs
from cortex_node_agent.runtime import Runtime
from cortex_node_agent.secrets import SecretsClient
from cortex_node_agent.settings import AgentSettings
from cortex_node_agent.store import Desired, StateFolder


class Tell(Protocol):
    """Say that something happened to an instance; never blocks, never fails."""

    def __call__(
        self,
        kind: str,
        message: str,
        start: Start,
        *,
        level: Literal["info", "warning", "error"] = "info",
        data: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> None: ...


@dataclass(frozen=True)
class Host:
    """`changed` says that observed state changed; `save` keeps a wish on disk, soon, off the event loop."""

    node: str
    address: str
    settings: AgentSettings
    state: StateFolder
    runtime: Runtime
    roots: ModelRoots
    downloader: Downloader
    programs: Programs
    ports: Ports
    secrets: SecretsClient
    inherited_env: Mapping[str, str]
    changed: Callable[[], None]
    save: Callable[[Desired], None]
    tell: Tell

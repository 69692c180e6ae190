"""Session: which system a command talks to, found once from options, environment and access file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cortex_shared.errors import Unavailable

from cortex_cli.access import Access, read_access
from cortex_cli.embedded.layout import Home
from cortex_cli.settings import CliSettings

if TYPE_CHECKING:
    import typer

    from cortex_cli.client import Api


@dataclass(frozen=True, slots=True)
class Session:
    """Options win over variables, variables over the home's access file."""

    settings: CliSettings
    home_option: Path | None = None
    api_url_option: str | None = None
    token_option: str | None = None

    @classmethod
    def of(cls, context: "typer.Context") -> "Session":
        """The session that the command line made."""
        found = context.obj
        assert isinstance(found, cls)
        return found

    def home(self, option: Path | None = None) -> Home:
        """The home that is meant; `option` is the command's own --home."""
        path = option or self.home_option or self.settings.home
        return Home(path, runtime_folder=self.settings.runtime_folder)

    def access(self) -> Access:
        """What the home's access file says; empty when there is none."""
        return read_access(self.home().access_file)

    def is_local(self) -> bool:
        """Whether the API is that of this home: then its folders can be used, too."""
        address = self.api_url_option or self.settings.api_url
        return address is None or address.rstrip("/") == self.access().api_url

    def api(self) -> "Api":
        """A client. Raises Unavailable when nothing says where the API is."""
        from cortex_cli.client import Api

        access = self.access()
        url = self.api_url_option or self.settings.api_url or access.api_url
        if url is None:
            raise Unavailable(
                f"Cortex is not running here: {self.home().access_file} does not exist.",
                code="cli.not_running",
                remedy="Start it with `cortex up`, or name another system with --api-url and --token.",
            )
        # The home's admin token is for the home's own API only.
        token = self.token_option or self.settings.token or (access.admin_token if self.is_local() else None)
        return Api(url, token)

    def gateway(self) -> tuple[str, str]:
        """Address and key for requests to models. Raises Unavailable when one is not known."""
        access = self.access()
        url = self.settings.gateway_url or (access.gateway_url if self.is_local() else None)
        key = self.settings.api_key or (access.api_key if self.is_local() else None)
        if url is None or key is None:
            raise Unavailable(
                "The gateway's address or an API key is not known.",
                code="cli.no_gateway",
                remedy="Start Cortex with `cortex up`, or set CORTEX_GATEWAY_URL and CORTEX_API_KEY.",
            )
        return url, key

"""Problems: why models could not be placed, told by the elected API process to all others."""

from collections.abc import Mapping
from time import monotonic
from typing import Literal

import anyio
from cortex_shared.bus import Bus, Msg
from cortex_shared.contracts.base import Message
from cortex_shared.contracts.observed import Reason
from cortex_shared.errors import InvalidInput, Unavailable
from cortex_shared.logs import get_logger

_log = get_logger("controllers.problems")

SUBJECT = "cortex.v1.problems.api"
_TELL_SECONDS = 2.0
# Told again and again while there are any; who hears nothing for this long knows nothing.
_HEARD_SECONDS = 10.0
_PROBLEMS_MAX = 1000


class Problems(Message):
    """All problems that the elected process has now, by model."""

    type: Literal["cortex.api_problems.v1"] = "cortex.api_problems.v1"
    problems: dict[int, Reason]


class HeardProblems:
    """What the elected process said last. `hear` must be among the process's tasks."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._heard: Mapping[int, Reason] = {}
        self._heard_at = 0.0

    def of(self, model_id: int) -> Reason | None:
        """Why a model could not be placed, as far as was heard."""
        return self._heard.get(model_id) if monotonic() - self._heard_at < _HEARD_SECONDS else None

    async def hear(self) -> None:
        """Listen until cancelled."""

        async def heard(message: Msg) -> None:
            try:
                told = Problems.decode(message.data)
            except InvalidInput as error:
                _log.warning("problems.unreadable", error=error.message)
                return
            self._heard, self._heard_at = told.problems, monotonic()

        await self._bus.listen(SUBJECT, heard)


async def tell(bus: Bus, problems: Mapping[int, Reason]) -> None:
    """Tell, until cancelled, what `problems` holds by then: every 2 s while there are any, and once after."""
    told_any = False
    while True:
        some = dict(sorted(problems.items())[:_PROBLEMS_MAX])
        if some or told_any:
            try:
                await bus.publish(SUBJECT, Problems(problems=some))
                told_any = bool(some)
            except Unavailable:
                pass  # said again in a moment
        await anyio.sleep(_TELL_SECONDS)

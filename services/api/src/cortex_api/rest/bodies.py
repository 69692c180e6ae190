"""Body: the base of what a request may carry; an unknown field is an error that names the nearest known."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from cortex_api.rest.errors import UNKNOWN_FIELD


def _sensible(moment: datetime) -> datetime:
    # At the ends of the calendar neither time zones nor Postgres' own dates can be computed with.
    if not _YEAR_MIN <= moment.year <= _YEAR_MAX:
        raise ValueError(f"the year is to be between {_YEAR_MIN} and {_YEAR_MAX}")
    return moment


_YEAR_MIN, _YEAR_MAX = 1970, 9000
type Moment = Annotated[AwareDatetime, AfterValidator(_sensible)]


class Body(BaseModel):
    """Strict: no unknown fields, no strings where numbers belong."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=False, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_fields_only(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in data:  # pyright: ignore[reportUnknownVariableType] (JSON of any form)
                if name not in cls.model_fields:
                    known = ",".join(cls.model_fields)
                    raise PydanticCustomError(
                        UNKNOWN_FIELD, "there is no such field", {"name": str(name), "known": known}  # pyright: ignore[reportUnknownArgumentType]
                    )  # fmt: skip
        return data  # pyright: ignore[reportUnknownVariableType]

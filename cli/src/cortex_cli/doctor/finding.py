"""Finding: one thing that the doctor looked at."""

from dataclasses import dataclass
from typing import Literal

type Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`ok`: well; `note`: works, but worth knowing; `bad`: must be mended, with a remedy."""

    what: str
    level: Level
    text: str
    remedy: str | None = None

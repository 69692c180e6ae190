"""Sums of counted requests."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

type GroupBy = Literal["model", "key", "day"]


class UsageRow(BaseModel):
    """The sums of one group."""

    group: str = Field(description="The model's or key's name, or the day (UTC) as 2026-01-31.")
    id: int | None = Field(default=None, description="Id of the model or key, where one is known.")
    requests: int
    failed: int = Field(description="Requests that did not end with an answer.")
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = Field(description="Of the prompt tokens, those that a cache held.")
    total_tokens: int


class UsageOut(BaseModel):
    """Sums by group, and of all."""

    group_by: GroupBy
    start: datetime = Field(description="Requests that began at this time or later,")
    end: datetime = Field(description="and before this one.")
    items: list[UsageRow] = Field(description="Most tokens first; days in their order.")
    total: UsageRow

"""What usage files say of this day and this month: budgets go on where they were after a restart."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cortex_shared.limit_ledger import day_name, month_name

from cortex_gateway.usage_log import FOLDER

_DAY_SECONDS = 86_400


class _Counted(msgspec.Struct):
    # What of a usage record counts.
    started_at: datetime
    duration_seconds: float = 0.0
    key_id: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


_DECODER = msgspec.json.Decoder(_Counted)


def totals(folder: Path, now: datetime) -> dict[str, int]:
    """Tokens by the names of budgets, of the day and the month (UTC) of `now`; some 2 s for 256 MiB."""
    found: dict[str, int] = {}
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    today = int(now.timestamp()) // _DAY_SECONDS
    for record in _records(folder / FOLDER, month):
        if record.key_id is None:
            continue
        ended = record.started_at + timedelta(seconds=max(0.0, record.duration_seconds))
        tokens = record.prompt_tokens + record.completion_tokens
        if (ended.year, ended.month) == (now.year, now.month):
            name = month_name(record.key_id, now.year, now.month)
            found[name] = found.get(name, 0) + tokens
        if int(ended.timestamp()) // _DAY_SECONDS == today:
            name = day_name(record.key_id, today)
            found[name] = found.get(name, 0) + tokens
    return found


def _records(folder: Path, since: datetime) -> Iterator[_Counted]:
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        try:
            if datetime.fromtimestamp(path.stat().st_mtime, UTC) < since:
                continue
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            continue  # another process has just dropped it, or taken it over
        for line in lines:
            try:
                yield _DECODER.decode(line)
            except msgspec.DecodeError:
                continue

"""The streams and buckets that Cortex needs, and how each is bounded."""

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from cortex_shared.contracts import commands, events, external, observed, routes, telemetry, usage, verdicts

_HOUR = 3600.0
_DAY = 24 * _HOUR
_MIB = 2**20
_NAME_IN_USE = 10058


def bucket_stream(bucket: str) -> str:
    """Name of the stream under a key-value bucket."""
    return f"KV_{bucket}"


def bucket_subject(bucket: str, key: str) -> str:
    """Subject of a key; a key of `*` or `>` makes a filter."""
    return f"$KV.{bucket}.{key}"


def _bucket(name: str) -> StreamConfig:
    # As NATS' ADR-8 lays a bucket out, so that any NATS tool can read it.
    return StreamConfig(
        name=bucket_stream(name),
        subjects=[bucket_subject(name, ">")],
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        max_bytes=256 * _MIB,
        storage=StorageType.FILE,
        allow_rollup_hdrs=True,
        deny_delete=True,
        allow_direct=True,
    )


def _streams() -> list[StreamConfig]:
    return [
        StreamConfig(
            name=commands.STREAM,
            subjects=[commands.SUBJECTS],
            max_msgs_per_subject=1,
            max_bytes=512 * _MIB,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,
            allow_direct=True,
        ),
        StreamConfig(
            name=telemetry.STREAM,
            subjects=[telemetry.SUBJECTS],
            max_age=_HOUR,
            max_bytes=64 * _MIB,
            storage=StorageType.FILE,
        ),
        StreamConfig(
            name=usage.STREAM,
            subjects=[usage.SUBJECTS],
            retention=RetentionPolicy.WORK_QUEUE,
            max_bytes=1024 * _MIB,
            # Full means that the API has been away for long: refuse, and gateways spool to disk.
            discard=DiscardPolicy.NEW,
            duplicate_window=600,
            storage=StorageType.FILE,
        ),
        StreamConfig(
            name=events.STREAM,
            subjects=[events.SUBJECTS],
            max_age=30 * _DAY,
            max_bytes=256 * _MIB,
            storage=StorageType.FILE,
        ),
        _bucket(observed.BUCKET),
        _bucket(routes.WANTED_BUCKET),
        _bucket(verdicts.BUCKET),
        _bucket(external.BUCKET),
    ]


async def ensure_streams(js: JetStreamContext, *, replicas: int) -> bool:
    """Create what is missing; True if anything was (NATS is new, or came back empty).

    What exists is left as it is: an administrator may have given it more room. Raises nats' errors.
    """
    created = False
    for config in _streams():
        assert config.name is not None
        try:
            await js.stream_info(config.name)
        except NotFoundError:
            try:
                await js.add_stream(config.evolve(num_replicas=replicas))
            except APIError as error:
                if error.err_code != _NAME_IN_USE:
                    raise
            created = True
    return created

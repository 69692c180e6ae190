"""What is read of streams whose events have names, those of /v1/responses and of /v1/messages."""

import msgspec

from cortex_gateway.completions import AnyUsage


class Response(msgspec.Struct):
    """An answer of /v1/responses, as its events hold it."""

    id: object = None
    error: object = None
    usage: AnyUsage | None = None
    background: object = None


class ResponsesEvent(msgspec.Struct):
    """An event of /v1/responses."""

    type: object = None
    response: Response | None = None
    error: object = None


class Message(msgspec.Struct):
    """An answer of /v1/messages, as its first event holds it."""

    usage: AnyUsage | None = None


class MessagesEvent(msgspec.Struct):
    """An event of /v1/messages."""

    type: object = None
    message: Message | None = None
    usage: AnyUsage | None = None
    error: object = None


RESPONSES = msgspec.json.Decoder(ResponsesEvent)
MESSAGES = msgspec.json.Decoder(MessagesEvent)

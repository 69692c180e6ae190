"""`cortex chat`: talk to a model; one question, or a conversation in a terminal."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cortex_cli import output
from cortex_cli.commands.options import Json
from cortex_cli.session import Session
from cortex_cli.shapes import Json as JsonObject

if TYPE_CHECKING:
    from cortex_cli.openai_chat import Chat, Message

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name under which the model is served.")]


def chat(
    context: typer.Context,
    model: Model,
    message: Annotated[str | None, typer.Option("--message", "-m", help="One question; - reads it.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    as_json: Json = False,
) -> None:
    """Ask a model through the gateway; without --message a conversation (Ctrl-D ends it)."""
    from cortex_cli.openai_chat import Chat

    talk = Chat(*Session.of(context).gateway())
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    wishes = {"max_tokens": max_tokens, "temperature": temperature}
    options: JsonObject = {name: value for name, value in wishes.items() if value is not None}
    if message is None and sys.stdin.isatty() and not as_json:
        _converse(talk, model, messages, options)
        return
    question = sys.stdin.read() if message is None or message == "-" else message
    messages.append({"role": "user", "content": question})
    if as_json:
        output.as_json(talk.answer(model, messages, options))
    else:
        _say(talk, model, messages, options)


def _converse(talk: "Chat", model: str, messages: "list[Message]", options: JsonObject) -> None:
    print(f"Talking to {model}. Ctrl-C cuts an answer short, Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            question = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if not question.strip():
            continue
        messages.append({"role": "user", "content": question})
        try:
            text = _say(talk, model, messages, options)
        except KeyboardInterrupt:
            print()
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": text})


def _say(talk: "Chat", model: str, messages: "list[Message]", options: JsonObject) -> str:
    said: list[str] = []
    with talk.stream(model, messages, options) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
            said.append(piece)
    print()
    return "".join(said)

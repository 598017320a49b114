"""What an OpenAI-compatible server is asked and answers, for completions and chat.

Source: OpenAI API reference, "Completions" and "Chat completions": field names, the form of a
stream, ``usage``. What this server cannot do is refused by name; fields it does not know are not
looked at, as clients send many. Own addition: ``logits_sha256`` asks for the digest of the logits.
"""

from typing import Any

import msgspec
from msgspec import Struct

from edge_agent.reference.decoding import Wish
from edge_agent.reference.errors import RefusedError
from edge_agent.reference.model import encode

MESSAGES_MAX = 256
STOPS_MAX = 4
_STOP_CHARACTERS_MAX = 64
_DEFAULT_TOKENS = 16


class StreamOptions(Struct, frozen=True, kw_only=True):
    """What a stream carries beside the text."""

    include_usage: bool = False


class Part(Struct, frozen=True, kw_only=True):
    """A part of a message."""

    type: str
    text: str = ""


class ChatMessage(Struct, frozen=True, kw_only=True):
    """One message of a chat."""

    role: str
    content: str | list[Part] = ""


class Ask(Struct, frozen=True, kw_only=True):
    """A request for a completion, of either kind."""

    model: str = ""
    prompt: str | list[str] | None = None
    messages: list[ChatMessage] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logits_sha256: bool = False


_decoder = msgspec.json.Decoder(Ask)


def read_ask(body: bytes, *, model: str, context: int, chat: bool) -> tuple[Ask, Wish]:
    """Read a request, and what it wants of the model.

    Raises:
        RefusedError: it is no such request, or wants what is not offered.
    """
    try:
        ask = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RefusedError(400, "invalid_request_error", str(exc)[:200]) from exc
    if ask.model not in {"", model}:
        raise RefusedError(404, "model_not_found", f"this server has {model} alone")
    if (ask.n or 1) != 1 or (ask.top_p or 1.0) != 1.0:
        raise RefusedError(400, "unsupported", "n and top_p must be 1")
    temperature = 1.0 if ask.temperature is None else ask.temperature
    if not 0 <= temperature <= 2:
        raise RefusedError(400, "invalid_request_error", "temperature must be within 0..2")
    prompt = _chat_prompt(ask) if chat else _prompt(ask)
    given = (ask.max_completion_tokens, ask.max_tokens, _DEFAULT_TOKENS)
    max_tokens = next(one for one in given if one is not None)
    # A byte is a token at least: a prompt that is far too long is not encoded to find that out.
    taken = len(prompt) + 1 if len(prompt) >= context else len(encode(prompt))
    if max_tokens < 1 or taken + max_tokens > context:
        raise RefusedError(
            400,
            "context_length_exceeded",
            f"{taken} tokens and {max_tokens} more do not fit a context of {context}",
        )
    return ask, Wish(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=(ask.seed or 0) % (1 << 63),
        stops=_stops(ask.stop),
    )


def _prompt(ask: Ask) -> str:
    prompt = ask.prompt[0] if isinstance(ask.prompt, list) and len(ask.prompt) == 1 else ask.prompt
    if not isinstance(prompt, str):
        raise RefusedError(400, "invalid_request_error", "prompt must be one text")
    return prompt


def _chat_prompt(ask: Ask) -> str:
    if not ask.messages or len(ask.messages) > MESSAGES_MAX:
        raise RefusedError(400, "invalid_request_error", f"1..{MESSAGES_MAX} messages are needed")
    lines = []
    for message in ask.messages:
        content = message.content
        if isinstance(content, list):
            if any(part.type != "text" for part in content):
                raise RefusedError(400, "unsupported", "only text is understood")
            content = "".join(part.text for part in content)
        lines.append(f"{message.role}: {content}\n")
    return "".join(lines) + "assistant:"


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > STOPS_MAX or any(not 0 < len(one) <= _STOP_CHARACTERS_MAX for one in stops):
        raise RefusedError(400, "invalid_request_error", "stop: up to four texts of 1..64")
    return stops


class Answers:
    """Makes the answers to one request.

    Args:
        ident: of this answer. created_s: Unix time.
    """

    def __init__(self, *, chat: bool, ident: str, created_s: int, model: str) -> None:
        self._chat = chat
        self._object = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{ident}",
            "created": created_s,
            "model": model,
        }

    def whole(
        self, text: str, finish: str, usage: dict[str, int], extra: dict[str, str]
    ) -> dict[str, Any]:
        """Give an answer in one piece."""
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        )
        choice = {"index": 0, "finish_reason": finish, "logprobs": None, **said}
        head = {**self._head, "object": self._object}
        return {**head, "choices": [choice], "usage": usage, **extra}

    def event(self, text: str, finish: str | None, extra: dict[str, str]) -> bytes:
        """Give a piece of a stream."""
        said: dict[str, Any] = {"text": text}
        if self._chat:
            said = {"delta": {"content": text} if text else {}}
        choice = {"index": 0, "finish_reason": finish, "logprobs": None, **said}
        return self._data({"choices": [choice], **extra})

    def role_event(self) -> bytes:
        """Give the first piece of a chat's stream."""
        choice = {"index": 0, "finish_reason": None, "delta": {"role": "assistant", "content": ""}}
        return self._data({"choices": [choice]})

    def usage_event(self, usage: dict[str, int]) -> bytes:
        """Give the usage of a stream."""
        return self._data({"choices": [], "usage": usage})

    def _data(self, value: dict[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self._chat else self._object
        return sse({**self._head, "object": kind, **value})


DONE = b"data: [DONE]\n\n"


def sse(value: object) -> bytes:
    """Make a server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def usage_of(tokens_in: int, tokens_out: int) -> dict[str, int]:
    """Give the usage block."""
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
    }

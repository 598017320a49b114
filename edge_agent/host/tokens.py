"""Counts requests and tokens of OpenAI-compatible answers as they pass.

Source: the OpenAI API: ``usage.prompt_tokens`` and ``usage.completion_tokens`` (``input_tokens``
and ``output_tokens`` in the responses API). A stream carries ``usage`` in its last event when the
client asked for it; without it, its events are counted: servers send one per token, as a rule.
"""

import msgspec
from msgspec import Struct

# An answer longer than this is not searched for its usage field.
BODY_BYTES_MAX = 1_024 * 1_024
_LINE_BYTES_MAX = 64 * 1_024


class Usage(Struct, frozen=True):
    """Tokens of one answer; None is unknown."""

    tokens_in: int | None = None
    tokens_out: int | None = None


class _Usage(Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Inner(Struct, frozen=True):
    usage: _Usage | None = None


class _Answer(Struct, frozen=True):
    usage: _Usage | None = None
    response: _Inner | None = None


_answer = msgspec.json.Decoder(_Answer)


def usage_of(document: bytes) -> Usage:
    """Give the tokens that a JSON answer names; nonsense is unknown."""
    try:
        answer = _answer.decode(document)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Usage()
    usage = answer.usage
    if usage is None and answer.response is not None:
        usage = answer.response.usage
    if usage is None:
        return Usage()
    tokens_in = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    tokens_out = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    return Usage(_sane(tokens_in), _sane(tokens_out))


def _sane(count: int | None) -> int | None:
    return count if count is not None and 0 <= count < 2**40 else None


class StreamCounter:
    """Follows a stream of server-sent events; bounded, whatever the stream holds.

    Attributes:
        events: data events seen, the final ``[DONE]`` not among them.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._skipping = False
        self._usage = Usage()
        self.events = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._append(part)
            if not self._skipping:
                self._take(bytes(self._line))
            self._line.clear()
            self._skipping = False
        self._append(rest)

    def usage(self) -> Usage:
        """Give the tokens as far as they are known: named, or else counted."""
        out = self._usage.tokens_out
        return Usage(self._usage.tokens_in, self.events if out is None else out)

    @property
    def named(self) -> bool:
        """Tell whether the stream itself named its tokens."""
        return self._usage.tokens_out is not None

    def _append(self, part: bytes) -> None:
        if self._skipping or len(self._line) + len(part) > _LINE_BYTES_MAX:
            self._skipping = True
            self._line.clear()
        else:
            self._line += part

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        payload = line[5:].strip()
        if payload == b"[DONE]":
            return
        self.events += 1
        if b'"usage"' in payload:
            found = usage_of(payload)
            if found.tokens_out is not None:
                self._usage = found
                self.events -= 1 if b'"choices":[]' in payload.replace(b" ", b"") else 0

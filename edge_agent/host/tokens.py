"""Counts requests and tokens of OpenAI-compatible answers as they pass.

Source: the OpenAI API: ``usage.prompt_tokens`` and ``usage.completion_tokens`` (``input_tokens``
and ``output_tokens`` in the responses API). A stream carries ``usage`` in its last event when the
client asked for it; without it, its events that give something are counted: servers send one per
token, as a rule, and others that name the role, why it ended, or what comes next.
Events are told apart as the HTML standard has it (section 9.2.6): lines end by CR, LF or both, and
an event may have its data in several lines.
"""

import msgspec
from msgspec import Struct

# An answer longer than this is not searched for its usage field.
BODY_BYTES_MAX = 1_024 * 1_024
# The last event of the responses API holds the whole answer beside its usage.
EVENT_BYTES_MAX = 1_024 * 1_024


class Usage(Struct, frozen=True):
    """Tokens of one answer; None is unknown."""

    tokens_in: int | None = None
    tokens_out: int | None = None


class _Usage(Struct, frozen=True):
    prompt_tokens: int | float | None = None
    completion_tokens: int | float | None = None
    input_tokens: int | float | None = None
    output_tokens: int | float | None = None


class _Inner(Struct, frozen=True):
    usage: _Usage | None = None


class _Answer(Struct, frozen=True):
    usage: _Usage | None = None
    response: _Inner | None = None


class _Delta(Struct, frozen=True):
    content: object = None
    reasoning: object = None
    reasoning_content: object = None
    refusal: object = None
    tool_calls: object = None


class _Choice(Struct, frozen=True):
    text: object = None
    delta: _Delta | None = None

    @property
    def gives(self) -> bool:
        delta = self.delta or _Delta()
        reasons = delta.reasoning or delta.reasoning_content
        return bool(self.text or delta.content or reasons or delta.refusal or delta.tool_calls)


class _Event(_Answer, frozen=True):
    choices: list[_Choice] | None = None
    type: str = ""

    @property
    def gives(self) -> bool:
        """Tell whether it gives anything of the answer; of what is not known it is taken to."""
        if self.choices is not None:
            return any(one.gives for one in self.choices)
        return not self.type or self.type.endswith(".delta")


_answer = msgspec.json.Decoder(_Answer)
_event = msgspec.json.Decoder(_Event)


def usage_of(document: bytes) -> Usage:
    """Give the tokens that a JSON answer names; nonsense is unknown."""
    try:
        return _named(_answer.decode(document))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Usage()


def _named(answer: _Answer) -> Usage:
    usage = answer.usage
    if usage is None and answer.response is not None:
        usage = answer.response.usage
    if usage is None:
        return Usage()
    tokens_in = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    tokens_out = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    if not _is_sane(tokens_in) or not _is_sane(tokens_out):
        return Usage()  # who errs in one is not believed in the other
    return Usage(_whole(tokens_in), _whole(tokens_out))


def _is_sane(count: float | None) -> bool:
    return count is None or (0 <= count < 2**40 and count == int(count))


def _whole(count: float | None) -> int | None:
    return None if count is None else int(count)


class StreamCounter:
    """Follows a stream of server-sent events; bounded, whatever the stream holds.

    Attributes:
        events: seen that give something of the answer.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._line_bytes = self._kept_bytes = 0
        self._after_cr = False
        self._usage = Usage()
        self._taken_in = self._taken_out = 0
        self.events = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif data:
            self._after_cr = False
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._append(part)
            self._end_line()
        self._append(rest)

    def end(self) -> None:
        """Note the end; usage in an event that lacks its last empty line is taken all the same."""
        if self._line_bytes:
            self._end_line()
        self._read(b"\n".join(self._data))

    def usage(self) -> Usage:
        """Give the tokens as far as they are known: named, or else counted."""
        out = self._usage.tokens_out
        return Usage(self._usage.tokens_in, self.events if out is None else out)

    def gained(self) -> tuple[int, int]:
        """Give the tokens in and out that are known and were not taken yet."""
        usage = self.usage()
        gained_in = (usage.tokens_in or 0) - self._taken_in
        gained_out = (usage.tokens_out or 0) - self._taken_out
        return max(0, gained_in), max(0, gained_out)

    def take(self) -> tuple[int, int]:
        """Take what was gained, once."""
        gained_in, gained_out = self.gained()
        self._taken_in += gained_in
        self._taken_out += gained_out
        return gained_in, gained_out

    @property
    def named(self) -> bool:
        """Tell whether the stream itself named its tokens."""
        return self._usage.tokens_out is not None

    def _append(self, part: bytes) -> None:
        """Keep a part of a line, and of an event that is too long its beginning alone."""
        kept = part[: EVENT_BYTES_MAX - self._kept_bytes]
        self._line += kept
        self._kept_bytes += len(kept)
        self._line_bytes += len(part)

    def _end_line(self) -> None:
        line, is_empty = bytes(self._line), self._line_bytes == 0
        self._line.clear()
        self._line_bytes = 0
        if is_empty:
            self._end_event()
        elif line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        else:
            self._kept_bytes -= len(line)

    def _end_event(self) -> None:
        payload = b"\n".join(self._data)
        if self._data and payload.strip() != b"[DONE]":
            self.events += self._read(payload)
        self._data.clear()
        self._kept_bytes = 0

    def _read(self, payload: bytes) -> bool:
        """Take the usage that an event names; tell whether it gives something of the answer."""
        try:
            event = _event.decode(payload)
            found, gives = _named(event), event.gives
        except (msgspec.MsgspecError, ValueError, RecursionError):
            found, gives = usage_of(payload), True  # of a shape that is not known
        if found.tokens_out is not None:
            self._usage = found
        return gives

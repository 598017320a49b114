"""A reader for the broken JSON that miners send; it runs only where the strict one failed.

Repairs, each seen in recorded answers: control characters and line ends inside texts; `,}` and
`,]`; a leading comma; `}{` and other missing commas; `""temp0"` for `"temp0"`; `inf` and `nan`; a
list with `key: value` in it; a missing opening brace; bytes that are not UTF-8; text after the end;
an escaped apostrophe and other escapes that JSON does not have.
Of an answer that was cut, whatever touches the cut is dropped: a number at the very end may have
lost digits, so it is no value.
"""

import re
from typing import Final

import msgspec

DEPTH_MAX: Final = 64

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_SPACE: Final = re.compile(r"[\s\x00-\x20\x7f]*")
_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PAIR: Final = r"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE: Final = re.compile(rf"\\({_PAIR}|u[0-9a-fA-F]{{4}}|.)", re.DOTALL)
_BARE: Final = re.compile(r"[-+.\w]+")
_NUMBER: Final = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?\Z")
_ESCAPES: Final = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/",
}  # fmt: skip
_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None}
_NOT_FINITE: Final = frozenset({"inf", "nan", "infinity"})
_NUMBER_CHARS_MAX: Final = 300
_INT_CHARS_MAX: Final = 40
_HALF_SURROGATE: Final = range(0xD800, 0xE000)


class GarbledTextError(ValueError):
    """The text is beyond repair.

    Args:
        detail: What was found.
        offset: Where, in characters.
    """

    def __init__(self, detail: str, offset: int) -> None:
        super().__init__(f"{detail} at character {offset}")
        self.detail = detail
        self.offset = offset


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """What could be read.

    Args:
        value: The JSON value.
        repairs: Names of the repairs made, sorted.
        truncated: The text ended early, so that what is missing means nothing.
    """

    value: Json
    repairs: tuple[str, ...]
    truncated: bool


class _CutError(Exception):
    """The value being read touches the end of the text."""


def read_tolerantly(text: str) -> Repaired:
    """Read broken JSON.

    Args:
        text: The answer, already decoded to characters.

    Raises:
        GarbledTextError: Beyond repair, or nested deeper than 64.
    """
    return _Reader(text).document()


class _Reader:
    """One pass over one text; `_at` is the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._repairs: set[str] = set()
        self._truncated = False

    def document(self) -> Repaired:
        self._separators(first=True)
        try:
            value = self._top()
        except _CutError as exc:
            raise GarbledTextError("nothing whole before the cut", self._at) from exc
        self._separators(first=False)
        if self._at < len(self._text) and not self._truncated:
            self._repairs.add("trailing_text")
        return Repaired(
            value=value, repairs=tuple(sorted(self._repairs)), truncated=self._truncated
        )

    def _top(self) -> Json:
        if self._peek() == '"':
            start = self._at
            self._string()
            self._spaces()
            named = self._peek() == ":"
            self._at = start
            if named:
                self._repairs.add("missing_brace")
                return self._object(1)
        return self._value(1)

    def _value(self, depth: int) -> Json:
        char = self._peek()
        if char == "":
            raise _CutError
        if char in ("{", "[") and depth > DEPTH_MAX:
            raise GarbledTextError(f"nested deeper than {DEPTH_MAX}", self._at)
        if char == '"':
            return self._string()
        if char == "{":
            self._at += 1
            return self._object(depth)
        if char == "[":
            self._at += 1
            return self._array(depth)
        return self._bare()

    def _object(self, depth: int) -> Json:
        members: dict[str, Json] = {}
        first = True
        while True:
            self._separators(first=first)
            first = False
            char = self._peek()
            if char in ("}", "]"):
                self._at += 1
                return members
            try:
                key, value = self._member(depth)
            except _CutError:
                self._truncated = True
                return members
            members[key] = value
            if self._truncated:
                return members

    def _member(self, depth: int) -> tuple[str, Json]:
        if self._peek() == "":
            raise _CutError
        if self._peek() != '"':
            raise GarbledTextError(f"expected a name, found {self._peek()!r}", self._at)
        key = self._string()
        if key == "" and self._peek() not in (":", " ", ""):
            self._repairs.add("doubled_quote")
            self._at -= 1
            key = self._string()
        self._spaces()
        if self._peek() == "":
            raise _CutError
        if self._peek() != ":":
            raise GarbledTextError(f"expected ':' after {key[:32]!r}", self._at)
        self._at += 1
        self._spaces()
        return key, self._value(depth + 1)

    def _array(self, depth: int) -> Json:
        items: list[Json] = []
        pairs: dict[str, Json] = {}
        first = True
        while True:
            self._separators(first=first)
            first = False
            if self._peek() in ("]", "}"):
                self._at += 1
                return pairs if pairs and not items else items
            try:
                item = self._value(depth + 1)
                if isinstance(item, str) and not self._truncated and self._pair_follows():
                    self._repairs.add("list_of_pairs")
                    pairs[item] = self._value(depth + 1)
                else:
                    items.append(item)
            except _CutError:
                self._truncated = True
            if self._truncated:
                return pairs if pairs and not items else items

    def _pair_follows(self) -> bool:
        self._spaces()
        if self._peek() != ":":
            return False
        self._at += 1
        self._spaces()
        return True

    def _string(self) -> str:
        match = _STRING.match(self._text, self._at)
        if match is None:
            self._at = len(self._text)
            raise _CutError
        self._at = match.end()
        raw = match.group(1)
        if any(char < " " for char in raw):
            self._repairs.add("control_character")
        return _ESCAPE.sub(self._unescape, raw) if "\\" in raw else raw

    def _unescape(self, match: re.Match[str]) -> str:
        escape = match.group(1)
        if len(escape) > 1:
            code = int(escape[1:5], 16)
            if len(escape) > 5:
                return chr(0x10000 + (code - 0xD800) * 0x400 + int(escape[7:], 16) - 0xDC00)
            if code in _HALF_SURROGATE:
                # Half a pair could not be encoded again.
                self._repairs.add("half_surrogate")
                return "\ufffd"
            return chr(code)
        if escape not in _ESCAPES:
            self._repairs.add("escape")
        return _ESCAPES.get(escape, escape)

    def _bare(self) -> Json:
        match = _BARE.match(self._text, self._at)
        if match is None:
            raise GarbledTextError(f"unexpected {self._peek()!r}", self._at)
        self._at = match.end()
        if self._at == len(self._text):
            raise _CutError
        token = match.group()
        lowered = token.lower()
        if lowered in _WORDS:
            return _WORDS[lowered]
        if lowered.lstrip("+-") in _NOT_FINITE:
            self._repairs.add("not_finite")
            return None
        if _NUMBER.match(token) is None or len(token) > _NUMBER_CHARS_MAX:
            raise GarbledTextError(f"no value: {token[:32]!r}", match.start())
        return self._number(token)

    def _number(self, token: str) -> int | float | None:
        if token.lstrip("+-").isdigit() and len(token) <= _INT_CHARS_MAX:
            return int(token)
        number = float(token)
        if number in (float("inf"), float("-inf")):
            self._repairs.add("not_finite")
            return None
        return number

    def _separators(self, *, first: bool) -> None:
        """Skip what stands between two values; exactly one comma is right, except at the start."""
        commas = 0
        self._spaces()
        while self._peek() == ",":
            commas += 1
            self._at += 1
            self._spaces()
        closing = self._peek() in ("", "}", "]")
        if commas != (0 if first or closing else 1):
            self._repairs.add("comma")

    def _spaces(self) -> None:
        match = _SPACE.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

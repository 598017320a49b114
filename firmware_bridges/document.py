"""The JSON that a miner sent, on any wire: read strictly first, repaired only when that fails.

Over every limit nothing is read: size, depth, and the size up to which a repair is tried.
"""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from firmware_bridges.errors import BridgeGarbledError
from firmware_bridges.tolerant import DEPTH_MAX, GarbledTextError, Json, read_tolerantly

ANSWER_BYTES_MAX: Final = 1 << 20
# Repairing and splitting run in Python, on the loop: what costs more than a few 10 ms is refused.
# The longest answer recorded has 21 kB.
REPAIR_BYTES_MAX: Final = 128 << 10

# The closing quote is optional, so that an open text is passed over once and not once per quote.
_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[][{}]', re.DOTALL)
_PADDING: Final = b"\0 \r\n\t"
# The byte order mark that some web servers put in front of UTF-8.
_MARK: Final = b"\xef\xbb\xbf"


class Document(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One answer as a JSON value.

    Args:
        source: Key of the query that was asked.
        value: What was read.
        repairs: Repairs that were needed to read it, sorted.
        truncated: It was cut: what is missing from it means nothing.
    """

    source: str
    value: Json
    repairs: tuple[str, ...] = ()
    truncated: bool = False


def read_json(data: bytes, address: str, source: str = "") -> Document:
    """Read one JSON value, trailing NULs and white space set aside.

    Args:
        data: Everything received.
        address: For the error.
        source: Key of the query that was asked.

    Raises:
        BridgeGarbledError: Nothing in it can be understood, or it is over a limit.
    """
    if len(data) > ANSWER_BYTES_MAX:
        raise BridgeGarbledError(address, f"{len(data)} bytes, limit {ANSWER_BYTES_MAX}")
    body = data.removeprefix(_MARK).rstrip(_PADDING)
    if not body:
        raise BridgeGarbledError(address, "empty answer")
    # Counting brackets is a fast bound on the depth; only odd answers need the exact walk.
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX and _depth(body) > DEPTH_MAX:
        raise BridgeGarbledError(address, f"nested deeper than {DEPTH_MAX}")
    try:
        return Document(source=source, value=msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text, encoding = characters(body)
    if len(body) > REPAIR_BYTES_MAX:
        raise BridgeGarbledError(address, f"broken and over {REPAIR_BYTES_MAX} bytes")
    try:
        repaired = read_tolerantly(text)
    except GarbledTextError as exc:
        raise BridgeGarbledError(address, str(exc)) from exc
    return Document(
        source=source,
        value=repaired.value,
        repairs=tuple(sorted({*repaired.repairs, *encoding})),
        truncated=repaired.truncated,
    )


def object_of(document: Document) -> Mapping[str, Json]:
    """Give the object that an answer is; empty when it is something else."""
    return document.value if isinstance(document.value, dict) else {}


def characters(body: bytes) -> tuple[str, tuple[str, ...]]:
    """Give the characters of an answer and the repair that bytes outside UTF-8 needed."""
    try:
        return body.decode(), ()
    except UnicodeDecodeError:
        return body.decode("latin-1"), ("latin_1",)


def _depth(body: bytes) -> int:
    """Give the depth of the nesting; no more than one over the limit is counted."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(body.decode("latin-1")):
        if match.group() in ("{", "["):
            depth += 1
            deepest = max(deepest, depth)
            if deepest > DEPTH_MAX:
                break
        elif match.group() in ("}", "]"):
            depth -= 1
    return deepest

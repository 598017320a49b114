"""Exchanges as a file of recorded answers (asic-fixture/1), its secrets taken out. Pure.

The file can be decoded again on any machine, and given away: pool passwords, web passwords, tokens
and keys are replaced, wherever they stand in requests and answers. Pool users are the owner's
accounts, so they are replaced too.
"""

import json
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from firmware_bridges.query import Exchange, Wire
from firmware_bridges.recognise import decode_exchanges

SCHEMA: Final = "asic-fixture/1"
REDACTED: Final = "redacted"

_SECRET_NAMES: Final = frozenset({"pw", "pwd", "sign", "salt", "newsalt", "psk"})
_USER_KEY: Final = re.compile(
    r"(?:.*_)?(?:user|username|worker|stratumuser|login)\d*", re.IGNORECASE
)
_LONG_SECRET: Final = re.compile(
    r"pass|token|secret|session ?id|cookie|authorization|api.?key|private"
)


def recording_of(exchanges: Sequence[Exchange], *, name: str, made_at: str) -> bytes:
    """Write exchanges as one recording.

    Args:
        exchanges: As they were made.
        name: Its id.
        made_at: When, ISO 8601.
    """
    decoded = decode_exchanges(exchanges, "recording")
    reading = decoded.reading
    body = {
        "schema": SCHEMA,
        "id": name,
        "family": decoded.family.name,
        "make": reading.make,
        "model": reading.model,
        "firmware": reading.firmware,
        "firmware_version": reading.fw_version,
        "provenance": {
            "kind": "recorded",
            "at": made_at,
            "note": "secrets replaced by the recorder",
        },
        "exchanges": [_row(exchange) for exchange in exchanges],
        "expected": {},
    }
    return json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n"


def redacted(value: object) -> object:
    """Give a JSON value without its secrets."""
    if isinstance(value, dict):
        return {
            key: REDACTED if _is_secret(key, item) else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [redacted(item) for item in value]
    return value


def _is_secret(key: object, item: object) -> bool:
    if not isinstance(key, str) or not isinstance(item, str) or not item:
        return False
    lowered = key.lower()
    if lowered in _SECRET_NAMES or _LONG_SECRET.search(lowered) is not None:
        return True
    return _USER_KEY.fullmatch(lowered) is not None


def _row(exchange: Exchange) -> dict[str, object]:
    query = exchange.query
    row: dict[str, object] = {"transport": query.wire.value}
    if query.wire in (Wire.HTTP, Wire.GRAPHQL):
        row |= {"method": query.method, "path": query.path}
        if query.wire is Wire.GRAPHQL:
            row["query_name"] = query.key
    else:
        row["request"] = redacted(_decoded(query.payload))
    value = _decoded(exchange.body)
    if isinstance(value, str):
        row["response_text"] = _without_secrets(value)
    else:
        row["response"] = redacted(value)
    return row


def _decoded(body: bytes) -> object:
    """Give the JSON value, or the text of what is none."""
    try:
        value = msgspec.json.decode(body.rstrip(b"\0"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("latin-1")
    # A JSON text would be taken for raw bytes when the file is read.
    return body.decode() if isinstance(value, str) else value


_IN_TEXT: Final = re.compile(
    r"(?i)(\"?(?:[a-z_ ]*(?:pass|token|secret|session ?id)[a-z_ ]*|user|worker)\"?\s*[:=]\s*\"?)"
    r"([^\",|}\]]+)"
)


def _without_secrets(text: str) -> str:
    """Take secrets out of a text answer, or of broken JSON."""
    return _IN_TEXT.sub(lambda found: found.group(1) + REDACTED, text)

"""Files of recorded answers (asic-fixture/1): read into exchanges, written from them. Pure.

Only queries and answers are taken: what a file says of the machine (`family`, `model`, `expected`)
is never looked at. An answer is decoded JSON in the file and becomes bytes again here; a text is
taken as the bytes themselves, so that broken answers can be kept as they came.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from firmware_bridges.query import GRAPHQL_KEY, Exchange, Query, Wire, path_key

FIXTURE_BYTES_MAX: Final = 16 << 20
EXCHANGES_MAX: Final = 1_000


class FixtureError(ValueError):
    """The file is no recording; the message names the field."""

    code: Final = "bridge.fixture"


class _Exchange(msgspec.Struct, kw_only=True):
    transport: str
    port: int | None = None
    request: object = None
    method: str = "GET"
    path: str = ""
    query_name: str = ""
    response: msgspec.Raw = msgspec.Raw(b"null")
    response_text: str | None = None
    error: str | None = None


class _Fixture(msgspec.Struct, kw_only=True):
    exchanges: list[_Exchange]


def read_fixture(data: bytes) -> tuple[Exchange, ...]:
    """Read the exchanges of one recording.

    Args:
        data: The file.

    Raises:
        FixtureError: It is no such file, or over a limit.
    """
    if len(data) > FIXTURE_BYTES_MAX:
        raise FixtureError(f"file: {len(data)} bytes, limit {FIXTURE_BYTES_MAX}")
    try:
        fixture = msgspec.json.decode(data, type=_Fixture)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise FixtureError(f"file: {exc}") from exc
    if len(fixture.exchanges) > EXCHANGES_MAX:
        raise FixtureError(f"exchanges: {len(fixture.exchanges)}, limit {EXCHANGES_MAX}")
    rows = enumerate(fixture.exchanges)
    return tuple(
        Exchange(query=_query(row, place), body=_body(row)) for place, row in rows if not row.error
    )


def _query(row: _Exchange, place: int) -> Query:
    try:
        wire = Wire(row.transport)
    except ValueError as exc:
        known = ", ".join(Wire)
        detail = f"exchanges[{place}].transport: {row.transport!r} is none of {known}"
        raise FixtureError(detail) from exc
    if wire is Wire.GRAPHQL:
        return Query(wire=wire, key=GRAPHQL_KEY, method="POST", path=row.path)
    if wire is Wire.HTTP:
        key = path_key(row.path)
        payload = b"" if row.request is None else msgspec.json.encode(row.request)
        return Query(wire=wire, key=key, method=row.method, path=row.path, payload=payload)
    return Query(wire=wire, key=_command(row.request, place), payload=_encoded(row.request))


def _command(request: object, place: int) -> str:
    if isinstance(request, str):
        return request.partition("|")[0]
    if isinstance(request, Mapping):
        for name in ("command", "cmd"):
            command = request.get(name)
            if isinstance(command, str):
                return command
    raise FixtureError(f"exchanges[{place}].request: names no command")


def _encoded(request: object) -> bytes:
    return request.encode() if isinstance(request, str) else msgspec.json.encode(request)


def _body(row: _Exchange) -> bytes:
    if row.response_text is not None:
        return row.response_text.encode()
    raw = bytes(row.response)
    if raw.startswith(b'"'):
        return msgspec.json.decode(raw, type=str).encode()
    return raw

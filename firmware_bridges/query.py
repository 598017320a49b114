"""What is asked of a miner, as values: one query is one exchange on one wire; no I/O.

A query's key names what it asks for, whatever the wire: the command of the cgminer API and of
WhatsMiner v3, the path of a web page, `graphql`. Decoders are found by (wire, key).
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from firmware_bridges.cgminer.codec import encode_request
from firmware_bridges.transport import Deadlines

GRAPHQL_KEY: Final = "graphql"


class Wire(StrEnum):
    """How bytes reach a miner; the names are those of the recordings (asic-fixture/1)."""

    CGMINER = "tcp-cgminer"
    BTMINER_V3 = "tcp-btminer-v3"
    HTTP = "http"
    GRAPHQL = "graphql"


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    Args:
        wire: How it is sent.
        key: What it asks for; several commands in one cgminer request are joined with `+`.
        payload: cgminer and v3: the request itself, without framing; web: the body, if any.
        method: Of a web request.
        path: Of a web request, with its query string.
    """

    wire: Wire
    key: str
    payload: bytes = b""
    method: str = "GET"
    path: str = ""

    @property
    def commands(self) -> tuple[str, ...]:
        """Give the commands of a joined cgminer request, one for every other."""
        return tuple(self.key.split("+")) if self.wire is Wire.CGMINER else (self.key,)


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One query and the bytes that came back."""

    query: Query
    body: bytes


class Asker(Protocol):
    """A miner that can be asked; the links implement it, and tests script it."""

    async def ask(self, query: Query, deadlines: Deadlines | None = None) -> bytes:
        """Send one query and return the whole answer, the frame or HTTP head taken off.

        Args:
            query: What to send.
            deadlines: Of this exchange; `None` = those of the link.

        Raises:
            BridgeError: It was not answered, or refused; `sent` tells whether it may have acted.
        """
        ...


def cgminer(*commands: str, new_api: bool = False, parameter: str | None = None) -> Query:
    """Make a request of the cgminer API; several commands are joined in one.

    Args:
        commands: Command names, at least one.
        new_api: Ask a Bitmain build for the shape of its web pages.
        parameter: Of a single command.

    Raises:
        ValueError: No command, a name with other characters, a parameter with several commands, or
            more than the 4,095 bytes that a miner reads.
    """
    payload = encode_request(commands, parameter, new_api=new_api)
    return Query(wire=Wire.CGMINER, key="+".join(commands), payload=payload)


def btminer_v3(command: str, parameter: object = None) -> Query:
    """Make a request of WhatsMiner v3; the link adds the length in front."""
    body: dict[str, object] = {"cmd": command}
    if parameter is not None:
        body["param"] = parameter
    return Query(wire=Wire.BTMINER_V3, key=command, payload=_compact(body))


def page(path: str) -> Query:
    """Make a GET of a web page."""
    return Query(wire=Wire.HTTP, key=path_key(path), path=path)


def submit(path: str, body: Mapping[str, object] | bytes | None, method: str = "POST") -> Query:
    """Make a write to a web page; an object is sent as JSON."""
    payload = body if isinstance(body, bytes) else b"" if body is None else _compact(body)
    key = path_key(path)
    return Query(wire=Wire.HTTP, key=key, payload=payload, method=method, path=path)


def graphql(text: str, path: str = "/graphql") -> Query:
    """Make a GraphQL query."""
    payload = _compact({"query": text})
    return Query(wire=Wire.GRAPHQL, key=GRAPHQL_KEY, payload=payload, method="POST", path=path)


def path_key(path: str) -> str:
    """Give the key of a path: without its query string and its last slash."""
    return path.partition("?")[0].rstrip("/") or "/"


def keys_of(queries: Sequence[Query]) -> tuple[str, ...]:
    """Give the keys that some queries ask for, joined requests taken apart."""
    return tuple(command for query in queries for command in query.commands)


def _compact(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()

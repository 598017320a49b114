"""A small HTTP/1.1 server on Unix sockets that knows its peer's user id.

A library server would do, but none tells who connected (SO_PEERCRED), and who drained a device must
be known. One request per connection, answers are JSON, everything is bounded.
"""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Struct

_log = logging.getLogger(__name__)

HEAD_BYTES_MAX = 16 * 1_024
BODY_BYTES_MAX = 64 * 1_024
CONNECTIONS_MAX = 64
_REQUEST_S = 5.0
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}


class Peer(Struct, frozen=True):
    """Who connected: the kernel's word, not the client's."""

    pid: int
    uid: int
    gid: int


class LocalRequest(Struct, frozen=True, kw_only=True):
    """One request; ``writable`` tells whether it came in by the control socket."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    peer: Peer
    writable: bool


class PlainText(Struct, frozen=True):
    """An answer that is no JSON: text as Prometheus reads it."""

    text: str


class LocalError(Exception):
    """An answer other than 200.

    Args:
        status: HTTP status. code: stable, for programs. detail: for a person.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        """Keep the facts as attributes."""
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail


Handler = Callable[[LocalRequest], Awaitable[object]]


class LocalServer:
    """Serves a handler on two sockets: ``view`` for reading, ``control`` for acting as well.

    Args:
        handler: gives a JSON-able value, bytes of JSON or PlainText, or raises LocalError. The
            modes of the two socket files (0660, each with its group) decide who may connect; the
            kernel enforces them.
    """

    def __init__(self, view: Path, control: Path, handler: Handler) -> None:
        """Keep the places; nothing is opened yet."""
        self._sockets = ((view, False), (control, True))
        self._handler = handler
        self._open = 0

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled; ``ready`` is called when both sockets listen."""
        async with AsyncExitStack() as stack:
            for path, writable in self._sockets:
                server = await asyncio.start_unix_server(
                    self._serve_on(writable=writable),
                    sock=_listen(path),
                    limit=HEAD_BYTES_MAX,
                )
                await stack.enter_async_context(server)
            ready()
            await asyncio.Event().wait()

    def _serve_on(
        self, *, writable: bool
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._open += 1
            try:
                if self._open <= CONNECTIONS_MAX:
                    async with asyncio.timeout(_REQUEST_S):
                        await self._exchange(reader, writer, writable=writable)
            except (TimeoutError, OSError, EOFError) as exc:
                _log.debug("local client gone error=%s", exc)
            finally:
                self._open -= 1
                writer.close()

        return serve

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, writable: bool
    ) -> None:
        try:
            request = await _read_request(reader, _peer_of(writer), writable=writable)
            status, value = 200, await self._handler(request)
        except LocalError as exc:
            status, value = exc.status, {"error": exc.code, "detail": exc.detail}
        kind, body = _encoded(value)
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()


def _encoded(value: object) -> tuple[str, bytes]:
    if isinstance(value, PlainText):
        return "text/plain; version=0.0.4; charset=utf-8", value.text.encode()
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return "application/json", body


async def _read_request(
    reader: asyncio.StreamReader, peer: Peer, *, writable: bool
) -> LocalRequest:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as exc:
        raise LocalError(400, "too_large", "request head too large") from exc
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[0] not in {"GET", "POST"}:
        raise LocalError(400, "bad_request", "want GET or POST PATH HTTP/1.1")
    length = 0
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            if not value.strip().isdecimal() or int(value) > BODY_BYTES_MAX:
                raise LocalError(400, "too_large", "Content-Length")
            length = int(value)
    url = urlsplit(words[1])
    return LocalRequest(
        method=words[0],
        path=url.path,
        query=dict(parse_qsl(url.query, max_num_fields=16)),
        body=await reader.readexactly(length) if length else b"",
        peer=peer,
        writable=writable,
    )


def _peer_of(writer: asyncio.StreamWriter) -> Peer:
    connection = writer.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", raw))


def _listen(path: Path) -> socket.socket:
    # A socket file left by a killed agent is dead: the data directory's lock keeps agents apart.
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.settimeout(0)
    return listener

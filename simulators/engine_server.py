"""The socket of an engine's stand-in: HTTP with JSON, and the lies that need no engine.

One engine is one server: when the engine dies, its socket goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec
from msgspec import Struct

from simulators import http_wire
from simulators.engine_lies import Lie, Lies

CONNECTIONS_MAX = 256
READ_BYTES = 65_536
FLOOD_BYTES = 4 << 20
DRIP_S = 1.0
_PAGE = b"<!DOCTYPE html><html><body><h1>It works!</h1></body></html>"
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
# The same whatever the engine would say; it is not even asked.
_INSTEAD = frozenset({Lie.HTML, Lie.GATEWAY, Lie.GARBAGE, Lie.SHAPE, Lie.FLOOD, Lie.ERROR})


class Reply(Struct, frozen=True):
    """One answer."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"


class EngineDiedError(Exception):
    """The engine ended while it worked on a request."""


class StandIn(Protocol):
    """An engine's stand-in, without its socket."""

    lies: Lies

    async def answer(self, request: http_wire.HttpRequest, lie: Lie | None) -> Reply:
        """Answer a request; raises EngineDiedError when the engine ends over it."""
        ...

    def die(self) -> None:
        """End, with everything that was in memory."""
        ...


def json_reply(value: object, status: int = 200) -> Reply:
    """Return a value as JSON."""
    return Reply(status, msgspec.json.encode(value))


class EngineServer:
    """Serves one stand-in.

    Args:
        engine: The stand-in. host: address to listen on.
    """

    def __init__(self, engine: StandIn, host: str = "127.0.0.1") -> None:
        self._engine = engine
        self._host = host
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.requests: list[str] = []
        self.died = asyncio.Event()
        self.port = 0

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[int]:
        """Serve until the block ends; port 0 takes a free one.

        Raises:
            OSError: The port is taken.
        """
        server = await asyncio.start_server(self._serve, self._host, port)
        self._server = server
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self.port
        finally:
            self.kill()

    def kill(self) -> None:
        """End the engine: memory, socket and connections, as SIGKILL does."""
        self._engine.die()
        if self._server is not None:
            self._server.close()
        for task, writer in list(self._open.items()):
            writer.transport.abort()
            if task is not asyncio.current_task():
                task.cancel()
        self.died.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._open[task] = writer
        try:
            await self._converse(reader, writer)
        except EngineDiedError:
            self.kill()
        except (OSError, asyncio.CancelledError):
            pass  # the client left, or the engine was killed: this task is the connection's own
        finally:
            del self._open[task]
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer = bytearray()
        while data := await reader.read(READ_BYTES):
            buffer += data
            while (request := http_wire.take_request(buffer)) is not None:
                if isinstance(request, http_wire.HttpRefused):
                    writer.write(_encoded(Reply(request.status), keep_alive=False))
                    return
                self.requests.append(f"{request.method} {request.path}")
                if not await self._one(request, writer):
                    return

    async def _one(self, request: http_wire.HttpRequest, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection goes on."""
        lie = self._engine.lies.about(request.path)
        if lie is Lie.DIES:
            raise EngineDiedError
        if lie is Lie.HANG:
            await asyncio.Event().wait()
        reply = _instead(lie) if lie in _INSTEAD else await self._engine.answer(request, lie)
        if lie is Lie.LOST:
            writer.transport.abort()
            return False
        data = _encoded(reply, keep_alive=request.keep_alive)
        if lie is Lie.CUT:
            data = data[: len(data) - max(1, len(reply.body) // 2)]
            writer.write(data)
            return False
        if lie is Lie.DRIP:
            for at in range(len(data)):
                writer.write(data[at : at + 1])
                await asyncio.sleep(DRIP_S)
        else:
            writer.write(data)
        await writer.drain()
        return request.keep_alive


def _instead(lie: Lie | None) -> Reply:
    """Return what comes instead of the engine's answer."""
    match lie:
        case Lie.HTML:
            return Reply(200, _PAGE, "text/html")
        case Lie.GATEWAY:
            return Reply(502, _PAGE, "text/html")
        case Lie.GARBAGE:
            return Reply(200, b'{"is_sleeping": tr')
        case Lie.ERROR:
            return json_reply({"error": "asked to fail"}, 500)
        case Lie.FLOOD:
            return Reply(200, b" " * FLOOD_BYTES)
        case _:
            return Reply(200, b'[["another", "shape"]]')


def _encoded(reply: Reply, *, keep_alive: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Other')}",
        f"Content-Length: {len(reply.body)}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    ]
    if reply.body:
        lines.append(f"Content-Type: {reply.content_type}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + reply.body

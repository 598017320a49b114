"""Peers that misbehave: raw HTTP, raw frames, raw lines, and a market that says anything."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

_DEADLINE_S = 10.0


class FakeMarket:
    """An HTTP source whose next answer is whatever the test has put into `answer`."""

    def __init__(self) -> None:
        self.answer = good_tick()
        self.asked = asyncio.Condition()
        self._count = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen; return the port."""
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def say(self, answer: bytes) -> None:
        """Give an answer until it was fetched twice, so that one was digested."""
        self.answer = answer
        async with asyncio.timeout(_DEADLINE_S), self.asked:
            until = self._count + 3
            await self.asked.wait_for(lambda: self._count >= until)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.answer)
            await writer.drain()
        except (OSError, EOFError):
            return  # the agent hung up first
        finally:
            writer.close()
        async with self.asked:
            self._count += 1
            self.asked.notify_all()


def http_200(body: bytes) -> bytes:
    """Wrap a body."""
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body


def good_tick(**changes: object) -> bytes:
    """Give a whole answer with a tick of now; NaN and Infinity come out as Python writes them."""
    now = datetime.now(UTC)
    tick: dict[str, Any] = {
        "feed": "hostile",
        "measured_at": now.isoformat(),
        "source_at": now.isoformat(),
        "price_usd_per_mwh": 25.0,
        "btc_price_usd": 65_000.0,
        "difficulty": 83e12,
        "subsidy_btc": 3.125,
        "fees_btc": 0.1,
    }
    return http_200(json.dumps(tick | changes).encode())


def hours_ago(hours: float) -> str:
    """Give an instant in the past as the wire writes it."""
    return (datetime.now(UTC) - timedelta(hours=hours)).isoformat()


class Reply:
    """Status, media type and JSON of an answer; `body` is None when it is no JSON."""

    def __init__(self, raw: bytes) -> None:
        head, _, body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        self.media_type = fields.get("content-type", "").partition(";")[0]
        if fields.get("transfer-encoding") == "chunked":
            body = _joined(body)
        self.body: Any = json.loads(body) if body else None

    @property
    def pointers(self) -> list[str]:
        """Return the fields that the problem names."""
        return [row["pointer"] for row in self.body.get("errors", [])]


def _joined(chunks: bytes) -> bytes:
    body = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        length = int(size, 16)
        body, chunks = body + rest[:length], rest[length + 2 :]
    return body


async def raw_http(
    port: int, method: str, path: str, body: bytes, headers: dict[str, str]
) -> Reply:
    """Send one request as it is and read the answer to the end of the connection."""
    lines = [f"{method} {path} HTTP/1.1", "Host: hub", "Connection: close"]
    given = {"Content-Length": str(len(body))} | headers
    lines += [f"{name}: {text}" for name, text in given.items()]
    async with asyncio.timeout(_DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            return Reply(await reader.read())
        finally:
            writer.close()


async def raw_unix(path: Path, data: bytes) -> bytes:
    """Send bytes to a Unix socket; return what comes back until it is closed or silent."""
    return await _raw(*await asyncio.open_unix_connection(path), data)


async def raw_tcp(port: int, data: bytes) -> bytes:
    """Send bytes to a port; return what comes back until it is closed or silent."""
    return await _raw(*await asyncio.open_connection("127.0.0.1", port), data)


async def _raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    got = b""
    try:
        writer.write(data)
        async with asyncio.timeout(1.0):
            while part := await reader.read(1 << 16):
                got += part
    except (TimeoutError, OSError):
        return got  # silent, or cut off while we were still sending
    finally:
        writer.close()
    return got

"""A small JSON client for the hub's API: keep-alive, bounded, deadlines; no library of the hub."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

from simulators.errors import SimulatorError

ANSWER_BYTES_MAX = 16 << 20
_DEADLINE_S = 10.0


class WebError(SimulatorError):
    """An answer that is not a success."""

    code: ClassVar[str] = "web"

    def __init__(self, status: int, body: object) -> None:
        super().__init__(f"status {status}: {body}")
        self.status = status
        self.body = body


class WebClient:
    """Talks to one HTTP server over one connection at a time.

    Args:
        host, port: of the server. token: bearer token, or empty.
    """

    def __init__(self, host: str, port: int, token: str = "") -> None:
        self._host = host
        self._port = port
        self.token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._lock = asyncio.Lock()

    async def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON of a GET."""
        return await self.ask("GET", path)

    async def post(self, path: str, body: object, **headers: str) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON of a POST; header names are given with underscores."""
        return await self.ask("POST", path, body, headers)

    async def delete(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON of a DELETE."""
        return await self.ask("DELETE", path)

    async def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Any:  # noqa: ANN401 - JSON
        """Send one request; a kept connection that has died is opened anew once.

        Raises:
            WebError: a status of 400 or above. OSError, TimeoutError: the server is away.
        """
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", f"Content-Length: {len(data)}"]
        if self.token:
            lines.append(f"Authorization: Bearer {self.token}")
        if data:
            lines.append("Content-Type: application/json")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in (headers or {}).items()]
        request = "\r\n".join([*lines, "", ""]).encode() + data
        async with self._lock, asyncio.timeout(_DEADLINE_S):
            status, answer = await self._exchange(request)
        value = json.loads(answer) if answer else None
        if status >= 400:
            raise WebError(status, value)
        return value

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        kept = self._streams is not None
        try:
            return await self._once(request)
        except (OSError, EOFError):
            if not kept:
                raise
            return await self._once(request)

    async def _once(self, request: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                self._host, self._port, limit=ANSWER_BYTES_MAX
            )
        try:
            return await self._talk(request, *self._streams)
        except BaseException:
            # Given up halfway, the rest of this answer would be taken for the next one's.
            await self.close()
            raise

    async def _talk(
        self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, bytes]:
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:])
        }
        if fields.get("transfer-encoding") == "chunked":
            return int(head[0].split(" ")[1]), await _read_chunks(reader)
        length = int(fields.get("content-length", "0"))
        body = await reader.readexactly(length)
        if fields.get("connection", "").lower() == "close":
            await self.close()
        return int(head[0].split(" ")[1]), body


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)

"""The connection to an engine, against engines that answer anything at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from edge_agent.host.errors import UpstreamError
from edge_agent.host.upstream import Upstream

OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def _engine(answer: bytes, *, stay: bool = False) -> AsyncIterator[Upstream]:
    """Run an engine that answers each request by the same bytes."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
                if not stay:
                    await writer.drain()
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        upstream = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/")
        yield upstream
        upstream.close()
        async with asyncio.timeout(3):
            await gone.wait()


async def _ask(upstream: Upstream) -> tuple[int, bytes]:
    connection = await upstream.acquire()
    try:
        connection.begin(b"GET", upstream.base + b"/x", [(b"host", upstream.authority)])
        head, body = await connection.head(0.3), b""
        while data := await connection.chunk(0.3):
            body += data
        return head.status, body
    finally:
        upstream.release(connection)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK + b"Content-Length: 2\r\n\r\nab", b"ab"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", b"ab"),
        (OK + b"\r\nab", b"ab"),  # its end is the end of the connection
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nab", b"ab"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
async def test_every_framing_is_read(answer: bytes, body: bytes) -> None:
    async with _engine(answer) as upstream:
        assert (await _ask(upstream))[1] == body


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "broken"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "garbage"),
        (OK + b"Content-Length: 5\r\n\r\nab", "broken"),
        (OK + b"Content-Length: many\r\n\r\nab", "garbage"),
        (OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "garbage"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "garbage"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", "broken"),
        (OK + b"X: " + b"x" * 100_000, "garbage"),
    ],
)  # fmt: skip
async def test_a_broken_answer_is_an_error_and_never_a_short_one(
    answer: bytes, reason: str
) -> None:
    async with _engine(answer) as upstream:
        with pytest.raises(UpstreamError) as caught:
            await _ask(upstream)
        assert caught.value.reason == reason


async def test_a_silent_engine_is_left_in_time() -> None:
    async with _engine(OK, stay=True) as upstream:
        with pytest.raises(UpstreamError) as caught:
            await _ask(upstream)
        assert caught.value.reason == "timeout"


async def test_connections_are_used_again_and_not_when_they_were_closed() -> None:
    async with _engine(OK + b"Content-Length: 2\r\n\r\nab", stay=True) as upstream:
        first = await upstream.acquire()
        upstream.release(first)
        assert await _ask(upstream) == (200, b"ab")
        used = await upstream.acquire()
        upstream.release(used)
        assert await _ask(upstream) == (200, b"ab")
    async with _engine(OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nab") as upstream:
        assert await _ask(upstream) == (200, b"ab")
        assert not upstream._idle


async def test_nobody_listens() -> None:
    with pytest.raises(UpstreamError) as caught:
        await Upstream("http://127.0.0.1:9").acquire()
    assert caught.value.reason == "unreachable"


@pytest.mark.parametrize("url", ["https://x", "127.0.0.1:80", "", "http://"])
def test_only_plain_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(ValueError, match="want http"):
        Upstream(url)

"""The connection to an engine, against engines that answer anything at all."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
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
        connection.end()
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


@asynccontextmanager
async def _scripted(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Upstream]:
    """Run an engine that does with each connection what a test wants, and count them by it."""

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(guarded, "127.0.0.1", 0) as server:
        upstream = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        yield upstream
        upstream.close()


async def test_an_answer_before_the_request_was_whole_leaves_no_connection_to_the_next() -> None:
    # The engine takes what comes next on it for the rest of that request's body.
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK + b"Content-Length: 2\r\n\r\nno")
            await reader.readexactly(10)

    async with _scripted(early) as upstream:
        connection = await upstream.acquire()
        connection.begin(b"POST", b"/x", [(b"content-length", b"10")])
        await connection.send(b"12345")
        assert (await connection.head(1.0)).status == 200
        while await connection.chunk(1.0):
            pass
        upstream.release(connection)  # as where the client gave up in the middle of its body
        assert await upstream.acquire() is not connection


async def test_an_answer_that_nobody_read_to_its_end_stalls_no_later_one() -> None:
    body = b"x" * 300_000

    async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK + b"Content-Length: 300000\r\n\r\n" + body)
            await writer.drain()

    async with _scripted(large) as upstream:
        connection = await upstream.acquire()
        connection.begin(b"GET", b"/x", [(b"host", b"x")])
        connection.end()
        await connection.head(1.0)
        async with asyncio.timeout(3):
            while not connection._complete:  # noqa: ASYNC110 - it gives no event for it
                await asyncio.sleep(0.005)
        upstream.release(connection)  # as where its client stalled
        assert await _ask(upstream) == (200, body)


async def test_when_an_engine_was_heard_is_when_its_bytes_came() -> None:
    async def two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: 2000001\r\n\r\n" + b"a")
        await reader.readuntil(b"more")
        writer.write(b"x" * 2_000_000)
        await reader.read()

    async with _scripted(two) as upstream:
        connection = await upstream.acquire()
        connection.begin(b"POST", b"/x", [(b"content-length", b"4")])
        await connection.head(1.0)
        await asyncio.sleep(0.2)
        assert await connection.chunk(1.0) == b"a"  # taken late, and heard when it came
        assert connection.silent_s >= 0.2
        await connection.send(b"more")
        await connection.chunk(1.0)
        assert connection.silent_s < 0.2
        await asyncio.sleep(0.2)  # more came than is kept: how old the rest is, nobody knows
        while await connection.chunk(1.0):
            assert connection.silent_s >= 0.15
        upstream.release(connection)


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
async def test_an_answer_that_nobody_asked_for_reaches_nobody(pause_s: float) -> None:
    mine, others = b"Content-Length: 4\r\n\r\nmine", b"Content-Length: 6\r\n\r\nothers"

    async def double(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + mine)
        if pause_s:
            await writer.drain()
            await asyncio.sleep(pause_s)
        writer.write(OK + others)
        await reader.read()

    async with _scripted(double) as upstream:
        assert await _ask(upstream) == (200, b"mine")
        await asyncio.sleep(4 * pause_s)
        assert await _ask(upstream) == (200, b"mine")


async def test_an_answer_without_a_length_that_is_reset_is_broken() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"\r\nhalf of the ans")
        await writer.drain()
        await asyncio.sleep(0.05)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with _scripted(reset) as upstream:
        with pytest.raises(UpstreamError) as caught:
            await _ask(upstream)
        assert caught.value.reason == "broken"


async def test_nobody_listens() -> None:
    with pytest.raises(UpstreamError) as caught:
        await Upstream("http://127.0.0.1:9").acquire()
    assert caught.value.reason == "unreachable"


@pytest.mark.parametrize("url", ["https://x", "127.0.0.1:80", "", "http://"])
def test_only_plain_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(ValueError, match="want http"):
        Upstream(url)

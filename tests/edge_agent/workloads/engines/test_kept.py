"""Connections that are used again while they are clean, and never at the cost of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from edge_agent.workloads.engines.kept import KEPT_MAX, KeptExchange
from firmware_bridges.errors import BridgeRefusedError, BridgeUnreachableError
from firmware_bridges.http.wire import decode_response, encode_request, is_complete
from firmware_bridges.transport import Deadlines

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = encode_request("GET", "/status", "x", proof=None, body=None, keep=True)
DEADLINES = Deadlines(connect_s=2.0, answer_s=2.0)


class Peer:
    """A server that tells its connections, and does with each request what it is told to."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.requests = 0
        self.answer: Callable[[int], bytes] = lambda _: OK
        self.last_words = b""
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.ends_after: Callable[[int], bool] = lambda _: False
        self.gate = asyncio.Event()
        self.gate.set()
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                number = self.requests
                await self.gate.wait()
                writer.write(self.answer(number))
                await writer.drain()
                if self.ends_after(number):
                    await self.may_end.wait()
                    writer.write(self.last_words)
                    await writer.drain()
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.ended.set()


@asynccontextmanager
async def _peer() -> AsyncIterator[tuple[Peer, KeptExchange]]:
    peer, carry = Peer(), KeptExchange()
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer, carry
    finally:
        carry.close()
        server.close()


async def _ask(carry: KeptExchange, port: int) -> bytes:
    answer = await carry("127.0.0.1", port, REQUEST, is_complete=is_complete, deadlines=DEADLINES)
    return decode_response(answer).body


async def test_one_connection_serves_one_request_after_another() -> None:
    async with _peer() as (peer, carry):
        assert [await _ask(carry, peer.port) for _ in range(5)] == [b"{}"] * 5
        assert (peer.connections, peer.requests) == (1, 5)


async def test_requests_at_once_have_connections_of_their_own_and_few_are_kept() -> None:
    async with _peer() as (peer, carry):
        peer.gate.clear()
        several = [asyncio.create_task(_ask(carry, peer.port)) for _ in range(KEPT_MAX + 2)]
        while peer.requests < len(several):  # noqa: ASYNC110 - the peer tells no event
            await asyncio.sleep(0)
        peer.gate.set()
        assert await asyncio.gather(*several) == [b"{}"] * len(several)
        assert peer.connections == KEPT_MAX + 2
        assert len(carry._idle) == KEPT_MAX


async def test_a_connection_that_was_closed_meanwhile_is_not_used() -> None:
    async with _peer() as (peer, carry):
        peer.ends_after = lambda number: number == 1
        await _ask(carry, peer.port)
        await peer.ended.wait()
        assert await _ask(carry, peer.port) == b"{}"
        assert (peer.connections, peer.requests) == (2, 2)


async def test_what_a_server_says_before_it_closes_is_no_answer_to_the_next_request() -> None:
    async with _peer() as (peer, carry):
        peer.ends_after = lambda number: number == 1
        peer.last_words = b"HTTP/1.1 408 Late\r\nContent-Length: 4\r\n\r\nlate"
        peer.may_end.clear()
        await _ask(carry, peer.port)
        peer.may_end.set()
        await peer.ended.wait()
        assert await _ask(carry, peer.port) == b"{}"
        assert peer.connections == 2


async def test_one_that_breaks_without_an_answer_is_asked_once_more_on_a_new_one() -> None:
    async with _peer() as (peer, carry):
        peer.answer = lambda number: b"" if number == 2 else OK
        peer.ends_after = lambda number: number == 2
        await _ask(carry, peer.port)
        assert await _ask(carry, peer.port) == b"{}"
        assert (peer.connections, peer.requests) == (2, 3)


async def test_a_new_connection_that_breaks_is_not_asked_again() -> None:
    async with _peer() as (peer, carry):
        peer.answer, peer.ends_after = (lambda _: b""), (lambda _: True)
        with pytest.raises(BridgeUnreachableError):
            await _ask(carry, peer.port)
        assert peer.requests == 1


async def test_nobody_listens_is_told_also_where_a_connection_stood() -> None:
    async with _peer() as (peer, carry):
        peer.ends_after = lambda _: True
        await _ask(carry, peer.port)
        await peer.ended.wait()
        gone = peer.port
    with pytest.raises(BridgeRefusedError):
        await _ask(carry, gone)
    carry.close()


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b"\r\nContent", b"\r\nConnection: close\r\nContent"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        OK + b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["says-close", "http-1.0", "surplus", "chunks"],
)
async def test_a_connection_that_is_not_clean_is_closed(answer: bytes) -> None:
    async with _peer() as (peer, carry):
        peer.answer = lambda _: answer
        assert await _ask(carry, peer.port) == b"{}"
        assert not carry._idle
        assert await _ask(carry, peer.port) == b"{}"
        assert peer.connections == 2


async def test_a_caller_that_leaves_takes_its_connection_along() -> None:
    async with _peer() as (peer, carry):
        peer.gate.clear()
        asked = asyncio.create_task(_ask(carry, peer.port))
        while not peer.requests:  # noqa: ASYNC110 - the peer tells no event
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert not carry._idle
        peer.gate.set()
        await peer.ended.wait()

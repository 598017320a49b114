"""The listener against clients of every kind: what it refuses, and what it must not break."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.host import http_server
from edge_agent.workloads.host_driver import HostDriver
from tests.edge_agent.host.world import Client, HostWorld, client, until

CHAT = "/i/i1/v1/chat/completions"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def _serving(world: HostWorld) -> AsyncIterator[HostDriver]:
    async with world.engines(), world.host(), world.driver() as driver:
        await world.serve(driver)
        yield driver


async def _one(port: int) -> tuple[int, dict[str, str], bytes]:
    async with client(port) as one:
        await one.post(CHAT, {})
        return await one.answer()


async def _rest(one: Client) -> bytes:
    async with asyncio.timeout(5):
        return await one.reader.read()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b"HTTP/1.1 408"),
        (b"POST /i/i1/v1/chat/completions HTTP/1.1\r\nHost:", b"HTTP/1.1 408"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 9_000 + b"\r\n\r\n", b"HTTP/1.1 431"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", b"HTTP/1.1 431"),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\n\r\n", b"HTTP/1.1 431"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\n" + CHUNKED, b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nX : y\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),  # RFC 9112 section 3.2
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", b"HTTP/1.1 400"),  # section 5.2
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x, chunked\r\n\r\n", b"HTTP/1.1 501"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 3_000_000, b"HTTP/1.1 431"),
    ],
)  # fmt: skip
async def test_hostile_heads_end_their_connection(
    tmp_path: Path, sent: bytes, answer: bytes
) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port) as one:
        one.writer.write(sent)
        async with asyncio.timeout(3):
            assert (await one.reader.read()).startswith(answer)
        assert (await _one(world.port))[0] == 200


async def test_a_head_that_never_ends_is_refused_early(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port) as one:
        one.writer.write(b"GET / HTTP/1.1\r\nX: ")
        async with asyncio.timeout(3):
            for _ in range(3):
                one.writer.write(b"x" * 4_096)
                await asyncio.sleep(0.02)
            assert (await one.reader.read()).startswith(b"HTTP/1.1 431")


async def test_too_many_connections_are_turned_away(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    world.http = type(world.http)(connections_max=2)
    async with _serving(world), client(world.port), client(world.port), client(world.port) as last:
        async with asyncio.timeout(3):
            assert (await last.reader.read()).startswith(b"HTTP/1.1 503")


async def test_an_early_request_does_not_harm_the_one_under_way(tmp_path: Path) -> None:
    # RFC 9112 section 9.3.2: the client repeats what was not answered on another connection.
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port) as one:
        await one.post(CHAT, {"n": 1, "delay_s": 0.1})
        await one.post(CHAT, {"n": 1, "delay_s": 0.1})
        status, headers, body = await one.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert json.loads(body)["usage"]["completion_tokens"] == 1
        assert await _rest(one) == b""
        assert world.service.refused["pipelined"] == 1


@pytest.mark.parametrize("more", [b"GET / HTTP/1.1\r\nX: ", b"\x16\x03\x01", b"G" * 9_000])
async def test_nothing_is_written_into_an_answer_under_way(tmp_path: Path, more: bytes) -> None:
    world = HostWorld(tmp_path)  # its heads have 0.3 s, the stream takes 0.5 s
    async with _serving(world), client(world.port) as one:
        await one.post(CHAT, {"stream": True, "n": 10, "delay_s": 0.05})
        assert (await one.head())[0] == 200
        one.writer.write(more)
        body = b"".join([data async for data in _chunks(one)])
        assert body.endswith(b"data: [DONE]\n\n")
        assert await _rest(one) == b""


async def _chunks(one: Client) -> AsyncIterator[bytes]:
    while data := await one.chunk():
        yield data


async def test_an_empty_line_may_stand_before_a_request_and_has_its_time(tmp_path: Path) -> None:
    # RFC 9112 section 2.2.
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port) as one:
        await one.post(CHAT, {"n": 1})
        assert (await one.answer())[0] == 200
        one.writer.write(b"\r\n")
        await asyncio.sleep(0.05)
        await one.post(CHAT, {"n": 1})
        assert (await one.answer())[0] == 200
        for _ in range(20):  # longer than a head may take
            one.writer.write(b"\r\n")
            await asyncio.sleep(0.03)
        assert (await _rest(one)).startswith(b"HTTP/1.1 408")


async def test_an_upgrade_that_is_offered_is_not_taken(tmp_path: Path) -> None:
    # RFC 9110 section 7.8. Some clients offer HTTP/2 so with their first request.
    world = HostWorld(tmp_path)
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    async with _serving(world), client(world.port) as one:
        for headers in (offer, (), offer):
            await one.post(CHAT, {"n": 2}, *headers)
            status, _, body = await one.answer()
            assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 2)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(offer) + "\r\n"
        one.writer.write(head.encode() + CHUNKED + b'7\r\n{"n":')
        await asyncio.sleep(0.02)
        one.writer.write(b" 1\r\n1\r\n}\r\n0\r\n\r\n")
        assert (await one.answer())[0] == 200
        one.writer.write(b"GET /i/i1/v1/models HTTP/1.1\r\nHost: x\r\n"
                         b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")  # fmt: skip
        assert (await one.answer())[0] == 200
        assert not {"upgrade", "http2-settings"} & set(world.server.seen[-1][2])


async def test_trailers_are_no_headers_and_have_bounds(tmp_path: Path) -> None:
    # RFC 9110 section 6.5.1.
    world = HostWorld(tmp_path)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n".encode() + CHUNKED + b"2\r\n{}\r\n0\r\n"
    async with _serving(world):
        async with client(world.port) as one:
            one.writer.write(head + b"X-Late: 1\r\nAuthorization: Bearer x\r\n\r\n")
            assert (await one.answer())[0] == 200
            assert "x-late" not in world.server.seen[-1][2]
        async with client(world.port) as one:
            one.writer.write(head + b"X-Late: yes\r\n" * 2_000)
            assert (await _rest(one)).startswith(b"HTTP/1.1 431")


async def test_who_expects_with_http_1_0_is_not_told_to_continue(tmp_path: Path) -> None:
    # RFC 9110 section 10.1.1.
    world = HostWorld(tmp_path)
    async with _serving(world):
        for version, told in (("1.0", False), ("1.1", True)):
            async with client(world.port) as one:
                head = f"POST {CHAT} HTTP/{version}\r\nHost: x\r\nExpect: 100-continue\r\n"
                one.writer.write(f"{head}Connection: close\r\nContent-Length: 2\r\n\r\n".encode())
                await asyncio.sleep(0.05)
                one.writer.write(b"{}")
                assert (await _rest(one)).startswith(b"HTTP/1.1 100") is told


async def test_a_last_answer_that_nobody_takes_keeps_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(host: str, port: int) -> socket.socket:
        listener = http_server.bind(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        return listener

    monkeypatch.setattr(http_server, "LINGER_S", 0.2)
    monkeypatch.setattr("tests.edge_agent.host.world.bind", small)
    world, size = HostWorld(tmp_path), 1_000_000
    async with _serving(world), client(world.port, small=True) as one:
        one.reads(on=False)
        await one.post(CHAT, {"n": size}, "Connection: close")
        tally = world.service.ledger.find("i1").tally  # type: ignore[union-attr] # it is there
        await until(lambda: tally.tokens_out == size)
        await asyncio.sleep(0.4)
        one.reads(on=True)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await one.answer()

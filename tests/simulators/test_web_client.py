import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from simulators.web_client import WebClient, WebError


@asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[tuple[WebClient, list[bytes]]]:
    heard: list[bytes] = []
    queue = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while queue:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            heard.append(head + await reader.readexactly(length))
            answer = queue.pop(0)
            writer.write(answer)
            if b"Connection: close" in answer:
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        client = WebClient("127.0.0.1", server.sockets[0].getsockname()[1], token="abc")
        yield client, heard
        await client.close()


def ok(body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), extra, body)


async def test_a_kept_connection_serves_many_requests() -> None:
    async with serving(ok(b"[1]"), ok(b"[2]")) as (client, heard):
        assert await client.get("/a") == [1]
        assert await client.post("/b", {"x": 1}, Idempotency_Key="k") == [2]
    assert heard[0].startswith(b"GET /a HTTP/1.1\r\n")
    assert b"Authorization: Bearer abc\r\n" in heard[0]
    assert b"Idempotency-Key: k\r\n" in heard[1]
    assert heard[1].endswith(b'{"x": 1}')


async def test_a_connection_that_died_is_opened_anew() -> None:
    async with serving(ok(b"1", b"Connection: close\r\n"), ok(b"2")) as (client, _):
        assert (await client.get("/"), await client.get("/")) == (1, 2)


async def test_an_answer_given_up_halfway_is_not_the_next_ones() -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n1"
    async with serving(half, ok(b"2")) as (client, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.get("/")
        assert await client.get("/") == 2


async def test_chunks_are_put_together() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n"
    async with serving(chunked) as (client, _):
        assert await client.get("/") == [1]


async def test_an_error_status_is_raised_with_its_body() -> None:
    answer = b'HTTP/1.1 403 Forbidden\r\nContent-Length: 12\r\n\r\n{"code":"x"}'
    async with serving(answer) as (client, _):
        with pytest.raises(WebError) as caught:
            await client.get("/")
    assert (caught.value.status, caught.value.body) == (403, {"code": "x"})

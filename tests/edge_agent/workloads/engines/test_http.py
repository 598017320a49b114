"""The HTTP client of engines: what each kind of answer means for an act."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from edge_agent.workloads.engines.evidence import Deadline, until, within
from edge_agent.workloads.engines.http import EngineHttp
from edge_agent.workloads.engines.vllm import Paused
from edge_agent.workloads.errors import (
    DriverRefusedError,
    DriverUnavailableError,
    NobodyListensError,
    Refusal,
)

LONG_S = 5.0


@asynccontextmanager
async def _answering(data: bytes) -> AsyncIterator[tuple[EngineHttp, list[bytes]]]:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(data)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield EngineHttp(f"http://127.0.0.1:{port}/base/", "t0ken"), asked
    finally:
        server.close()


def _head(status: int, body: bytes, kind: str = "application/json") -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def test_the_request_names_path_and_token() -> None:
    async with _answering(_head(200, b'{"a": 1}')) as (api, asked):
        assert await api.get("/x?y=1", dict[str, int], Deadline("x", LONG_S)) == {"a": 1}
        head = asked[0].decode()
        assert head.startswith("GET /base/x?y=1 HTTP/1.1\r\n")
        assert "\r\nAuthorization: Bearer t0ken\r\n" in head


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, b"", Refusal.DENIED),
        (403, b"{}", Refusal.DENIED),
        (404, b'{"detail":"Not Found"}', Refusal.UNSUPPORTED),
        (405, b"", Refusal.UNSUPPORTED),
        (409, b"", Refusal.BUSY),
        (503, b"loading", Refusal.BUSY),
        (422, b"", Refusal.BAD_REQUEST),
        (302, b"", Refusal.BAD_REQUEST),
        (500, b"", Refusal.ENGINE_ERROR),
        (500, b'{"error":"CUDA out of memory. Tried"}', Refusal.OUT_OF_MEMORY),
        (200, b"not json", Refusal.NOT_API),
        (200, b'{"a": "text"}', Refusal.NOT_API),
        (200, b"<!DOCTYPE html><p>hello", Refusal.NOT_API),
        (200, b"\n  <HTML>", Refusal.NOT_API),
        (200, b'{"a": NaN}', Refusal.NOT_API),
    ],
)
async def test_a_refusal_has_its_code(status: int, body: bytes, code: Refusal) -> None:
    async with _answering(_head(status, body)) as (api, _):
        with pytest.raises(DriverRefusedError) as refused:
            await api.get("/x", dict[str, int], Deadline("x", LONG_S))
    assert refused.value.answer_code == code
    assert refused.value.detail.startswith(("GET /base/x: ", "/base/x: "))


async def test_json_without_bottom_is_no_answer_of_the_api() -> None:
    async with _answering(_head(200, b'{"x": ' + b"[" * 50_000)) as (api, _):
        with pytest.raises(DriverRefusedError) as refused:
            await api.get("/is_sleeping", Paused, Deadline("x", LONG_S))
    assert refused.value.answer_code == Refusal.NOT_API


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        _head(200, b" " * (2 << 20)),
        _head(502, b"<html>bad gateway"),
        _head(504, b"{}"),
    ],
    ids=["nothing", "cut", "no-http", "2-mib", "502", "504"],
)
async def test_what_is_no_whole_answer_leaves_the_act_unknown(data: bytes) -> None:
    async with _answering(data) as (api, _):
        with pytest.raises(DriverUnavailableError):
            await api.act("/x", Deadline("x", LONG_S))


async def test_a_refused_connection_is_told_apart_from_silence() -> None:
    async with _answering(b"") as (api, _):
        pass  # nobody listens there any more
    with pytest.raises(NobodyListensError):
        await api.act("/x", Deadline("x", LONG_S))


async def test_words_of_an_engine_are_bounded_and_printable() -> None:
    body = b"\x1b[31m" + b"long " * 10_000
    async with _answering(_head(500, body, "text/plain")) as (api, _):
        with pytest.raises(DriverRefusedError) as refused:
            await api.act("/x", Deadline("x", LONG_S))
    assert len(refused.value.detail) < 300
    assert refused.value.detail.isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "https://127.0.0.1",
        "http://",
        "http://127.0.0.1:99999",
        "ftp://localhost",
        "http://192.0.2.1:8000",
        "http://engine.example",
    ],
)
def test_what_is_no_address_on_this_machine_is_refused(url: str) -> None:
    with pytest.raises(DriverRefusedError):
        EngineHttp(url)


def test_a_token_cannot_add_a_header() -> None:
    with pytest.raises(DriverRefusedError):
        EngineHttp("http://127.0.0.1", "a\r\nX: y")


async def test_evidence_that_stays_away_is_a_refusal_and_silence_is_not() -> None:
    async def never() -> str:
        return "it is not"

    with pytest.raises(DriverRefusedError, match=r"act: it is not after 0\.02 s"):
        async with within("act", 0.02) as deadline:
            await until(never, deadline)
    with pytest.raises(DriverUnavailableError, match=r"act: not done in 0\.02 s"):
        async with within("act", 0.02):
            await asyncio.Event().wait()

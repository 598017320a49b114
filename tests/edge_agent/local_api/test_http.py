import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.local_api.http import LocalError, LocalRequest, LocalServer


async def answer(request: LocalRequest) -> object:
    if request.path == "/gone":
        raise LocalError(404, "not_found", "no such thing")
    if request.method == "POST" and not request.writable:
        raise LocalError(403, "not_allowed", "use the control socket")
    return {"query": request.query, "body": request.body.decode(), "uid": request.peer.uid}


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[Path, Path]]:
    view, control = tmp_path / "view.sock", tmp_path / "ctl.sock"
    view.write_bytes(b"")  # what a killed agent leaves behind
    ready = asyncio.Event()
    task = asyncio.create_task(LocalServer(view, control, answer).run(ready.set))
    async with asyncio.timeout(5):
        await ready.wait()
    try:
        yield view, control
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(path: Path, request: bytes) -> bytes:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request)
        data = await reader.read()
        writer.close()
        return data


async def test_a_request_is_answered_with_who_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as (view, _):
        data = await ask(view, b"GET /x?a=1&b=%2F HTTP/1.1\r\nHost: a\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"a":"1"' in data
    assert b'"b":"/"' in data
    assert f'"uid":{os.getuid()}'.encode() in data


async def test_acts_come_by_the_control_socket_only(tmp_path: Path) -> None:
    post = b"POST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
    async with serving(tmp_path) as (view, control):
        assert b"403" in (await ask(view, post)).split(b"\r\n")[0]
        assert b'"body":"hi"' in await ask(control, post)


async def test_sockets_are_closed_to_strangers(tmp_path: Path) -> None:
    async with serving(tmp_path) as sockets:
        modes = [stat.S_IMODE(path.stat().st_mode) for path in sockets]
    assert modes == [0o660, 0o660]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"DELETE / HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_bad_requests_are_refused_and_the_server_lives(
    tmp_path: Path, request_bytes: bytes
) -> None:
    async with serving(tmp_path) as (view, _):
        assert (await ask(view, request_bytes)).startswith(b"HTTP/1.1 400")
        assert (await ask(view, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_an_error_carries_its_code(tmp_path: Path) -> None:
    async with serving(tmp_path) as (view, _):
        data = await ask(view, b"GET /gone HTTP/1.1\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 404")
    assert b'"error":"not_found"' in data

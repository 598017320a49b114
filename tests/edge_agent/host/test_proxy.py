"""The proxy over real sockets: what passes, what waits, what is cut, and who is hostile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import structs

from edge_agent.workloads.errors import DriverRefusedError
from edge_agent.workloads.host_driver import HostDriver
from edge_agent.workloads.ports import InstanceSpec
from protocol.node import LeaseKeys
from tests.edge_agent.host.world import CLOCK, Client, HostWorld, client, get, until

CHAT = "/i/i1/v1/chat/completions"


@asynccontextmanager
async def _serving(world: HostWorld) -> AsyncIterator[HostDriver]:
    async with world.engines(), world.host(), world.driver() as driver:
        await world.serve(driver)
        yield driver


def _error(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


async def test_an_answer_passes_and_is_metered(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port) as one:
        for path in (CHAT, "/l/w1.1/v1/chat/completions?a=b"):
            await one.post(path, {"n": 5}, "Authorization: Bearer mine", "X-Hop: 1", "TE: trailers",
                           "Connection: X-Hop", "Cookie: a=b")  # fmt: skip
            status, headers, body = await one.answer()
            assert (status, headers["content-type"]) == (200, "application/json")
            assert json.loads(body)["choices"][0]["message"]["content"] == "xxxxx"
        _, path, headers = world.server.seen[-1]
        assert path == "/v1/chat/completions?a=b"
        assert headers["authorization"] == "Bearer secret"
        assert not {"x-hop", "te", "connection", "cookie"} & set(headers)
        assert headers["accept-encoding"] == "identity"  # else it could not be metered
        assert headers["via"] == "1.1 hcp"
        tally = world.service.ledger.find("i1").tally  # type: ignore[union-attr] # it is there
        assert (tally.requests, tally.tokens_in, tally.tokens_out) == (2, 14, 10)
        assert (tally.failed, tally.uncounted) == (0, 0)


@pytest.mark.parametrize("uncounted", [0, 1])
async def test_a_stream_passes_event_by_event(tmp_path: Path, uncounted: int) -> None:
    world, usage = HostWorld(tmp_path), not uncounted
    async with _serving(world), client(world.port) as one:
        await one.post(CHAT, {"stream": True, "n": 4, "delay_s": 0.05, "usage": usage})
        status, headers = await one.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert "x-hop" not in headers
        assert b"t0" in await one.chunk()  # while the engine is still at work on the rest
        assert world.service.slots["gpu0"].doors["i1"].inside == 1
        rest = b""
        while data := await one.chunk():
            rest += data
        assert rest.endswith(b"data: [DONE]\n\n")
        await until(lambda: world.service.slots["gpu0"].doors["i1"].inside == 0)
        tally = world.service.ledger.find("i1").tally  # type: ignore[union-attr] # it is there
        assert (tally.tokens_out, tally.uncounted) == (4, uncounted)


async def test_only_known_paths_pass(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world):
        asked = len(world.server.seen)
        for path, status in (
            ("/i/i1/v1/models", 200),
            ("/i/i1/sleep", 404),
            ("/i/i1/v1/../sleep", 404),
            ("/i/i1/v1/%2e%2e/sleep", 404),
            ("/i/i1/v1/chat/completions", 405),
            ("/i/other/v1/models", 404),
            ("/l/other/v1/models", 404),
            ("/", 404),
            ("/metrics", 404),
        ):
            assert (await get(world.port, path))[0] == status, path
        paths = [path for _, path, _ in world.server.seen[asked:]]
        assert paths == ["/v1/models"]
        tally = world.service.ledger.find("i1").tally  # type: ignore[union-attr] # it is there
        assert tally.uncounted == 0  # a list of models has no tokens
        _, metrics = await get(world.admin_port, "/metrics")
        for reason, count in (("no_path", 6), ("unknown", 2)):
            line = f'hcp_host_requests_refused_total{{reason="{reason}"}} {count}\n'
            assert line.encode() in metrics


async def test_head_is_get_without_a_body_and_what_is_allowed_is_said(tmp_path: Path) -> None:
    # RFC 9110 sections 9.3.2, 10.2.1 and 6.6.1.
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port) as one:
        for method, path, status, allow in (
            ("HEAD", "/i/i1/v1/models", 200, None),
            ("DELETE", "/i/i1/v1/models", 405, "GET, HEAD"),
            ("GET", CHAT, 405, "POST"),
        ):
            one.writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            code, headers = await one.head()
            assert (code, headers.get("allow")) == (status, allow)
            assert headers["date"].endswith(" GMT")
            if method != "HEAD":
                await one.reader.readexactly(int(headers["content-length"]))
        assert world.server.seen[-1][0] == "GET"


@pytest.mark.parametrize("end", ["length", "chunks", "close"])
async def test_tokens_are_counted_however_an_answer_is_framed(tmp_path: Path, end: str) -> None:
    world = HostWorld(tmp_path)
    body = b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    framed = {
        "length": b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
        "chunks": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        "close": b"\r\n" + body,
    }[end]
    async with _serving(world):
        world.server.raw = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framed
        status, headers, given = await _one(world.port)
        assert (status, given, headers["content-length"]) == (200, body, str(len(body)))
        tally = world.service.ledger.find("i1").tally  # type: ignore[union-attr] # it is there
        assert (tally.tokens_in, tally.tokens_out, tally.uncounted) == (3, 4, 0)


async def test_json_that_is_not_short_passes_in_pieces(tmp_path: Path) -> None:
    world, body = HostWorld(tmp_path), b"[" + b" " * 3_000_000 + b"]"
    async with _serving(world):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
        world.server.raw = head + body
        status, headers, given = await _one(world.port)
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert given == body
        tally = world.service.ledger.find("i1").tally  # type: ignore[union-attr] # it is there
        assert (tally.failed, tally.uncounted) == (0, 1)


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_passes(tmp_path: Path, status: int) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port) as one:
        world.server.raw = b"HTTP/1.1 %d X\r\nETag: e\r\nContent-Length: 5\r\n\r\n" % status
        await one.post(CHAT, {})
        code, headers = await one.head()
        assert (code, headers["etag"]) == (status, "e")
        world.server.raw = b""
        await one.post(CHAT, {"n": 1})
        assert (await one.answer())[0] == 200
        tally = world.service.ledger.find("i1").tally  # type: ignore[union-attr] # it is there
        assert (tally.failed, tally.uncounted) == (0, 0)


async def test_an_error_is_read_by_who_is_still_sending_and_holds_up_no_drain(
    tmp_path: Path,
) -> None:
    # RFC 9112 section 9.6: an end with bytes unread would reset the connection, and the answer.
    world, size = HostWorld(tmp_path), 3_000_000
    async with _serving(world):
        for path, code in ((CHAT, 413), ("/i/other/v1/score", 404)):
            async with client(world.port) as one:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
                one.writer.write(head.encode())
                status, headers, _ = await one.answer()
                assert (status, headers["connection"]) == (code, "close")
                assert world.service.slots["gpu0"].doors["i1"].inside == 0
                one.writer.write(b"x" * size)
                async with asyncio.timeout(5):
                    await one.writer.drain()
                    assert await one.reader.read() == b""  # no reset


async def test_a_request_that_a_drain_cuts_while_it_is_sent_is_told_to_come_again(
    tmp_path: Path,
) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world) as driver, client(world.port) as one:
        one.writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
        door = world.service.slots["gpu0"].doors["i1"]
        await until(lambda: door.inside == 1)
        await driver.gate("gpu0", "i1", is_open=False)
        status, headers, body = await one.answer()
        assert (status, headers["retry-after"], _error(body)) == (503, "1", "preempted")
        assert door.inside == 0


async def test_a_lease_that_is_held_here_waits_for_its_first_gate(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    world.door = structs.replace(world.door, hold_s=2.0)
    path = "/l/w1.1/v1/chat/completions"
    async with world.engines(), world.host(), world.driver() as driver:
        assert (await get(world.port, "/l/w1.1/v1/models"))[0] == 404  # nobody told of it
        await driver.keys((LeaseKeys(lease_id="w1.1", keys=()),))
        async with client(world.port) as one:
            await one.post(path, {"n": 1})
            await until(lambda: world.service.doors.waiting == 1)
            await world.serve(driver)
            assert (await one.answer())[0] == 200
        assert (await get(world.port, "/l/w2.1/v1/models"))[0] == 404


async def test_a_shut_gate_holds_for_a_while_then_says_when_to_come_again(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await until(lambda: world.service.slots["gpu0"].mining is False)
        spec = InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=1)
        await driver.prepare("gpu0", spec)
        async with client(world.port) as one:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            await one.post(CHAT, {})
            status, headers, body = await one.answer()
            assert (status, headers["retry-after"], _error(body)) == (503, "1", "gate_shut")
            assert 0.2 <= loop.time() - began_s < 1.0
        async with client(world.port) as one:
            await driver.activate("gpu0", "i1")
            await one.post(CHAT, {})
            await until(lambda: world.service.doors.waiting == 1)
            await driver.gate("gpu0", "i1", is_open=True)
            assert (await one.answer())[0] == 200


async def test_the_queue_before_a_gate_is_bounded(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await driver.prepare("gpu0", InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=1))
        answers = await asyncio.gather(*(_one(world.port) for _ in range(10)))
        codes = sorted(_error(body) for _, _, body in answers)
        assert codes == ["busy"] * 6 + ["gate_shut"] * 4


async def _one(
    port: int, body: dict[str, object] | None = None
) -> tuple[int, dict[str, str], bytes]:
    async with client(port) as one:
        await one.post(CHAT, body or {})
        return await one.answer()


async def test_a_drain_lets_requests_finish_and_cuts_what_takes_too_long(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world) as driver, client(world.port) as short, client(world.port) as long:
        await short.post(CHAT, {"stream": True, "n": 3, "delay_s": 0.05})
        await long.post(CHAT, {"stream": True, "n": 100, "delay_s": 0.05})
        assert (await short.head())[0] == (await long.head())[0] == 200
        shut = await driver.gate("gpu0", "i1", is_open=False)
        assert not shut.open
        assert shut.served_ns >= 250_000_000  # it served on through the drain
        done = b"".join([data async for data in _chunks(short)])
        assert done.endswith(b"[DONE]\n\n")
        cut = b"".join([data async for data in _chunks(long)])
        *_, event = cut.strip().split(b"\n\n")
        assert event.startswith(b"event: error\ndata: ")
        assert _error(event.split(b"data: ", 1)[1]) == "preempted"
        status, _, body = await _one(world.port)
        assert (status, _error(body)) == (410, "ended")
        await until(lambda: world.server.aborted == 1)
        close = world.log()[-1]  # it tells what the one that was cut got, too
        assert (close.t, close.requests) == ("close", 2)
        assert close.tokens_out == 3 + cut.count(b'"delta"')


async def _chunks(one: Client) -> AsyncIterator[bytes]:
    while data := await one.chunk():
        yield data


async def test_a_gate_whose_end_cannot_be_logged_serves_nobody_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world) as driver, client(world.port) as one:
        await one.post(CHAT, {"stream": True, "n": 500, "delay_s": 0.02})
        assert (await one.head())[0] == 200

        def full(_: object) -> None:
            raise OSError("no space")

        with monkeypatch.context() as disk:
            disk.setattr(world.service.ledger, "_log", full)
            with pytest.raises(DriverRefusedError, match="no space"):
                await driver.gate("gpu0", "i1", is_open=False)
        body = b"".join([data async for data in _chunks(one)])
        assert _error(body.rsplit(b"data: ", 1)[1]) == "preempted"
        shut = await driver.gate("gpu0", "i1", is_open=False)
        assert (world.log()[-1].t, world.log()[-1].served_ns) == ("close", shut.served_ns)


async def test_a_host_that_is_asked_to_stop_says_so_to_its_streams(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port) as one:
        await one.post(CHAT, {"stream": True, "n": 100, "delay_s": 0.05})
        assert (await one.head())[0] == 200
        await world.service.close_gates()
        body = b"".join([data async for data in _chunks(one)])
        assert _error(body.rsplit(b"data: ", 1)[1]) == "preempted"
        assert world.log()[-1].t == "close"


async def test_a_host_that_is_asked_to_stop_turns_away_who_waits_and_who_comes(
    tmp_path: Path,
) -> None:
    world = HostWorld(tmp_path)
    world.door = structs.replace(world.door, hold_s=4.0)
    async with world.engines(), world.host(), world.driver() as driver:
        await driver.prepare("gpu0", InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=1))
        async with client(world.port) as one:
            await one.post(CHAT, {})
            await until(lambda: world.service.doors.waiting == 1)
            await world.service.close_gates()
            for status, headers, body in (await one.answer(), await _one(world.port)):
                assert (status, headers["retry-after"]) == (503, "1")
                assert _error(body) == "host_restarts"


async def test_kept_streams_go_on_behind_the_next_gate_of_their_lease(tmp_path: Path) -> None:
    world = HostWorld(tmp_path, outlive="keep")
    async with _serving(world) as driver, client(world.port) as one:
        await one.post(CHAT, {"stream": True, "n": 30, "delay_s": 0.03})
        assert (await one.head())[0] == 200
        await driver.gate("gpu0", "i1", is_open=False)
        await driver.stop("gpu0", "i1")
        await driver.mine("gpu0", on=True)
        counted = world.service.ledger.find("i1").tally  # type: ignore[union-attr] # it is there
        assert counted.failed == 0
        await world.serve(driver, "i2")
        body = b"".join([data async for data in _chunks(one)])
        assert body.count(b"data: ") == 31
        assert body.endswith(b"[DONE]\n\n")
        before = next(line for line in world.log() if line.t == "close").tokens_out
        assert 0 < before < 30
        rest = world.service.ledger.find("i2").tally  # type: ignore[union-attr] # it is there
        await until(lambda: rest.tokens_out == 30 - before)
        assert counted.tokens_out == before


@pytest.mark.parametrize("engine", ["gave more", "gave no more"])
@pytest.mark.parametrize("ends", ["in time", "with its lease", "with its client"])
async def test_a_kept_stream_is_not_held_for_ever(tmp_path: Path, ends: str, engine: str) -> None:
    world = HostWorld(tmp_path, outlive="keep")
    world.door = structs.replace(world.door, keep_s=0.3 if ends == "in time" else 60.0)
    async with _serving(world) as driver, client(world.port) as one:
        await one.post(CHAT, {"stream": True, "n": 30, "delay_s": 0.03})
        assert (await one.head())[0] == 200
        await driver.gate("gpu0", "i1", is_open=False)
        door = world.service.slots["gpu0"].doors["i1"]
        (passage,) = door._inside
        if engine == "gave more":  # between the gate and its pause: that is held back
            await until(lambda: bool(passage._flowing and passage._flowing._waiters))
        await driver.stop("gpu0", "i1")
        assert door.inside == 1
        if ends == "with its lease":
            world.service.take_keys(())
        if ends == "with its client":
            one.writer.transport.abort()
        else:
            body = b"".join([data async for data in _chunks(one)])
            assert _error(body.rsplit(b"data: ", 1)[1]) == "preempted"
        await until(lambda: door.inside == 0)


@pytest.mark.parametrize("kind", ["stream", "whole"])
async def test_an_engine_that_dies_is_said(tmp_path: Path, kind: str) -> None:
    world, stream = HostWorld(tmp_path), kind == "stream"
    async with _serving(world), client(world.port) as one:
        world.server.die_after, before = 2, len(world.server.seen)
        await one.post(CHAT, {"stream": stream, "n": 5, "delay_s": 0.05 if stream else 1.0})
        if stream:
            status, _, body = await one.answer()
            assert status == 200
            assert _error(body.rsplit(b"data: ", 1)[1]) == "engine_died"
        else:
            await until(lambda: len(world.server.seen) > before)
            world.server.die()
            status, _, body = await one.answer()
            assert (status, _error(body)) == (502, "engine_died")
        assert world.service.ledger.find("i1").tally.failed == 1  # type: ignore[union-attr] # there


async def test_an_engine_that_answers_garbage_or_nothing_is_said(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world):
        world.server.html = True
        status, headers, body = await _one(world.port)
        assert (status, headers["content-type"], body) == (200, "text/html", b"<html>busy</html>")
        world.server.html, world.server.silent = False, True
        world.request = world.request  # the limit of 2 s is the proxy's
        async with client(world.port) as one:
            await one.post(CHAT, {})
            status, _, body = await one.answer()
            assert (status, _error(body)) in {(504, "engine_silent"), (503, "preempted")}


@pytest.mark.parametrize("kind", ["stream", "whole"])
async def test_a_client_of_http_1_0_gets_no_chunks(tmp_path: Path, kind: str) -> None:
    # RFC 9112 section 6.1: no transfer coding in an answer to a request of HTTP/1.0.
    world, stream = HostWorld(tmp_path), kind == "stream"
    async with _serving(world), client(world.port) as one:
        body = json.dumps({"n": 2, "stream": stream}).encode()
        head = f"POST {CHAT} HTTP/1.0\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        one.writer.write(head.encode() + body)
        status, headers, answer = await one.answer()
        assert "transfer-encoding" not in headers
        assert headers["connection"] == "close"
        if stream:
            assert (status, _error(answer)) == (505, "version")
        else:
            assert (status, json.loads(answer)["usage"]["completion_tokens"]) == (200, 2)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 777 Lucky\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
    ],
)
async def test_an_answer_that_is_none_is_said_to_be(tmp_path: Path, answer: bytes) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world):
        world.server.raw = answer
        status, _, body = await _one(world.port)
        assert (status, _error(body)) == (502, "engine_died")
        assert world.service.ledger.find("i1").tally.failed == 1  # type: ignore[union-attr] # there


@pytest.mark.parametrize("framing", ["stream", "whole"])
async def test_json_without_bottom_passes_uncounted(tmp_path: Path, framing: str) -> None:
    stream = framing == "stream"
    world, deep = HostWorld(tmp_path), b'{"usage":null,"x":' + b"[" * 50_000
    async with _serving(world):
        text = b"data: " + deep + b"\n\n" if stream else deep
        kind = b"text/event-stream" if stream else b"application/json"
        length = b"Transfer-Encoding: chunked" if stream else b"Content-Length: %d" % len(text)
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text) if stream else text
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n\r\n" % (kind, length)
        world.server.raw = head + framed
        status, _, body = await _one(world.port)
        assert (status, body) == (200, text)
        assert world.service.ledger.find("i1").tally.uncounted == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("failure", ["html", "error", "wrong"])
async def test_an_engine_that_answers_its_customers_wrongly_is_not_billed(
    tmp_path: Path, failure: str
) -> None:
    # Customers who ask on and on must not keep the gate of a broken engine open.
    world = HostWorld(tmp_path)
    async with _serving(world):
        instance = world.service.ledger.find("i1")
        assert instance is not None
        before_ns = CLOCK.boottime_ns()
        if failure == "error":
            world.server.raw = b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n{}"
        elif failure == "html":
            world.server.html = True
        else:
            world.server.state = "failed"  # its driver sees wrong answers; customers get tokens
        async with asyncio.timeout(5):
            while instance.meter.open:
                await _one(world.port)
        assert instance.seen_ns <= before_ns + 200_000_000
        assert instance.reason == "its engine gave no right answer"


async def test_a_client_that_leaves_frees_its_engine(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world):
        async with client(world.port) as one:
            await one.post(CHAT, {"stream": True, "n": 1_000, "delay_s": 0.01})
            await one.head()
        await until(lambda: world.service.slots["gpu0"].doors["i1"].inside == 0)
        await until(lambda: world.server.aborted == 1)


async def test_a_client_that_does_not_read_slows_the_engine_and_is_cut(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    world.request = type(world.request)(client_s=0.3)
    async with _serving(world), client(world.port) as one:
        one.reads(on=False)
        await one.post(CHAT, {"stream": True, "n": 5_000, "pad": 4_000})
        await until(lambda: world.service.slots["gpu0"].doors["i1"].inside == 1)
        await until(lambda: world.service.slots["gpu0"].doors["i1"].inside == 0, 10)
        tally = world.service.ledger.find("i1").tally  # type: ignore[union-attr] # it is there
        assert tally.failed == 1
        assert tally.tokens_out < 5_000  # the rest was never taken from the engine


async def test_what_a_slow_client_takes_late_is_no_late_sign_of_life(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port, small=True) as one:
        one.reads(on=False)
        await one.post(CHAT, {"stream": True, "n": 5_000, "pad": 4_000})
        await until(lambda: world.service.slots["gpu0"].doors["i1"].inside == 1)
        instance = world.service.ledger.find("i1")
        assert instance is not None
        await asyncio.sleep(0.3)  # until all buffers are full
        world.server.die()
        died_ns = CLOCK.boottime_ns()
        async with asyncio.timeout(8):
            while instance.meter.open:
                one.reads(on=True)
                await asyncio.sleep(0.005)
                one.reads(on=False)
                await asyncio.sleep(0.05)
        assert instance.seen_ns <= died_ns + 100_000_000  # what was on the way just then


async def test_a_body_is_bounded_whatever_its_shape(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world):
        async with client(world.port) as one:
            one.writer.write(
                f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 10001\r\n\r\n".encode()
            )
            status, headers, body = await one.answer()
            assert (status, _error(body), headers["connection"]) == (413, "too_large", "close")
        async with client(world.port) as one:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            one.writer.write(head.encode())
            for _ in range(11):
                one.writer.write(b"3e8\r\n" + b"x" * 1_000 + b"\r\n")
            status, _, body = await one.answer()
            assert (status, _error(body)) == (413, "too_large")
        async with client(world.port) as one:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"
            one.writer.write(head.encode())
            status, _, body = await one.answer()
            assert (status, _error(body)) == (408, "too_slow")
        async with client(world.port) as one:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            one.writer.write(head.encode() + b"d\r\n" + b'{"n":      2}' + b"\r\n0\r\n\r\n")
            assert (await one.answer())[0] == 200
        assert world.server.bodies[-1] == b'{"n":      2}'


async def test_metrics_and_status_tell_what_happened(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with _serving(world), client(world.port) as one:
        await one.post(CHAT, {"n": 5})
        await one.answer()
        status, text = await get(world.admin_port, "/metrics")
        lines = text.decode().splitlines()
        labels = '{gpu="gpu0",instance="i1",lease="w1.1"}'
        assert status == 200
        assert f"hcp_host_tokens_out_total{labels} 5.0" in lines
        assert f"hcp_host_gate_open{labels} 1" in lines
        assert 'hcp_host_mining{gpu="gpu0"} 0' in lines
        assert 'DCGM_FI_DEV_GPU_TEMP{hostname="host"} 51' in lines
        count = 'hcp_host_act_seconds_count{act="gate_open",gpu="gpu0",outcome="done"} 1'
        assert count in lines
        status, body = await get(world.admin_port, "/status")
        found = json.loads(body)["gpus"][0]["instance"]
        assert (found["instance_id"], found["gate_open"], found["requests"]) == ("i1", True, 1)
        assert (await get(world.admin_port, "/nothing"))[0] == 404

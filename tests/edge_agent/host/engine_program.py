"""An engine for tests: a program with an HTTP API that mines or serves, and its driver.

Run in the test's loop or as a process of its own (``python engine_program.py PORT``). It knows the
ways in which engines fail: silence, lies about pausing, wrong answers, death.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from edge_agent.workloads.engine import (
    EngineCapabilities,
    EngineSpec,
    EngineState,
    HashSample,
    PauseMode,
    Probe,
    Receipt,
    Strategy,
    TokenSample,
)
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError

HASHES_PER_S = 1_000_000
RIGHT = "four"
Reply = Callable[[bytes], Awaitable[None]]


class EngineProgram:
    """The program.

    Attributes:
        silent: takes requests and answers none. lying: says that it paused, and works on;
            smooth: its state says so too. immortal: does not end when asked.
        wrong: answers its canary wrongly. die_after: stream events after which it dies.
        html, raw: answers everything by a page, or by these bytes and an end.
        seen: what customers asked, as (method, path, headers).
    """

    def __init__(self) -> None:
        self.state = "warm"
        self.silent = False
        self.lying = self.smooth = self.immortal = False
        self.wrong = False
        self.die_after: int | None = None
        self.html = False
        self.raw = b""
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.aborted = 0
        self.port = 0
        self._dead = False
        self._active_since_s: float | None = None
        self._hashes = 0
        self._flow = asyncio.Event()
        self._listener: socket.socket
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        # Not asyncio's server: one that is closed while it accepts leaves a transport (3.11).
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(0)
        self.port = self._listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            task = asyncio.get_running_loop().create_task(self._serve(connection), name="engine")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def die(self) -> None:
        """End as a killed process does: nothing listens, every connection is reset."""
        if not self._dead:
            self._dead = True
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
        for writer in list(self._writers):
            writer.transport.abort()

    def hashes(self) -> int:
        since_s = self._active_since_s
        extra = 0 if since_s is None else int((time.monotonic() - since_s) * HASHES_PER_S)
        return self._hashes + extra

    def work(self, *, on: bool) -> None:
        if on and self._active_since_s is None:
            self._active_since_s = time.monotonic()
            self._flow.set()
        elif not on and self._active_since_s is not None:
            self._hashes = self.hashes()
            self._active_since_s = None
            self._flow.clear()
        self.state = "active" if on else "warm"

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        self._writers.add(writer)
        try:
            while not self._dead:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                method, path, _ = lines[0].split(" ")
                pairs = (line.split(": ", 1) for line in lines[1:] if line)
                headers = {name.lower(): value for name, value in pairs}
                body = await _body(reader, headers)
                if path.startswith("/v1"):
                    self.seen.append((method, path, headers))
                    self.bodies.append(body)
                if self.silent:
                    await asyncio.Event().wait()
                if self.raw:
                    writer.write(self.raw)
                    await writer.drain()
                    break
                await self._answer(path.partition("?")[0], body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if self.html:
            await _send(writer, b"<html>busy</html>", "text/html")
        elif path == "/pause":
            if not self.lying:
                self.work(on=False)
            elif self.smooth:
                self.state = "warm"
            await _send(writer, b"{}")
        elif path == "/resume":
            self.work(on=True)
            await _send(writer, b"{}")
        elif path == "/state":
            state = {"state": self.state, "hashes": self.hashes()}
            await _send(writer, json.dumps(state).encode())
        elif path == "/exit":
            await _send(writer, b"{}")
            if not self.immortal:
                self.die()
        elif path.startswith("/v1/models"):
            await _send(writer, b'{"data":[]}')
        elif path == "/v1/chat/completions":
            await self._complete(json.loads(body), writer)
        else:
            await _send(writer, b"{}")

    async def _complete(self, asked: dict[str, object], writer: asyncio.StreamWriter) -> None:
        count, delay_s = int(str(asked.get("n", 3))), float(str(asked.get("delay_s", 0.0)))
        usage = {"prompt_tokens": 7, "completion_tokens": count}
        if asked.get("canary"):
            said = "five" if self.wrong else RIGHT
            await _send(writer, json.dumps({"said": said}).encode())
            return
        if not asked.get("stream"):
            await asyncio.sleep(delay_s)
            answer = {"choices": [{"message": {"content": "x" * count}}], "usage": usage}
            await _send(writer, json.dumps(answer).encode())
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\nX-Hop: 1\r\nConnection: X-Hop\r\n\r\n"
        )
        try:
            for number in range(count):
                if number == self.die_after:
                    self.die()
                    return
                await self._flow.wait()
                text = f"t{number}" + "x" * int(str(asked.get("pad", 0)))
                event = {"choices": [{"delta": {"content": text}}]}
                await _chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
                await asyncio.sleep(delay_s)
            if asked.get("usage"):
                last = json.dumps({"choices": [], "usage": usage}).encode()
                await _chunk(writer, b"data: " + last + b"\n\n")
            await _chunk(writer, b"data: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")
        except ConnectionError:
            self.aborted += 1
            raise


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    body = b""
    while headers.get("transfer-encoding") == "chunked":
        size = int(await reader.readline(), 16)
        body += await reader.readexactly(size)
        await reader.readexactly(2)
        if size == 0:
            break
    return body


async def _send(writer: asyncio.StreamWriter, body: bytes, kind: str = "application/json") -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    if writer.transport.is_closing():
        raise ConnectionResetError
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


class ProgramEngine:
    """Driver of an ``EngineProgram``, wherever it runs.

    Args:
        kind: ``miner`` or ``server``.
    """

    def __init__(self, kind: str, spec: EngineSpec) -> None:
        self._kind = kind
        self._spec = spec
        self.strategies: tuple[Strategy, ...] = (Strategy.RESIDENT_GATE, Strategy.RESTART)

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    def capabilities(self) -> EngineCapabilities:
        return EngineCapabilities(strategies=self.strategies, survives_agent=True)

    async def probe(self) -> Probe:
        try:
            answer = await self._ask("GET", "/state", 0.3)
            state = EngineState(str(answer["state"]))
        except DriverUnavailableError as exc:
            refused = isinstance(exc.__cause__, ConnectionRefusedError)
            state = EngineState.ABSENT if refused else EngineState.FAILED
            return Probe(state=state, started=False, live=False, ready=False, detail=str(exc))
        except (KeyError, ValueError, TypeError):
            return Probe(state=EngineState.FAILED, started=True, live=True, ready=False)
        ready = state is EngineState.ACTIVE
        return Probe(state=state, started=True, live=True, ready=ready)

    async def prepare(self, deadline_s: float) -> Probe:
        return await self.probe()

    async def pause(self, mode: PauseMode, deadline_s: float) -> Receipt:
        await self._ask("POST", "/pause", deadline_s)
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        idle = (await self.probe()).state is EngineState.WARM
        return Receipt(acked_ns=now_ns, idle_ns=now_ns if idle else None, evidence="state")

    async def offload(self, deadline_s: float) -> Receipt:
        raise DriverRefusedError("unable", "it is resident")

    async def resume(self, deadline_s: float) -> Receipt:
        await self._ask("POST", "/resume", deadline_s)
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return Receipt(acked_ns=now_ns, idle_ns=now_ns, evidence="answer")

    async def canary(self, prompt: str, deadline_s: float) -> str:
        path = "/v1/chat/completions"
        answer = await self._ask("POST", path, deadline_s, {"canary": True, "prompt": prompt})
        return str(answer["said"])

    async def snapshot(self, deadline_s: float) -> bytes:
        raise DriverRefusedError("unsupported", "it keeps no state")

    def restore(self, state: Path) -> None:
        raise DriverRefusedError("unsupported", "it keeps no state")

    async def sample(self) -> HashSample | TokenSample:
        answer = await self._ask("GET", "/state", 0.3)
        if self._kind == "server":
            return TokenSample()
        hashes = int(str(answer["hashes"]))
        return HashSample(hashes=hashes, hashrate_hs=float(HASHES_PER_S))

    async def stop(self, grace_s: float) -> None:
        await self._ask("POST", "/exit", grace_s)

    async def kill(self) -> None:
        raise DriverRefusedError("unable", "it belongs to somebody else")

    async def _ask(
        self, method: str, path: str, limit_s: float, body: dict[str, object] | None = None
    ) -> dict[str, object]:
        data = json.dumps(body or {}).encode()
        port = int(self._spec.url.rsplit(":", 1)[1])
        writer = None
        try:
            async with asyncio.timeout(limit_s):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                found = json.loads(await reader.readexactly(length))
        except (OSError, EOFError, TimeoutError, ValueError) as exc:
            raise DriverUnavailableError(f"{path}: {exc!r}") from exc
        finally:
            if writer is not None:
                writer.transport.abort()
        assert isinstance(found, dict)
        return found


def make_engine(kind: str, spec: EngineSpec) -> ProgramEngine:
    return ProgramEngine(kind, spec)


CANARY_SHA256 = sha256(RIGHT.encode()).hexdigest()


async def _main(port: int) -> None:
    program = EngineProgram()
    await program.start(port)
    sys.stdout.write(f"{program.port}\n")
    sys.stdout.flush()
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))

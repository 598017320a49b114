"""The wire of the pool stand-in: Stratum V1, one JSON object per line over TCP, and its faults."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from enum import StrEnum
from typing import Any

import msgspec

from simulators.errors import SettingError
from simulators.pool import REFUSALS, PoolBook, PoolJob, Verdict

LINE_BYTES_MAX = 16 * 1_024
CONNECTIONS_MAX = 256
SESSIONS_MAX = 1_024
HUGE_BYTES = 4 * 1_024 * 1_024
_SEND_S = 5.0


class PoolFault(StrEnum):
    """What a pool does wrong; all but ``mute`` strike when a share comes in."""

    NONE = "none"
    DROP = "drop"
    """Ends the connection instead of answering."""
    STALE = "stale"
    """Gives a new clean job first, so that the share comes too late."""
    GARBAGE = "garbage"
    """Answers with bytes that are no JSON."""
    HUGE = "huge"
    """Answers with a line of megabytes that does not end."""
    MUTE = "mute"
    """Takes connections and lines, and never answers any."""


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """One line of a miner."""

    id: int | str | None = None
    method: str
    params: list[Any] = []


class Client:
    """One connection: what it has said, and where it may search."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.extranonce1 = b""
        self.authorized = False

    async def send(self, message: dict[str, object]) -> None:
        """Send one line; a client that does not read is let go."""
        self.writer.write(msgspec.json.encode(message) + b"\n")
        try:
            async with asyncio.timeout(_SEND_S):
                await self.writer.drain()
        except TimeoutError:
            self.writer.transport.abort()

    async def call(self, method: str, params: list[object]) -> None:
        """Send a notice."""
        await self.send({"id": None, "method": method, "params": params})


class PoolServer:
    """Serves one book.

    Args:
        job_s: a new job every so often. clean_every: each how-manyth job is clean; 1 = all.
    """

    def __init__(self, book: PoolBook, *, job_s: float = 30.0, clean_every: int = 4) -> None:
        self.book = book
        self._job_s = job_s
        self._clean_every = clean_every
        self._clients: set[Client] = set()
        self._sessions: OrderedDict[str, bytes] = OrderedDict()
        self._fault = PoolFault.NONE
        self._fault_left: int | None = None
        self._decoder = msgspec.json.Decoder(Request)

    def set_fault(self, fault: PoolFault, times: int | None = None) -> None:
        """Do wrong so many times from now on; None = until told otherwise."""
        self._fault, self._fault_left = fault, times

    async def run(self, server: asyncio.Server) -> None:
        """Serve and give jobs until cancelled."""
        async with server, asyncio.TaskGroup() as group:
            group.create_task(self._give_jobs(), name="pool-jobs")
            await server.serve_forever()

    async def listen(self, port: int) -> asyncio.Server:
        """Listen on loopback; port 0 = any free one."""
        return await asyncio.start_server(self._serve, "127.0.0.1", port, limit=LINE_BYTES_MAX)

    async def new_job(self, *, clean: bool) -> PoolJob:
        """Draw a job and tell everybody."""
        job = self.book.new_job(int(time.time()), clean=clean)
        for client in [one for one in self._clients if one.authorized]:
            await client.call("mining.notify", job.notify())
        return job

    async def _give_jobs(self) -> None:
        while True:
            await self.new_job(clean=self.book.counts.jobs % self._clean_every == 0)
            await asyncio.sleep(self._job_s)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(writer)
        self.book.counts.connections += 1
        if len(self._clients) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._clients.add(client)
        try:
            while line := await reader.readline():
                await self._take(client, line)
        except (ValueError, ConnectionError):
            # A line beyond the limit, or a peer that left: this connection ends, the pool goes on.
            writer.transport.abort()
        finally:
            self._clients.discard(client)
            writer.close()

    async def _take(self, client: Client, line: bytes) -> None:
        try:
            request = self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            await client.send({"id": None, "result": None, "error": [20, "no request", None]})
            return
        if request.method.startswith("pool."):
            await client.send({"id": request.id, "error": None} | self._observe(request))
        elif self._fault is not PoolFault.MUTE:
            await self._answer(client, request)

    def _observe(self, request: Request) -> dict[str, object]:
        """Answer those who test: counts, and the fault in force."""
        if request.method == "pool.fault":
            try:
                fault, *times = request.params
                self.set_fault(PoolFault(fault), int(times[0]) if times else None)
            except (ValueError, TypeError) as exc:
                return {"result": None, "error": [20, str(exc)[:100], None]}
        return {"result": self.book.counts}

    async def _answer(self, client: Client, request: Request) -> None:
        result: object = True
        match request.method:
            case "mining.subscribe":
                result = self._subscribe(client, request.params)
            case "mining.authorize" if client.extranonce1 and request.params:
                client.authorized = True
            case "mining.submit" if client.authorized:
                if not await self._strike(client):
                    await self._submit(client, request)
                return
            case "mining.extranonce.subscribe":
                result = True
            case _:
                code = (24, "Unauthorized worker") if "submit" in request.method else (20, "Other")
                await client.send({"id": request.id, "result": None, "error": [*code, None]})
                return
        await client.send({"id": request.id, "result": result, "error": None})
        if request.method == "mining.authorize":
            await client.call("mining.set_difficulty", [self.book.difficulty])
            if (job := self.book.newest) is not None:
                await client.call("mining.notify", job.notify())

    def _subscribe(self, client: Client, params: list[Any]) -> list[object]:
        """Give a part of the search space; a session that is known by its id keeps its own."""
        wanted = params[1] if len(params) > 1 and isinstance(params[1], str) else ""
        known = self._sessions.get(wanted)
        if known is None:
            wanted = f"s{self.book.counts.connections:x}"
            known = self.book.counts.connections.to_bytes(4, "big")
            self._sessions[wanted] = known
            while len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        client.extranonce1 = known
        pairs = [["mining.set_difficulty", wanted], ["mining.notify", wanted]]
        return [pairs, known.hex(), self.book.extranonce2_bytes]

    async def _submit(self, client: Client, request: Request) -> None:
        verdict = self.book.judge(client.extranonce1, request.params)
        if verdict is Verdict.ACCEPTED:
            await client.send({"id": request.id, "result": True, "error": None})
        else:
            error = [*REFUSALS[verdict], None]
            await client.send({"id": request.id, "result": None, "error": error})

    async def _strike(self, client: Client) -> bool:
        """Do what the fault in force asks; tell whether the request is answered by that."""
        fault = self._fault
        if fault is PoolFault.NONE:
            return False
        if self._fault_left is not None:
            self._fault_left -= 1
            if self._fault_left <= 0:
                self.set_fault(PoolFault.NONE)
        match fault:
            case PoolFault.DROP:
                client.writer.transport.abort()
            case PoolFault.STALE:
                await self.new_job(clean=True)
                return False
            case PoolFault.GARBAGE:
                client.writer.write(b'\xff\xfe{"id":\x00 nonsense]]\n')
            case PoolFault.HUGE:
                client.writer.write(b'{"id":1,"result":"' + b"x" * HUGE_BYTES)
        return True


def parse_fault(text: str) -> tuple[PoolFault, int | None]:
    """Read ``drop`` or ``drop:3``.

    Raises:
        SettingError: there is no such fault, or the number is none.
    """
    name, colon, times = text.partition(":")
    try:
        fault = PoolFault(name)
    except ValueError as exc:
        raise SettingError("fault", f"{name!r}: one of {', '.join(PoolFault)}") from exc
    if colon and not (times.isdecimal() and int(times) > 0):
        raise SettingError("fault", f"{text!r}: how many times?")
    return fault, int(times) if colon else None

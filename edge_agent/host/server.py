"""The wire to the node: one JSON object per line on a Unix socket, answered in order of completion.

The same as ``hcp-sim gpu`` speaks, so the node knows no difference. Who may connect is for the
modes of the socket to say. A line that is no request ends nothing but itself; a line without an end
ends its connection.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from edge_agent.host.errors import RefusedError, SilentEngineError
from edge_agent.host.service import HostService
from edge_agent.workloads.engine_time import counted
from edge_agent.workloads.ports import (
    GateState,
    HostInfo,
    HostSample,
    InstanceSpec,
    Meter,
    Moved,
    Ready,
    Wish,
)
from protocol.node import LeaseKeys
from protocol.units import Count, Ident

logger = logging.getLogger(__name__)

LINE_BYTES_MAX = 64 * 1_024
CONNECTIONS_MAX = 16
IN_FLIGHT_MAX = 256
WRITE_S = 5.0


class Request(Struct, frozen=True, kw_only=True):
    """One line of a node; which fields are needed depends on ``op``."""

    id: int
    op: str
    gpu: str = ""
    instance_id: Ident | None = None
    lease_id: Ident | None = None
    attempt: Count = 0
    run_s: Count | None = None
    prompt: str = ""
    on: bool | None = None
    open: bool | None = None
    since_minute: int | None = None
    leases: tuple[LeaseKeys, ...] | None = None
    wishes: tuple[Wish, ...] | None = None
    for_s: float | None = None


class _Refusal(Struct, frozen=True):
    id: int | None
    error: str
    detail: str


class _Done(Struct, frozen=True):
    id: int
    engine_ns: int = 0


class _Moved(Struct, frozen=True):
    id: int
    strategy: str
    moved_mib: int
    engine_ns: int = 0


class _Hello(Struct, frozen=True):
    id: int
    host_id: str
    process_id: str
    boot_id: str
    gpus: object
    public_url: str | None


class _Samples(Struct, frozen=True):
    id: int
    gpus: tuple[HostSample, ...]


class _Hashes(Struct, frozen=True):
    id: int
    hashes: int
    saved: str = ""
    engine_ns: int = 0


class _Output(Struct, frozen=True):
    id: int
    output: str
    expected_sha256: str | None
    engine_ns: int = 0


class _Gate(Struct, frozen=True):
    id: int
    at_ns: int
    served_ns: int
    energy_mj: int
    open: bool
    wall_anchor_ns: int
    strategy: str = ""
    moved_mib: int = 0
    engine_ns: int = 0


class _Readiness(Struct, frozen=True):
    id: int
    ready: tuple[Ready, ...]


class _Page(Struct, frozen=True):
    id: int
    now_ns: int
    wall_anchor_ns: int
    meters: tuple[Meter, ...]


# Answers to acts tell what of the time was the engines' own.
_OfActs = _Done | _Moved | _Hashes | _Output | _Gate

_request = msgspec.json.Decoder(Request)
_encoder = msgspec.json.Encoder()


class HostServer:
    """Serves one host's service to its node.

    Args:
        path: of the socket; one left by a killed host is removed.
    """

    def __init__(self, service: HostService, path: Path) -> None:
        self._service = service
        self._path = path
        self._writers: set[asyncio.StreamWriter] = set()
        self.malformed = 0

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled; ``ready`` is called once it listens."""
        server = await asyncio.start_unix_server(
            self._serve, sock=_listen(self._path), limit=LINE_BYTES_MAX
        )
        try:
            async with server:
                ready()
                await asyncio.Event().wait()
        finally:
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if len(self._writers) <= CONNECTIONS_MAX:
                await self._connection(reader, writer)
        except* (ConnectionError, TimeoutError, ValueError) as exc:
            logger.info("connection of a node ended: %s", exc.exceptions)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        free = asyncio.Semaphore(IN_FLIGHT_MAX)
        async with asyncio.TaskGroup() as group:
            while line := await reader.readline():
                await free.acquire()
                group.create_task(self._answer(line, writer, free), name="host-request")

    async def _answer(
        self, line: bytes, writer: asyncio.StreamWriter, free: asyncio.Semaphore
    ) -> None:
        try:
            answer = await self._act(line)
        finally:
            free.release()
        if writer.transport.is_closing():
            return
        writer.write(_encoder.encode(answer) + b"\n")
        try:
            async with asyncio.timeout(WRITE_S):
                await writer.drain()
        except (ConnectionError, TimeoutError):
            writer.transport.abort()  # the reader of this connection sees it and ends

    async def _act(self, line: bytes) -> Struct:
        try:
            request = _request.decode(line)
        except msgspec.MsgspecError as exc:
            self.malformed += 1
            return _Refusal(None, "bad_request", str(exc))
        try:
            with counted() as engines:
                answer = await self._perform(request)
            if engines.total_ns and isinstance(answer, _OfActs):
                answer = structs.replace(answer, engine_ns=engines.total_ns)
            return answer
        except RefusedError as exc:
            return _Refusal(request.id, exc.answer_code, exc.detail)
        except SilentEngineError as exc:
            return _Refusal(request.id, exc.code, str(exc))

    async def _perform(self, request: Request) -> Struct:
        service = self._service
        match request.op:
            case "hello":
                return _hello(request.id, service.hello())
            case "sample":
                return _Samples(request.id, service.sample())
            case "meters":
                page = await service.meters(request.since_minute)
                return _Page(request.id, page.now_ns, page.wall_anchor_ns, page.meters)
            case "keys" if request.leases is not None:
                service.take_keys(request.leases)
                return _Done(request.id)
            case "prewarm" if request.wishes is not None and request.for_s is not None:
                ready = service.prewarmer.take(request.wishes, request.for_s)
                return _Readiness(request.id, ready)
            case "release":
                await service.release(request.gpu)
                return _Done(request.id)
            case "mine" if request.on is not None:
                mined = await service.mine(request.gpu, on=request.on)
                return _Hashes(request.id, mined.hashes, mined.saved)
            case _:
                return await self._perform_on_instance(request)

    async def _perform_on_instance(self, request: Request) -> Struct:
        service, gpu, instance_id = self._service, request.gpu, request.instance_id
        if instance_id is None:
            raise RefusedError("bad_request", f"op {request.op!r} or a field of it")
        match request.op:
            case "prepare" if request.lease_id is not None:
                spec = InstanceSpec(
                    instance_id=instance_id,
                    lease_id=request.lease_id,
                    attempt=request.attempt,
                    run_s=request.run_s,
                )
                await service.prepare(gpu, spec)
                return _Done(request.id)
            case "activate":
                await service.activate(gpu, instance_id)
                moved = service.moved(gpu, instance_id)
                return _Moved(request.id, moved.strategy, moved.moved_mib)
            case "canary":
                said = await service.canary(gpu, instance_id)
                return _Output(request.id, said.output, said.expected_sha256)
            case "gate" if request.open is not None:
                state = await service.gate(gpu, instance_id, is_open=request.open)
                return _gate(request.id, state, service.ledger.anchor_ns, Moved())
            case "stop":
                state = await service.stop(gpu, instance_id)
                moved = service.moved(gpu, instance_id)
                return _gate(request.id, state, service.ledger.anchor_ns, moved)
            case _:
                raise RefusedError("bad_request", f"op {request.op!r} or a field of it")


def _hello(number: int, info: HostInfo) -> Struct:
    who = (info.host_id, info.process_id, info.boot_id)
    return _Hello(number, *who, info.gpus, info.public_url)


def _gate(number: int, state: GateState, anchor_ns: int, moved: Moved) -> Struct:
    return _Gate(
        number,
        state.at_ns,
        state.served_ns,
        state.energy_mj,
        state.open,
        anchor_ns,
        moved.strategy,
        moved.moved_mib,
    )


def _listen(path: Path) -> socket.socket:
    # A socket file left by a killed host is dead: the data folder's lock keeps hosts apart.
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.settimeout(0)
    return listener

"""The wire to the node: one JSON object per line on a Unix socket, answered in order of completion.

The same as ``hcp-sim gpu`` speaks, so the node knows no difference. Who may connect is for the
modes of the socket to say. A line that is no request ends nothing but itself; a line without an end
ends its connection.
"""

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from edge_agent.host import wire
from edge_agent.host.errors import RefusedError, SilentEngineError
from edge_agent.host.orders import ACTS, Orders
from edge_agent.host.service import HostService
from edge_agent.workloads.engine_time import counted
from edge_agent.workloads.ports import GateState, HostInfo, InstanceSpec, Moved

logger = logging.getLogger(__name__)

LINE_BYTES_MAX = 64 * 1_024
CONNECTIONS_MAX = 16
IN_FLIGHT_MAX = 256
WRITE_S = 5.0


_request = msgspec.json.Decoder(wire.Request)
_encoder = msgspec.json.Encoder()


class _Peer:
    """A connected node; ``number`` tells its connection from all others."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def tell(self, answer: Struct) -> bool:
        """Write an answer; False: nobody is there any more."""
        transport = self._writer.transport
        if transport.is_closing():
            return False
        self._writer.write(_encoder.encode(answer) + b"\n")
        try:
            async with asyncio.timeout(WRITE_S):
                await self._writer.drain()
        except (ConnectionError, TimeoutError):
            transport.abort()  # the reader of this connection sees it and ends
            return False
        return not self._reader.at_eof()


class HostServer:
    """Serves one host's service to its node.

    Args:
        path: of the socket; one left by a killed host is removed.
    """

    def __init__(self, service: HostService, path: Path) -> None:
        self._service = service
        self._path = path
        self._orders = Orders(self._answer)
        self._numbers = itertools.count()
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
        peer = _Peer(next(self._numbers), reader, writer)
        async with asyncio.TaskGroup() as group:
            while line := await reader.readline():
                await free.acquire()
                group.create_task(self._line(line, peer, free), name="host-request")

    async def _line(self, line: bytes, peer: "_Peer", free: asyncio.Semaphore) -> None:
        try:
            await self._request(_request.decode(line), peer)
        except msgspec.MsgspecError as exc:
            self.malformed += 1
            await peer.tell(wire.Refusal(None, "bad_request", str(exc)))
        finally:
            free.release()

    async def _request(self, request: wire.Request, peer: "_Peer") -> None:
        if request.op == "order":
            try:
                await self._orders.carry_out(request, peer.number, peer.tell)
            except RefusedError as exc:
                await peer.tell(wire.Refusal(request.id, exc.answer_code, exc.detail))
            return
        if request.op in ACTS:
            self._orders.interrupt(request.gpu)
        await peer.tell(await self._answer(request))

    async def _answer(self, request: wire.Act) -> Struct:
        try:
            with counted() as engines:
                if isinstance(request, wire.Request):
                    answer = await self._perform(request)
                else:
                    answer = await self._perform_act(request)
            if engines.total_ns and isinstance(answer, wire.OfActs):
                answer = structs.replace(answer, engine_ns=engines.total_ns)
            return answer
        except RefusedError as exc:
            return wire.Refusal(request.id, exc.answer_code, exc.detail)
        except SilentEngineError as exc:
            return wire.Refusal(request.id, exc.code, str(exc))

    async def _perform(self, request: wire.Request) -> Struct:
        service = self._service
        match request.op:
            case "hello":
                return _hello(request.id, service.hello())
            case "sample":
                return wire.Samples(request.id, service.sample())
            case "meters":
                page = await service.meters(request.since_minute)
                return wire.Page(request.id, page.now_ns, page.wall_anchor_ns, page.meters)
            case "keys" if request.leases is not None:
                service.take_keys(request.leases)
                return wire.Done(request.id)
            case "prewarm" if request.wishes is not None and request.for_s is not None:
                ready = service.prewarmer.take(request.wishes, request.for_s)
                return wire.Readiness(request.id, ready)
            case "release":
                await service.release(request.gpu)
                return wire.Done(request.id)
            case _:
                return await self._perform_act(request)

    async def _perform_act(self, request: wire.Act) -> Struct:
        if request.op == "mine" and request.on is not None:
            mined = await self._service.mine(request.gpu, on=request.on)
            return wire.Hashes(request.id, mined.hashes, mined.saved)
        return await self._perform_on_instance(request)

    async def _perform_on_instance(self, request: wire.Act) -> Struct:
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
                return wire.Done(request.id)
            case "activate":
                await service.activate(gpu, instance_id)
                moved = service.moved(gpu, instance_id)
                return wire.MovedBy(request.id, moved.strategy, moved.moved_mib)
            case "canary":
                said = await service.canary(gpu, instance_id)
                return wire.Output(request.id, said.output, said.expected_sha256)
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
    return wire.Hello(number, *who, info.gpus, info.public_url)


def _gate(number: int, state: GateState, anchor_ns: int, moved: Moved) -> Struct:
    return wire.Gate(
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

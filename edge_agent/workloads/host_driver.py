"""Driver of a workload host, real or simulated: JSON lines over a Unix socket, pipelined by id."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, structs

from edge_agent.tasks import first_error
from edge_agent.workloads import calls, engine_time
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.host_order import NOT_BEGUN, Answer, Begun, HostOrder
from edge_agent.workloads.ports import (
    CanaryOutput,
    Capabilities,
    GateState,
    HostCall,
    HostGpu,
    HostInfo,
    HostSample,
    InstanceSpec,
    Meter,
    MeterPage,
    Mined,
    Moved,
    Order,
    Ready,
    Wish,
)
from protocol.node import LeaseKeys
from protocol.units import check_base_url

T = TypeVar("T")

logger = logging.getLogger(__name__)

# A day of minute marks of 64 instances is about 5 MB of JSON.
LINE_BYTES_MAX = 16 * 1024 * 1024
IN_FLIGHT_MAX = 256
CONNECT_TIMEOUT_S = 2.0
BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 2.0


class _Act(HostCall, frozen=True, kw_only=True, omit_defaults=True):
    id: int


class _Request(_Act, frozen=True, kw_only=True, omit_defaults=True):
    since_minute: int | None = None
    leases: tuple[LeaseKeys, ...] | None = None
    wishes: tuple[Wish, ...] | None = None
    for_s: float | None = None
    acts: tuple[_Act, ...] | None = None
    after: int | None = None


class _Head(Struct, frozen=True):
    id: int | None = None
    error: str | None = None
    detail: str = ""
    engine_ns: int = 0


class _Hello(Struct, frozen=True):
    host_id: str
    process_id: str
    boot_id: str
    gpus: tuple[HostGpu, ...]
    public_url: str | None = None

    def __post_init__(self) -> None:
        if self.public_url is not None:
            check_base_url("public_url", self.public_url)


class _Samples(Struct, frozen=True):
    gpus: tuple[HostSample, ...]


class _Page(Struct, frozen=True):
    now_ns: int
    wall_anchor_ns: int
    meters: tuple[Meter, ...]


class _Readiness(Struct, frozen=True):
    ready: tuple[Ready, ...]


class _Nothing(Struct, frozen=True):
    pass


_encoder = msgspec.json.Encoder()
_head = msgspec.json.Decoder(_Head)
_hello = msgspec.json.Decoder(_Hello)
_samples = msgspec.json.Decoder(_Samples)
_mined = msgspec.json.Decoder(Mined)
_output = msgspec.json.Decoder(CanaryOutput)
_page = msgspec.json.Decoder(_Page)
_gate = msgspec.json.Decoder(GateState)
_moved = msgspec.json.Decoder(Moved)
_readiness = msgspec.json.Decoder(_Readiness)
_nothing = msgspec.json.Decoder(_Nothing)


class HostDriver:
    """Client of ``hcp-agent host``, and of ``hcp-sim gpu``, which speaks the same.

    Args:
        socket_path: the host's Unix socket.
        uniform: injected randomness for the reconnect jitter, ``uniform(low, high)``.
        timeout_s: longest wait for any one answer.
    """

    def __init__(
        self, socket_path: str, *, uniform: Callable[[float, float], float], timeout_s: float = 5.0
    ) -> None:
        self._socket_path = socket_path
        self._uniform = uniform
        self._timeout_s = timeout_s
        self._writer: asyncio.StreamWriter | None = None
        self._info: HostInfo | None = None
        self._failures = 0
        self._next_id = 1
        self._waiting: dict[int, Answer] = {}
        self._orders: dict[str, HostOrder] = {}
        self._lacks_orders = False
        self.malformed = 0

    async def run(self) -> None:
        """Connect, and connect again with full jitter, until cancelled."""
        while True:
            try:
                await self._connection()
            except OSError as exc:
                if self._failures == 0:
                    logger.warning("workload host away: socket=%s: %s", self._socket_path, exc)
                self._failures = min(self._failures + 1, 10)
            limit_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2.0**self._failures)
            await asyncio.sleep(self._uniform(BACKOFF_S_MIN / 2, limit_s))

    def capabilities(self) -> Capabilities:
        """Give what every such host can do; how an engine leaves its GPU is the host's matter."""
        return Capabilities(strategies=("resident_gate",), per_gpu_pause=True, survives_node=True)

    def info(self) -> HostInfo | None:
        """Give the host's last hello while connected."""
        return self._info

    async def sample(self) -> tuple[HostSample, ...]:
        """Read the facts of every GPU."""
        return (await self._ask(_samples, op="sample")).gpus

    def order(self, gpu: str) -> Order:
        """Begin to ask for acts ahead, where the host knows orders."""
        if (before := self._orders.get(gpu)) is not None:
            before.end()
        self._orders[gpu] = order = HostOrder(gpu, self)
        return order

    async def mine(self, gpu: str, *, on: bool) -> Mined:
        """Start or stop the miner."""
        return await self._act(_mined, calls.mine(gpu, on=on))

    async def prepare(self, gpu: str, spec: InstanceSpec) -> None:
        """Make the instance exist."""
        await self._act(_nothing, calls.prepare(gpu, spec))

    async def activate(self, gpu: str, instance_id: str) -> Moved:
        """Make the instance ready."""
        return await self._act(_moved, calls.activate(gpu, instance_id))

    async def canary(self, gpu: str, instance_id: str, prompt: str) -> CanaryOutput:
        """Give the instance's output."""
        return await self._act(_output, calls.canary(gpu, instance_id, prompt))

    async def gate(self, gpu: str, instance_id: str, *, is_open: bool) -> GateState:
        """Open or shut the gate."""
        return await self._act(_gate, calls.gate(gpu, instance_id, is_open=is_open))

    async def keys(self, table: tuple[LeaseKeys, ...]) -> None:
        """Say who may use what is served."""
        await self._ask(_nothing, op="keys", leases=msgspec.to_builtins(table))

    async def prewarm(self, wishes: tuple[Wish, ...], for_s: float) -> tuple[Ready, ...]:
        """Say all that is to be held ready."""
        told = [msgspec.to_builtins(wish) for wish in wishes]
        return (await self._ask(_readiness, op="prewarm", wishes=told, for_s=for_s)).ready

    async def release(self, gpu: str) -> None:
        """Have the fence of a GPU released."""
        await self._ask(_nothing, op="release", gpu=gpu)

    async def meters(self, since_minute: int | None) -> MeterPage:
        """Read all meters."""
        info = self._info
        if info is None:
            raise DriverUnavailableError(f"{self._socket_path} is not connected")
        page = await self._ask(_page, op="meters", since_minute=since_minute)
        return MeterPage(
            process_id=info.process_id,
            now_ns=page.now_ns,
            wall_anchor_ns=page.wall_anchor_ns,
            meters=page.meters,
        )

    async def stop(self, gpu: str, instance_id: str) -> Moved:
        """Remove the instance."""
        return await self._act(_moved, calls.stop(gpu, instance_id))

    async def _connection(self) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(
                self._socket_path, limit=LINE_BYTES_MAX
            )
        self._writer = writer
        try:
            raise await first_error(
                {"workload-read": self._read(reader), "workload-hello": self._greet()},
                OSError,
                DriverRefusedError,
            )
        except DriverRefusedError as exc:
            raise DriverUnavailableError(f"hello: {exc}") from exc
        finally:
            self._disconnect()

    async def _greet(self) -> None:
        hello = await self._ask(_hello, op="hello")
        self._info = HostInfo(
            host_id=hello.host_id,
            process_id=hello.process_id,
            boot_id=hello.boot_id,
            gpus=hello.gpus,
            public_url=hello.public_url,
        )
        self._failures = 0
        logger.info("workload host connected: process_id=%s", hello.process_id)

    def _disconnect(self) -> None:
        self._info = None
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        for order in self._orders.values():
            order.end()
        self._orders.clear()
        self._lacks_orders = False  # another host may answer next
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(DriverUnavailableError("the workload host went away"))
                future.exception()  # a waiter that was cancelled meanwhile never looks

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError as exc:
                raise ConnectionError(f"answer longer than {LINE_BYTES_MAX} bytes") from exc
            if not line.endswith(b"\n"):
                raise ConnectionError("the workload host closed the connection")
            self._deliver(line)

    def _deliver(self, line: bytes) -> None:
        try:
            head = _head.decode(line)
        except msgspec.MsgspecError:
            self.malformed += 1
            return
        future = None if head.id is None else self._waiting.pop(head.id, None)
        if future is None or future.done():
            return
        if head.error is None:
            future.set_result((line, head.engine_ns))
        else:
            future.set_exception(DriverRefusedError(head.error, head.detail))
            future.exception()  # nobody may come to look at what was asked for ahead

    # --- orders --------------------------------------------------------------------------------

    def begin(self, gpu: str, acts: tuple[HostCall, ...], after: int | None) -> Begun | None:
        """Send an order; None: it cannot be sent now, or the host is known to know none.

        Args:
            after: the order that it goes on from; None: it goes on from nothing.
        """
        writer = self._writer
        if writer is None or self._lacks_orders or len(self._waiting) >= IN_FLIGHT_MAX:
            return None
        number = self._next_id
        numbered = tuple(
            _Act(id=number + 1 + place, **structs.asdict(act)) for place, act in enumerate(acts)
        )
        self._next_id += 1 + len(acts)
        order = _Request(id=number, op="order", gpu=gpu, acts=numbered, after=after)
        writer.write(_encoder.encode(order) + b"\n")
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in range(1 + len(acts))]
        for key, answer in enumerate(answers, number):
            self._waiting[key] = answer
            # One that is given up is waited for no longer: a mute host must not use up all room.
            answer.add_done_callback(partial(self._given_up, key))
        answers[0].add_done_callback(self._note_order)
        return Begun(number, answers[0], tuple(answers[1:]))

    def _note_order(self, answer: Answer) -> None:
        refused = None if answer.cancelled() else answer.exception()
        self._lacks_orders |= isinstance(refused, DriverRefusedError)

    def forget(self, number: int) -> None:
        """Wait no longer for the answer to an order, or to an act of one."""
        self._waiting.pop(number, None)

    def _given_up(self, number: int, answer: Answer) -> None:
        if answer.cancelled():
            self.forget(number)

    async def _act(self, decoder: msgspec.json.Decoder[T], call: HostCall) -> T:
        """Ask for an act of a GPU, or take the answer to what was asked for ahead."""
        order = self._orders.get(call.gpu)
        begun = None if order is None else order.take(call)
        if order is not None and begun is not None:
            try:
                async with asyncio.timeout(self._timeout_s):
                    line, engine_ns = await begun
                return self._decoded(decoder, call.op, line, engine_ns)
            except TimeoutError as exc:
                order.end()
                raise DriverUnavailableError(f"{call.op}: no answer in time") from exc
            except BaseException as exc:
                order.end()
                if not isinstance(exc, DriverRefusedError) or exc.answer_code != NOT_BEGUN:
                    raise
        number, self._next_id = self._next_id, self._next_id + 1
        return await self._send(decoder, _Request(id=number, **structs.asdict(call)))

    # --- the wire ------------------------------------------------------------------------------

    async def _ask(
        self,
        decoder: msgspec.json.Decoder[T],
        *,
        op: str,
        **fields: str | float | list[Any] | None,
    ) -> T:
        number, self._next_id = self._next_id, self._next_id + 1
        document = {"id": number, "op": op, **fields}
        return await self._send(decoder, msgspec.convert(document, _Request))

    async def _send(self, decoder: msgspec.json.Decoder[T], request: _Request) -> T:
        writer, op = self._writer, request.op
        if writer is None:
            raise DriverUnavailableError(f"{self._socket_path} is not connected")
        if len(self._waiting) >= IN_FLIGHT_MAX:
            raise DriverUnavailableError(f"{IN_FLIGHT_MAX} requests are unanswered")
        future: Answer = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            writer.write(_encoder.encode(request) + b"\n")
            async with asyncio.timeout(self._timeout_s):
                with contextlib.suppress(ConnectionResetError):  # the reader reports it, once
                    await writer.drain()
                line, engine_ns = await future
        except TimeoutError as exc:
            raise DriverUnavailableError(f"{op}: no answer in {self._timeout_s} s") from exc
        finally:
            self._waiting.pop(request.id, None)
        return self._decoded(decoder, op, line, engine_ns)

    def _decoded(self, decoder: msgspec.json.Decoder[T], op: str, line: bytes, engine_ns: int) -> T:
        engine_time.add(engine_ns)
        try:
            return decoder.decode(line)
        except msgspec.MsgspecError as exc:
            self.malformed += 1
            raise DriverUnavailableError(f"{op}: unreadable answer: {exc}") from exc

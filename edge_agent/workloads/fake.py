"""In-memory driver over a host model: same port, no socket, faults on demand.

The host model (physics, gate, meter, truth) is given from outside, as a rule the simulator's, so
that simulation and real processes share one physics. It lives on while the node is restarted, as a
real host does; ``kill`` takes it away with its meters.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec
from msgspec import structs

from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
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
from protocol.node import GpuFence, LeaseKeys

T = TypeVar("T")

CALLS_MAX = 10_000


class GpuModel(Protocol):
    """A simulated host of GPUs: what the fake needs of it."""

    host_id: str
    process_id: str

    @property
    def anchor_ns(self) -> int:
        """Wall minus boottime."""
        ...

    def now_ns(self) -> int:
        """Give CLOCK_BOOTTIME."""
        ...

    def boot_id(self) -> str:
        """Give the boot's identity."""
        ...

    def gpus(self) -> Sequence[tuple[str, str]]:
        """Give (name, model) of each GPU."""
        ...

    def sample(self) -> Sequence[object]:
        """Give objects with the fields of ``HostSample``."""
        ...

    def meters(self, since_minute: int | None) -> Sequence[object]:
        """Give objects with the fields of ``Meter``."""
        ...

    def mine(self, gpu_name: str, *, on: bool) -> int:
        """Start or stop the miner."""
        ...

    def prepare(
        self, gpu_name: str, instance_id: str, lease_id: str, attempt: int, run_s: int | None
    ) -> None:
        """Make an instance."""
        ...

    def activate(self, gpu_name: str, instance_id: str) -> None:
        """Make it ready."""
        ...

    def canary(self, gpu_name: str, instance_id: str, prompt: str) -> str:
        """Answer a prompt."""
        ...

    def gate(self, gpu_name: str, instance_id: str, *, is_open: bool) -> object:
        """Open or shut the gate; gives the fields of ``Meter``."""
        ...

    def stop(self, gpu_name: str, instance_id: str) -> object:
        """End the instance; gives the fields of ``Meter``."""
        ...


class FakeDriver:
    """A ``WorkloadDriver`` that calls a host model directly.

    Faults are plain attributes: ``fail_at`` makes the Nth act (from 1) fail undone,
    ``lose_answer_at`` lets it happen and loses its answer, ``hanging`` names mute GPUs,
    ``fences`` fences GPUs until they are released, which ``unreleasable`` (a code) refuses,
    ``falsify`` spoils the output of canaries. ``readiness`` says what becomes of a wish to hold an
    engine ready; None: this host knows of none.

    Args:
        host: the model. refusal: the error class that the model raises to refuse; its
            ``answer_code`` and ``detail`` are read.
        latency_s: gives the seconds that the next act takes (0: no wait at all).
        timeout_s: longest wait for one act, as of the real driver.
    """

    def __init__(
        self,
        host: GpuModel,
        *,
        refusal: type[Exception],
        latency_s: Callable[[], float] = lambda: 0.0,
        timeout_s: float = 5.0,
    ) -> None:
        self._host: GpuModel | None = host
        self._refusal = refusal
        self._latency_s = latency_s
        self._timeout_s = timeout_s
        self.calls: list[tuple[str, str]] = []
        self.released: list[str] = []
        self.fences: dict[str, GpuFence] = {}
        self.unreleasable = ""
        self.tables: list[tuple[LeaseKeys, ...]] = []
        self.fail_at: int | None = None
        self.lose_answer_at: int | None = None
        self.hanging: set[str] = set()
        self.falsify = False
        self.readiness: Callable[[Wish], Ready] | None = None
        self.wishes: tuple[Wish, ...] = ()
        self._acts = 0

    def kill(self) -> None:
        """Take the host away, with every instance and meter on it."""
        self._host = None

    def restart(self, host: GpuModel) -> None:
        """Let a new host process answer from now on."""
        self._host = host

    async def run(self) -> None:
        """Wait until cancelled: there is no connection to keep."""
        await asyncio.Event().wait()

    def capabilities(self) -> Capabilities:
        """Give what the fake can do."""
        return Capabilities(strategies=("resident_gate",), per_gpu_pause=True, survives_node=True)

    def info(self) -> HostInfo | None:
        """Give the model's identity, None while it is killed."""
        host = self._host
        if host is None:
            return None
        return HostInfo(
            host_id=host.host_id,
            process_id=host.process_id,
            boot_id=host.boot_id(),
            gpus=tuple(HostGpu(gpu=gpu, model=model) for gpu, model in host.gpus()),
        )

    def order(self, gpu: str) -> Order:
        """Give an order of which nothing is begun ahead."""
        del gpu
        return LazyOrder()

    async def sample(self) -> tuple[HostSample, ...]:
        """Read the facts of every GPU."""
        rows = self._up().sample()
        samples = (_copy(row, HostSample) for row in rows)
        return tuple(
            structs.replace(one, fence=self.fences[one.gpu], healthy=False)
            if one.gpu in self.fences
            else one
            for one in samples
        )

    async def mine(self, gpu: str, *, on: bool) -> Mined:
        """Start or stop the miner."""
        return Mined(hashes=await self._act("mine", gpu, lambda host: host.mine(gpu, on=on)))

    async def prepare(self, gpu: str, spec: InstanceSpec) -> None:
        """Make the instance exist."""
        await self._act(
            "prepare",
            gpu,
            lambda host: host.prepare(
                gpu, spec.instance_id, spec.lease_id, spec.attempt, spec.run_s
            ),
        )

    async def activate(self, gpu: str, instance_id: str) -> Moved:
        """Make it ready."""
        await self._act("activate", gpu, lambda host: host.activate(gpu, instance_id))
        return Moved()

    async def canary(self, gpu: str, instance_id: str, prompt: str) -> CanaryOutput:
        """Answer a prompt."""
        output = await self._act("canary", gpu, lambda host: host.canary(gpu, instance_id, prompt))
        return CanaryOutput(output=output[::-1] if self.falsify else output)

    async def gate(self, gpu: str, instance_id: str, *, is_open: bool) -> GateState:
        """Open or shut the gate."""
        view = await self._act(
            "gate_open" if is_open else "gate_close",
            gpu,
            lambda host: _copy(host.gate(gpu, instance_id, is_open=is_open), Meter),
        )
        at_ns = view.opened_ns if view.open else view.closed_ns
        return GateState(
            at_ns=self._up().now_ns() if at_ns is None else at_ns,
            served_ns=view.served_ns,
            energy_mj=view.energy_mj,
            open=view.open,
        )

    async def keys(self, table: tuple[LeaseKeys, ...]) -> None:
        """Keep the table; a host model knows no customers."""
        self._up()
        if len(self.tables) < CALLS_MAX:
            self.tables.append(table)

    async def prewarm(self, wishes: tuple[Wish, ...], for_s: float) -> tuple[Ready, ...]:
        """Keep the wishes, and say of each what ``readiness`` says."""
        del for_s
        self._up()
        if self.readiness is None:
            raise DriverRefusedError("bad_request", "op 'prewarm'")
        self.wishes = wishes
        return tuple(self.readiness(wish) for wish in wishes)

    async def release(self, gpu: str) -> None:
        """End a fence that was put on a GPU here; a host model fences none itself."""
        self._up()
        if len(self.released) < CALLS_MAX:
            self.released.append(gpu)
        if self.unreleasable:
            raise DriverRefusedError(self.unreleasable, "asked to fail")
        self.fences.pop(gpu, None)

    async def meters(self, since_minute: int | None) -> MeterPage:
        """Read all meters."""
        host = self._up()
        views = host.meters(since_minute)
        return MeterPage(
            process_id=host.process_id,
            now_ns=host.now_ns(),
            wall_anchor_ns=host.anchor_ns,
            meters=tuple(_copy(view, Meter) for view in views),
        )

    async def stop(self, gpu: str, instance_id: str) -> Moved:
        """Remove the instance."""
        await self._act("stop", gpu, lambda host: host.stop(gpu, instance_id))
        return Moved()

    def _up(self) -> GpuModel:
        if self._host is None:
            raise DriverUnavailableError("the workload host is away")
        return self._host

    async def _act(self, op: str, gpu: str, act: Callable[[GpuModel], T]) -> T:
        self._acts += 1
        number = self._acts
        if len(self.calls) < CALLS_MAX:
            self.calls.append((op, gpu))
        self._up()
        latency_s = self._timeout_s if gpu in self.hanging else self._latency_s()
        if latency_s > 0:
            await asyncio.sleep(latency_s)
        if gpu in self.hanging:
            raise DriverUnavailableError(f"{op}: no answer in {self._timeout_s} s")
        if number == self.fail_at:
            raise DriverRefusedError("bad_request", "asked to fail")
        try:
            value = act(self._up())
        except self._refusal as exc:
            code = getattr(exc, "answer_code", "bad_request")
            raise DriverRefusedError(str(code), str(getattr(exc, "detail", exc))) from exc
        if number == self.lose_answer_at:
            raise DriverUnavailableError(f"{op}: the answer was lost")
        return value


class LazyOrder:
    """Begins each act when it is asked for."""

    def add(self, calls: tuple[HostCall, ...]) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


def _copy(view: object, kind: type[T]) -> T:
    return msgspec.convert(view, kind, from_attributes=True)

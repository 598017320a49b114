"""One simulated GPU host: devices, a miner on each, and instances of served work.

Everything is a function of the injected clock; nothing here waits. `gpu_server` adds the wire and
the time that real work takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from random import Random
from typing import ClassVar, Protocol

from msgspec import Struct

from protocol.node import GpuFence
from protocol.resource import MODELS
from simulators.errors import SimulatorError
from simulators.gpu_meter import MINUTE_NS, Mark, Meter
from simulators.gpu_ready import Gpu, Ready, ReadyBook, Wish

# How many shut instances stay readable; each is well under a kilobyte with few marks.
OLD_INSTANCES_MAX = 4_096
OLD_INSTANCE_NS = 24 * 3_600 * 1_000_000_000
_AMBIENT_C = 28.0
_C_PER_W = 0.045
_THERMAL_TAU_S = 25.0
_HASHES_PER_S = 1_000_000
_CONTEXT_MIB = 1_200


class HostClock(Protocol):
    """What the host reads of time."""

    def boottime_ns(self) -> int:
        """Return CLOCK_BOOTTIME in nanoseconds."""
        ...

    def wall_ns(self) -> int:
        """Return the wall clock in nanoseconds since 1970."""
        ...

    def boot_id(self) -> str:
        """Return the id of this boot."""
        ...


class GpuError(SimulatorError):
    """A request that the host answers with an error code."""

    code: ClassVar[str] = "gpu"

    def __init__(self, answer_code: str, detail: str) -> None:
        super().__init__(f"{answer_code}: {detail}")
        self.answer_code = answer_code
        self.detail = detail


class TruthLine(Struct, frozen=True, kw_only=True):
    """What really happened at one gate: `open`, `mark` or `close`."""

    t: str
    gpu: str
    model: str
    instance_id: str
    lease_id: str
    attempt: int
    at_ns: int
    wall_ns: int
    served_ns: int
    energy_mj: int


class MeterView(Struct, frozen=True, kw_only=True):
    """Counters of one instance at the instant of asking."""

    gpu: str
    instance_id: str
    lease_id: str
    attempt: int
    open: bool
    completed: bool
    opened_ns: int | None
    closed_ns: int | None
    served_ns: int
    energy_mj: int
    marks: tuple[Mark, ...]


class GpuView(Struct, frozen=True, kw_only=True):
    """Facts of one GPU."""

    gpu: str
    power_w: float
    temp_c: float
    utilisation: float
    memory_used_mib: int
    hashrate_mhs: float
    mining: bool
    healthy: bool
    held: bool
    reason: str
    fence: GpuFence | None


class _Instance:
    def __init__(
        self, gpu: str, instance_id: str, lease_id: str, attempt: int, meter: Meter
    ) -> None:
        self.gpu = gpu
        self.instance_id = instance_id
        self.lease_id = lease_id
        self.attempt = attempt
        self.meter = meter
        self.active = False
        self.stopped_ns: int | None = None


class _Gpu:
    def __init__(self, name: str, model: str, rng: Random) -> None:
        self.name = name
        self.model = model
        self.lost = False
        self.fence: GpuFence | None = None
        self.mining_since_ns: int | None = None
        self.hashes_before = 0
        self.temp_c = _AMBIENT_C + rng.uniform(0.0, 4.0)
        self.temp_at_ns = 0
        self.power_factor = 1.0 + rng.uniform(-0.03, 0.03)
        self.instance: _Instance | None = None

    @property
    def healthy(self) -> bool:
        return not self.lost and self.fence is None

    def hashes(self, now_ns: int) -> int:
        if self.mining_since_ns is None:
            return self.hashes_before
        return self.hashes_before + (now_ns - self.mining_since_ns) * _HASHES_PER_S // 1_000_000_000


class GpuHost:
    """N simulated GPUs of one host.

    Args:
        host_id: name of the host. models: (gpu name, model of the catalogue) pairs.
        clock: injected. rng: seeded. truth: receives every truth line at once.
        process_id: new at each start of the process, so that a restart is seen.
        cold_s: that a server takes to start where it was not held ready; 0 = it is always there.
    """

    def __init__(
        self,
        host_id: str,
        models: Sequence[tuple[str, str]],
        *,
        clock: HostClock,
        rng: Random,
        truth: Callable[[TruthLine], None],
        process_id: str,
        cold_s: float = 0.0,
    ) -> None:
        self.host_id = host_id
        self.process_id = process_id
        self._clock = clock
        self._truth = truth
        self._anchor_ns = clock.wall_ns() - clock.boottime_ns()
        self._gpus = {name: _Gpu(name, model, rng) for name, model in models}
        self._instances: dict[str, _Instance] = {}
        self.ready = ReadyBook(tuple(self._gpus), cold_s)
        self._minute = clock.wall_ns() // MINUTE_NS

    @property
    def anchor_ns(self) -> int:
        """Wall minus boottime in nanoseconds; moves at a minute cut only."""
        return self._anchor_ns

    def now_ns(self) -> int:
        """Return CLOCK_BOOTTIME in nanoseconds."""
        return self._clock.boottime_ns()

    def boot_id(self) -> str:
        """Return the id of this boot."""
        return self._clock.boot_id()

    def gpus(self) -> list[tuple[str, str]]:
        """Return (name, model) of each GPU."""
        return [(gpu.name, gpu.model) for gpu in self._gpus.values()]

    def mine(self, gpu_name: str, *, on: bool) -> int:
        """Start or stop the miner; return its hash counter, which stands still when it is off.

        Raises:
            GpuError: `busy` while an instance is active on the GPU.
        """
        gpu, now_ns = self._healthy(gpu_name), self.now_ns()
        if on and gpu.instance is not None and gpu.instance.active:
            raise GpuError("busy", f"{gpu_name} serves {gpu.instance.instance_id}")
        self._settle_temperature(gpu, now_ns)
        if on and gpu.mining_since_ns is None:
            gpu.mining_since_ns = now_ns
        elif not on and gpu.mining_since_ns is not None:
            gpu.hashes_before = gpu.hashes(now_ns)
            gpu.mining_since_ns = None
        return gpu.hashes(now_ns)

    def prepare(
        self, gpu_name: str, instance_id: str, lease_id: str, attempt: int, run_s: int | None
    ) -> None:
        """Make an instance with its gate shut; asking again changes nothing.

        Raises:
            GpuError: `busy` when another instance is there.
        """
        gpu = self._healthy(gpu_name)
        if instance_id in self._instances:
            return
        if gpu.instance is not None:
            raise GpuError("busy", f"{gpu_name} holds {gpu.instance.instance_id}")
        self.ready.use(gpu_name, self.now_ns())
        power_mw = int(MODELS[gpu.model].serve_w * gpu.power_factor * 1_000)
        meter = Meter(power_mw, None if run_s is None else run_s * 1_000_000_000)
        gpu.instance = _Instance(gpu_name, instance_id, lease_id, attempt, meter)
        self._instances[instance_id] = gpu.instance
        self._forget_old()

    def activate(self, gpu_name: str, instance_id: str) -> None:
        """Make the instance resident and ready.

        Raises:
            GpuError: `busy` while the miner runs.
        """
        gpu, instance = self._present(gpu_name, instance_id)
        if gpu.mining_since_ns is not None:
            raise GpuError("busy", f"{gpu_name} is mining")
        instance.active = True

    def canary(self, gpu_name: str, instance_id: str, prompt: str) -> str:
        """Return what the model says to `prompt`: a digest that anyone can check.

        Raises:
            GpuError: `no_instance` when it is not active.
        """
        gpu, instance = self._present(gpu_name, instance_id)
        if not instance.active:
            raise GpuError("no_instance", f"{instance_id} is not active")
        return sha256((prompt + gpu.model).encode()).hexdigest()

    def gate(self, gpu_name: str, instance_id: str, *, is_open: bool) -> MeterView:
        """Open or shut the gate and return the counters at that instant.

        Raises:
            GpuError: `no_instance` when it is gone, or not active and asked to open.
        """
        instance = self._instances.get(instance_id)
        if instance is None or instance.gpu != gpu_name:
            raise GpuError("no_instance", instance_id)
        now_ns = self.advance()
        if is_open and not instance.meter.open:
            self._healthy(gpu_name)
            if not instance.active or instance.stopped_ns is not None:
                raise GpuError("no_instance", f"{instance_id} is not active")
            instance.meter.set_gate(now_ns, is_open=True)
            if not instance.meter.completed:
                self._tell("open", instance, now_ns)
        elif not is_open:
            self._shut(instance, now_ns)
        return self._view(instance, now_ns, None)

    def stop(self, gpu_name: str, instance_id: str) -> MeterView:
        """Shut the gate and end the instance; its last meter stays readable.

        Raises:
            GpuError: `no_instance` when it never was.
        """
        instance = self._instances.get(instance_id)
        if instance is None or instance.gpu != gpu_name:
            raise GpuError("no_instance", instance_id)
        now_ns = self.advance()
        self._end(instance, now_ns)
        return self._view(instance, now_ns, None)

    def meters(self, since_minute: int | None) -> list[MeterView]:
        """Return the counters of every instance, with the marks after `since_minute`."""
        now_ns = self.advance()
        return [self._view(one, now_ns, since_minute) for one in self._instances.values()]

    def sample(self) -> list[GpuView]:
        """Return the facts of every GPU."""
        now_ns = self.advance()
        return [self._sample_one(gpu, now_ns) for gpu in self._gpus.values()]

    def power_w(self) -> float:
        """Return the power that all GPUs draw together."""
        self.advance()
        return sum(self._power_w(gpu) for gpu in self._gpus.values())

    def lose(self, gpu_name: str, *, lost: bool) -> None:
        """Let a GPU fall off the bus, or come back empty."""
        gpu = self._known(gpu_name)
        if lost:
            self._clear(gpu)
        gpu.lost = lost

    def fence(self, gpu_name: str, xid: int, stands: str) -> None:
        """Fence a GPU by an Xid, as its sensors would: what runs there ends.

        Args:
            stands: what is still seen of its cause; empty = nothing, so that it may be released.
        """
        gpu = self._known(gpu_name)
        self._clear(gpu)
        since = datetime.fromtimestamp(self._clock.wall_ns() // 1_000_000_000, UTC)
        gpu.fence = GpuFence(
            code=f"xid-{xid}",
            since=since if gpu.fence is None else gpu.fence.since,
            ends_by="an operator's release, after: look at the card",
            stands=stands,
        )

    def release(self, gpu_name: str) -> None:
        """End the fence of a GPU by an operator's word; without one there is nothing to end.

        Raises:
            GpuError: `fence_stands` while its cause is seen.
        """
        gpu = self._known(gpu_name)
        if gpu.fence is not None and gpu.fence.stands:
            raise GpuError("fence_stands", f"{gpu_name}: {gpu.fence.stands}")
        gpu.fence = None

    def prewarm(self, wishes: tuple[Wish, ...], for_s: float) -> list[Ready]:
        """Take all that is to be held ready, in place of what was; return how that stands."""
        now_ns = self.now_ns()
        self.ready.take(wishes, for_s, now_ns)
        rows = (self._ready_row(gpu, now_ns) for gpu in self._gpus.values())
        return [row for row in rows if row is not None]

    def _ready_row(self, gpu: _Gpu, now_ns: int) -> Ready | None:
        seen = Gpu(
            mines=gpu.mining_since_ns is not None,
            serves=gpu.instance is not None,
            healthy=gpu.healthy,
        )
        return self.ready.row(gpu.name, seen, now_ns)

    def start_s(self, gpu_name: str) -> float:
        """Return how long a server would still take to start on a GPU; 0 = it serves there."""
        gpu = self._known(gpu_name)
        return 0.0 if gpu.instance is not None else self.ready.left_s(gpu_name, self.now_ns())

    def _clear(self, gpu: _Gpu) -> None:
        now_ns = self.now_ns()
        if gpu.instance is not None:
            self._end(gpu.instance, now_ns)
        if gpu.mining_since_ns is not None:
            gpu.hashes_before = gpu.hashes(now_ns)
            gpu.mining_since_ns = None

    def mark_truth(self) -> None:
        """Write a truth line for each open gate (called at least every 250 ms)."""
        now_ns = self.advance()
        for instance in self._instances.values():
            if instance.meter.open:
                self._tell("mark", instance, now_ns)

    def advance(self) -> int:
        """Bring every meter to now, which it returns; the anchor may move only at a cut minute."""
        now_ns = self.now_ns()
        before = self._anchor_ns
        minute_passed = (before + now_ns) // MINUTE_NS
        for instance in self._instances.values():
            if instance.meter.open:
                instance.meter.advance(now_ns, before)
                if instance.meter.completed:
                    self._tell("close", instance, instance.meter.closed_ns or now_ns)
        if minute_passed != self._minute:
            self._anchor_ns = self._clock.wall_ns() - now_ns
        self._minute = (self._anchor_ns + now_ns) // MINUTE_NS
        return now_ns

    def _sample_one(self, gpu: _Gpu, now_ns: int) -> GpuView:
        power_w = self._settle_temperature(gpu, now_ns)
        serving = gpu.instance is not None and gpu.instance.meter.open
        mining = gpu.mining_since_ns is not None
        return GpuView(
            gpu=gpu.name,
            power_w=power_w,
            temp_c=round(gpu.temp_c, 2),
            utilisation=0.97 if mining else 0.85 if serving else 0.0,
            memory_used_mib=self._memory_mib(gpu, now_ns),
            hashrate_mhs=_HASHES_PER_S / 1e6 if mining else 0.0,
            mining=mining,
            healthy=gpu.healthy,
            held=not gpu.healthy,
            reason="lost" if gpu.lost else "" if gpu.fence is None else gpu.fence.code,
            fence=gpu.fence,
        )

    def _memory_mib(self, gpu: _Gpu, now_ns: int) -> int:
        used = _CONTEXT_MIB
        if gpu.instance is not None or self.ready.is_ready(gpu.name, now_ns):
            used += MODELS[gpu.model].vram_gib * 1_024 // 2
        return used

    def _power_w(self, gpu: _Gpu) -> float:
        model = MODELS[gpu.model]
        watts = model.idle_w
        if gpu.mining_since_ns is not None:
            watts = model.mine_w
        elif gpu.instance is not None and gpu.instance.meter.open:
            watts = model.serve_w
        return round(watts * gpu.power_factor, 1) if gpu.healthy else 0.0

    def _settle_temperature(self, gpu: _Gpu, now_ns: int) -> float:
        """Bring the temperature to now and return the power that drives it."""
        power_w = self._power_w(gpu)
        elapsed_s = max(0, now_ns - gpu.temp_at_ns) / 1e9
        target_c = _AMBIENT_C + power_w * _C_PER_W
        gpu.temp_c += (target_c - gpu.temp_c) * (1.0 - math.exp(-elapsed_s / _THERMAL_TAU_S))
        gpu.temp_at_ns = now_ns
        return power_w

    def _end(self, instance: _Instance, now_ns: int) -> None:
        self._shut(instance, now_ns)
        instance.active = False
        if instance.stopped_ns is None:
            instance.stopped_ns = now_ns
        gpu = self._gpus[instance.gpu]
        if gpu.instance is instance:
            gpu.instance = None

    def _shut(self, instance: _Instance, now_ns: int) -> None:
        if instance.meter.open:
            instance.meter.set_gate(now_ns, is_open=False)
            self._tell("close", instance, now_ns)

    def _tell(self, what: str, instance: _Instance, at_ns: int) -> None:
        self._truth(
            TruthLine(
                t=what,
                gpu=instance.gpu,
                model=self._gpus[instance.gpu].model,
                instance_id=instance.instance_id,
                lease_id=instance.lease_id,
                attempt=instance.attempt,
                at_ns=at_ns,
                wall_ns=self._anchor_ns + at_ns,
                served_ns=instance.meter.served_ns(at_ns),
                energy_mj=instance.meter.energy_mj(at_ns),
            )
        )

    def _view(self, instance: _Instance, now_ns: int, since_minute: int | None) -> MeterView:
        meter = instance.meter
        after = -1 if since_minute is None else since_minute
        return MeterView(
            gpu=instance.gpu,
            instance_id=instance.instance_id,
            lease_id=instance.lease_id,
            attempt=instance.attempt,
            open=meter.open,
            completed=meter.completed,
            opened_ns=meter.opened_ns,
            closed_ns=meter.closed_ns,
            served_ns=meter.served_ns(now_ns),
            energy_mj=meter.energy_mj(now_ns),
            marks=tuple(mark for mark in meter.marks if mark.epoch_minute > after),
        )

    def _forget_old(self) -> None:
        now_ns = self.now_ns()
        shut = [one for one in self._instances.values() if one.stopped_ns is not None]
        excess = len(shut) - OLD_INSTANCES_MAX
        for position, one in enumerate(shut):
            if position < excess or now_ns - (one.stopped_ns or 0) > OLD_INSTANCE_NS:
                del self._instances[one.instance_id]

    def _known(self, gpu_name: str) -> _Gpu:
        gpu = self._gpus.get(gpu_name)
        if gpu is None:
            raise GpuError("no_gpu", gpu_name)
        return gpu

    def _healthy(self, gpu_name: str) -> _Gpu:
        gpu = self._known(gpu_name)
        if not gpu.healthy:
            raise GpuError("gpu_lost", gpu_name)
        return gpu

    def _present(self, gpu_name: str, instance_id: str) -> tuple[_Gpu, _Instance]:
        gpu = self._healthy(gpu_name)
        instance = gpu.instance
        if instance is None or instance.instance_id != instance_id:
            raise GpuError("no_instance", instance_id)
        return gpu, instance

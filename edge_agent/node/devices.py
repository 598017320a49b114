"""The node's devices while it runs: lock, last sample, and who is at work on them."""

import asyncio
from collections.abc import Iterable

from edge_agent.node.config import NodeDeviceConfig
from edge_agent.node.lapse import HubHeard, lapsed
from edge_agent.node.memory import NodeMemory
from edge_agent.node.phases import DeviceView
from edge_agent.workloads.ports import HostSample
from protocol.node import GpuSample, LeaseWork, NodeDevice
from protocol.resource import DeviceKind

NS_PER_S = 1_000_000_000
SAMPLE_FRESH_NS = 3 * NS_PER_S


class Slot:
    """One device of the node.

    Attributes:
        lock: held while a phase or a safety act is at work. acting: a safety act is under way.
        sample: the newest, taken at ``sample_ns``. touched_ns: end of the last act.
        held_until_ns: an unfinished switch keeps the node from restoring the assignment until then.
        bad_samples: consecutive samples outside the limits. retry_ns: no safety act before it.
    """

    def __init__(self, config: NodeDeviceConfig) -> None:
        self.config = config
        self.lock = asyncio.Lock()
        self.sample: HostSample | None = None
        self.sample_ns = 0
        self.touched_ns = -1
        self.held_until_ns = 0
        self.bad_samples = 0
        self.retry_ns = 0
        self.acting = False

    @property
    def device_id(self) -> str:
        """Our name of the device."""
        return self.config.device_id

    @property
    def gpu(self) -> str:
        """The workload host's name of the device."""
        return self.config.gpu

    def fresh(self, now_ns: int) -> HostSample | None:
        """Give the sample when it is not too old to act on."""
        return self.sample if now_ns - self.sample_ns <= SAMPLE_FRESH_NS else None


class DeviceBook:
    """All devices of the node, in the order of its config."""

    def __init__(self, devices: Iterable[NodeDeviceConfig], memory: NodeMemory) -> None:
        self._memory = memory
        self.slots = {one.device_id: Slot(one) for one in devices}

    def take_samples(self, samples: Iterable[HostSample], now_ns: int) -> None:
        """Keep the newest sample of each device."""
        by_gpu = {one.gpu: one for one in samples}
        for slot in self.slots.values():
            sample = by_gpu.get(slot.gpu)
            if sample is not None:
                slot.sample, slot.sample_ns = sample, now_ns

    def view(
        self,
        slot: Slot,
        *,
        now_ns: int,
        boot_id: str,
        heard: HubHeard | None,
        work: LeaseWork | None = None,
        host_up: bool = True,
    ) -> DeviceView:
        """Give what is known of a device; ``work`` is what it would enter."""
        sample = slot.fresh(now_ns)
        return DeviceView(
            assignment=self._memory.assignments[slot.device_id],
            meters=self._memory.meters_of(slot.device_id),
            mining=None if sample is None else sample.mining,
            healthy=None if sample is None else sample.healthy,
            held=sample is not None and sample.held,
            temp_c=None if sample is None else sample.temp_c,
            lapsed=work is not None and lapsed(work, heard, boot_id=boot_id, now_ns=now_ns),
            host_up=host_up,
        )

    def reports(self) -> tuple[NodeDevice, ...]:
        """Give every device as the agent is told of it: the durable assignment, not a guess."""
        return tuple(self._report(slot) for slot in self.slots.values())

    def samples(self, now_ns: int) -> tuple[GpuSample, ...]:
        """Give every device's telemetry; what is not fresh is unknown, and so not healthy."""
        return tuple(_gpu_sample(slot, slot.fresh(now_ns)) for slot in self.slots.values())

    def _report(self, slot: Slot) -> NodeDevice:
        held = self._memory.assignments[slot.device_id]
        state = None if held.work is None else self._memory.meters.get(held.work.instance_id)
        return NodeDevice(
            device_id=slot.device_id,
            device_class=slot.config.device_class,
            kind=DeviceKind.GPU,
            activity=held.activity,
            work=held.work,
            gate_open=state is not None and state.serving,
            quarantined=held.quarantined,
        )


def _gpu_sample(slot: Slot, sample: HostSample | None) -> GpuSample:
    if sample is None:
        return GpuSample(device_id=slot.device_id, healthy=False)
    return GpuSample(
        device_id=slot.device_id,
        power_w=sample.power_w,
        temp_c=sample.temp_c,
        utilisation=sample.utilisation,
        memory_used_mib=sample.memory_used_mib,
        hashrate_mhs=sample.hashrate_mhs,
        healthy=sample.healthy,
        fence=sample.fence,
    )

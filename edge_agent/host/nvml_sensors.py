"""The cards of this machine as the NVML bridge reads them: facts, health, energy, memory in use."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from edge_agent.host.errors import RefusedError
from edge_agent.host.fences import Fence, FenceFile, MemoryFences, fence_of, health_of, unreadable
from edge_agent.host.sensors import EnergyReading, GpuFacts
from firmware_bridges.nvml.client import Telemetry
from firmware_bridges.nvml.energy import EnergyMeter, metered
from firmware_bridges.nvml.health import (
    GpuHealth,
    HealthLimits,
    ends_by,
    judged,
    rebooted,
    released,
    remembered,
    stands,
    unjudged,
)
from firmware_bridges.nvml.metrics import prometheus
from firmware_bridges.nvml.samples import EventKind, GpuEvent
from firmware_bridges.nvml.states import GpuState, GpuView
from protocol.node import GpuFence

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_PERCENT = 100.0
_KEEP_AGAIN_S = 5.0
# Nothing is held against it, and no gate of its heat, power or errors would see anything.
_UNREAD = GpuFacts(healthy=True, held=True, reason="its driver has told nothing of it yet")


class NvmlSensors:
    """Implements ``Sensors`` and the drivers' ``GpuMemory``.

    Args:
        telemetry: of this machine. uuid_of: the cards' UUIDs by the host's names of them.
        now_ns: CLOCK_BOOTTIME. limits: of the health gates. kept: fences that outlive this process.
        boot_id: of this boot. wall_ns: UTC, told to people as since when a fence stands.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        uuid_of: Mapping[str, str],
        *,
        now_ns: Callable[[], int],
        limits: HealthLimits = HealthLimits(),  # noqa: B008 - frozen
        kept: FenceFile | MemoryFences | None = None,
        boot_id: str = "",
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._telemetry = telemetry
        self._uuid_of = dict(uuid_of)
        self._now_ns = now_ns
        self._limits = limits
        self._kept = MemoryFences() if kept is None else kept
        self._changed = asyncio.Event()
        self._boot_id = boot_id
        self._wall_ns = wall_ns
        self._fences: dict[str, Fence] = {one.card: one for one in self._begun_with()}
        self._health = {card: health_of(fence) for card, fence in self._fences.items()}
        for card in self._fences:
            self._judge(GpuView(card=card, state=GpuState.UNKNOWN), ())
        self._meters: dict[str, EnergyMeter] = {}
        self._last_xids: dict[str, int] = {}

    def _begun_with(self) -> tuple[Fence, ...]:
        """Give what was written down; where that cannot be read, no card may work unseen."""
        kept = self._kept.read()
        if kept is not None:
            return kept
        self._changed.set()
        wall_s = self._wall_ns() // 1_000_000_000
        return unreadable(self._uuid_of.values(), self._boot_id, wall_s)

    async def run(self) -> None:
        """Keep reading until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._telemetry.run(), name="nvml-telemetry")
            group.create_task(self._keep(), name="nvml-fences")

    async def read(self) -> Mapping[str, GpuFacts]:
        """Give facts by UUID; one of the host's cards that was never read takes no new work."""
        by_card: dict[str, list[GpuEvent]] = {}
        for event in self._telemetry.take_events():
            if event.uuid is None:
                logger.error("event of a card that has no name: %s", event)
                continue
            by_card.setdefault(event.uuid, []).append(event)
            if event.kind is EventKind.XID:
                self._last_xids[event.uuid] = event.number
        known: dict[str, GpuFacts] = {}
        views = {view.card: view for view in self._telemetry.view()}
        # What is remembered of a card holds before it is read, and of one that is not there; what
        # an event says of it does as well.
        for card in (self._fences.keys() | by_card.keys()) - views.keys():
            views[card] = GpuView(card=card, state=GpuState.UNKNOWN)
        for view in views.values():
            health = self._judge(view, by_card.get(view.card, ()))
            # Of a silent card nothing is known but that it is not well.
            if view.state is not GpuState.UNKNOWN or view.card in self._fences:
                known[view.card] = self._facts(view, health)
        for card in self._uuid_of.values() - known.keys():
            known[card] = _UNREAD
        return known

    async def release(self, uuid: str) -> None:
        """Forget what is remembered of a card; durable when it returns.

        Raises:
            RefusedError: ``fence_stands``: its cause is still seen. OSError: the disk; it stays.
        """
        fence, health = self._fences.get(uuid), self._health.get(uuid)
        if fence is None or health is None:
            return
        if cause := stands(health):
            raise RefusedError("fence_stands", f"{uuid}: {cause}")
        code = "+".join(remembered(health))
        await self._kept.write({card: one for card, one in self._fences.items() if card != uuid})
        if self._fences.get(uuid) is not fence:
            # Something new was seen meanwhile, which nobody has looked at.
            self._changed.set()
            raise RefusedError("fence_stands", f"{uuid}: {self._health[uuid].reason}")
        del self._fences[uuid]
        self._health[uuid] = released(self._health[uuid])
        # A write begun before this one may have taken the older table.
        self._changed.set()
        logger.warning("gpu %s is released by an operator: %s", uuid, code)

    async def _keep(self) -> None:
        """Write the fences down soon after each change; a disk that fails is tried again."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._kept.write(self._fences)
            except OSError as exc:
                logger.error("fences not kept: %s", exc)  # noqa: TRY400 - the disk, no defect
                self._changed.set()
                await asyncio.sleep(_KEEP_AGAIN_S)

    async def used_mib(self, gpu: str) -> int | None:
        """Give the memory in use of a GPU by the host's name of it; None = unknown."""
        await asyncio.sleep(0)
        uuid = self._uuid_of.get(gpu)
        for view in self._telemetry.view():
            if view.card == uuid and view.state is GpuState.LIVE and view.sample is not None:
                used = view.sample.memory_used_bytes
                return None if used is None else used // _MIB
        return None

    def prometheus(self, hostname: str) -> str:
        """Give all figures of the cards that are live, under the names of NVIDIA's exporter."""
        views = self._telemetry.view()
        live = [view.sample for view in views if view.state is GpuState.LIVE and view.sample]
        return prometheus(live, hostname=hostname, last_xids=self._last_xids)

    def _judge(self, view: GpuView, events: Sequence[GpuEvent]) -> GpuHealth:
        before = self._health.get(view.card) or unjudged(view.card)
        health = judged(before, view, events, self._limits, self._now_ns())
        fence = self._fences.get(view.card)
        other_boot = fence is not None and fence.boot_id != self._boot_id
        if other_boot and not events and not stands(health):
            health = judged(rebooted(health), view, (), self._limits, self._now_ns())
        if health.is_healthy != before.is_healthy:
            state = "well again" if health.is_healthy else "fenced"
            logger.warning("gpu %s is %s: %s", view.card, state, health.reason)
        self._health[view.card] = health
        self._remember(fence, health)
        return health

    def _remember(self, before: Fence | None, health: GpuHealth) -> None:
        after = fence_of(before, health, self._boot_id, self._wall_ns() // 1_000_000_000)
        if after is before:
            return
        if after is None:
            del self._fences[health.card]
        else:
            self._fences[health.card] = after
        self._changed.set()

    def _fence(self, health: GpuHealth) -> GpuFence | None:
        fence = self._fences.get(health.card)
        if fence is None:
            return None
        return GpuFence(
            code="+".join(remembered(health)),
            since=datetime.fromtimestamp(fence.since_s, UTC),
            ends_by=ends_by(health),
            stands=stands(health),
        )

    def _facts(self, view: GpuView, health: GpuHealth) -> GpuFacts:
        sample = view.sample
        if sample is None or view.state is not GpuState.LIVE:
            return GpuFacts(
                healthy=health.is_healthy,
                held=health.is_held,
                reason=health.reason,
                fence=self._fence(health),
            )
        meter = self._meters.get(view.card, EnergyMeter())
        if meter.at_ns is None or sample.at_ns > meter.at_ns:
            meter = self._meters[view.card] = metered(meter, sample)
        energy = None
        if meter.at_ns is not None:
            energy = EnergyReading(at_ns=meter.at_ns, energy_mj=meter.total_mj)
        used, percent = sample.memory_used_bytes, sample.gpu_util_pct
        return GpuFacts(
            power_w=sample.power_w,
            temp_c=sample.temp_c,
            utilisation=None if percent is None else percent / _PERCENT,
            memory_used_mib=None if used is None else used / _MIB,
            healthy=health.is_healthy,
            held=health.is_held,
            reason=health.reason,
            energy=energy,
            fence=self._fence(health),
        )

"""The cards of this machine as the NVML bridge reads them: facts, health, energy, memory in use."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from edge_agent.host.sensors import EnergyReading, GpuFacts
from firmware_bridges.nvml.client import Telemetry
from firmware_bridges.nvml.energy import EnergyMeter, metered
from firmware_bridges.nvml.health import GpuHealth, HealthLimits, judged, unjudged
from firmware_bridges.nvml.metrics import prometheus
from firmware_bridges.nvml.samples import EventKind, GpuEvent
from firmware_bridges.nvml.states import GpuState, GpuView

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_PERCENT = 100.0


class NvmlSensors:
    """Implements ``Sensors`` and the drivers' ``GpuMemory``.

    Args:
        telemetry: of this machine. uuid_of: the cards' UUIDs by the host's names of them.
        now_ns: CLOCK_BOOTTIME. limits: of the health gates.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        uuid_of: Mapping[str, str],
        *,
        now_ns: Callable[[], int],
        limits: HealthLimits = HealthLimits(),  # noqa: B008 - frozen
    ) -> None:
        self._telemetry = telemetry
        self._uuid_of = dict(uuid_of)
        self._now_ns = now_ns
        self._limits = limits
        self._health: dict[str, GpuHealth] = {}
        self._meters: dict[str, EnergyMeter] = {}
        self._last_xids: dict[str, int] = {}

    async def run(self) -> None:
        """Keep reading until cancelled."""
        await self._telemetry.run()

    async def read(self) -> Mapping[str, GpuFacts]:
        """Give facts by UUID; a card that was not read of late is left out."""
        by_card: dict[str, list[GpuEvent]] = {}
        for event in self._telemetry.take_events():
            by_card.setdefault(event.uuid or "", []).append(event)
            if event.kind is EventKind.XID and event.uuid is not None:
                self._last_xids[event.uuid] = event.number
        known: dict[str, GpuFacts] = {}
        for view in self._telemetry.view():
            health = self._judge(view, by_card.get(view.card, ()))
            # Of a silent card nothing is known but that it is not well.
            if view.state is not GpuState.UNKNOWN:
                known[view.card] = self._facts(view, health)
        return known

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
        if health.is_healthy != before.is_healthy:
            state = "well again" if health.is_healthy else "fenced"
            logger.warning("gpu %s is %s: %s", view.card, state, health.reason)
        self._health[view.card] = health
        return health

    def _facts(self, view: GpuView, health: GpuHealth) -> GpuFacts:
        sample = view.sample
        if sample is None or view.state is not GpuState.LIVE:
            return GpuFacts(healthy=health.is_healthy, held=health.is_held, reason=health.reason)
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
        )

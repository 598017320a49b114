"""What a host reads of its GPUs themselves: facts, and the energy counter that the meter bills by.

Theory of operation. Energy is billed from a counter of the card alone. Where there is none, the
meter's ``energy_mj`` stays 0: an estimate from power is no measurement, so it stands in /metrics
under a name that says so (``hcp_host_energy_estimate_joules``) and in no meter.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from protocol.node import GpuFence


class EnergyReading(Struct, frozen=True):
    """An energy counter at one instant of CLOCK_BOOTTIME; only differences mean anything."""

    at_ns: int
    energy_mj: int


class GpuFacts(Struct, frozen=True, kw_only=True):
    """What a card says of itself; None is unknown.

    Args:
        healthy: what runs on it may go on. held: nothing new may begin on it for a customer.
        reason: why it is not healthy, or held, in words.
        fence: what is remembered of it until it is released; None: nothing.
    """

    power_w: float | None = None
    temp_c: float | None = None
    utilisation: float | None = None
    memory_used_mib: float | None = None
    healthy: bool = True
    held: bool = False
    reason: str = ""
    energy: EnergyReading | None = None
    fence: GpuFence | None = None


class Sensors(Protocol):
    """Reads every card of this machine, whatever the cards do."""

    async def run(self) -> None:
        """Keep at hand whatever reads the cards, until cancelled."""
        ...

    async def read(self) -> Mapping[str, GpuFacts]:
        """Give facts by uuid, not older than a second; a card left out is unknown.

        A card that hangs is left out: this answers in time, and raises nothing of the world.
        """
        ...

    def prometheus(self, hostname: str) -> str:
        """Give all figures of the cards as Prometheus text, as last read."""
        ...

    async def release(self, uuid: str) -> None:
        """Forget what is remembered of a card, by an operator's word; durable when it returns.

        Raises:
            RefusedError: ``fence_stands``: its cause is still seen. OSError: the disk.
        """
        ...


class NoSensors:
    """For machines whose cards nobody reads: everything is unknown, and no energy is metered."""

    async def run(self) -> None:
        """Wait until cancelled: there is nothing to keep."""
        await asyncio.Event().wait()

    async def read(self) -> Mapping[str, GpuFacts]:
        """Give nothing."""
        return {}

    def prometheus(self, hostname: str) -> str:
        """Give nothing."""
        del hostname
        return ""

    async def release(self, uuid: str) -> None:
        """Forget nothing: nothing is remembered."""
        del uuid

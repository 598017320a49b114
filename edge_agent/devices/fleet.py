"""The real fleet: poller and driver over the same bridges, behind the `AsicFleet` port."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from edge_agent.core.curve import ModePoint
from edge_agent.devices.asic_driver import AsicDriver, DrivenAsic, DriverSettings
from edge_agent.devices.auto import AutoBridge
from edge_agent.devices.late import LateEffects
from edge_agent.devices.mode_setter import ModeSetter
from edge_agent.devices.one_off import OneOffDriver
from edge_agent.devices.poller import AsicPoller, Known, PollCounts, PolledAsic, PollSettings
from edge_agent.devices.ports import (
    AsicAction,
    AsicBridge,
    AsicNameplate,
    AsicReadings,
    DeviceOutcome,
    ModeMemory,
)
from edge_agent.devices.turns import Turns
from edge_agent.ports import Clock
from firmware_bridges.antminer.family import ANTMINER_STOCK
from firmware_bridges.base import MinerAddress, Reading, WorkMode
from firmware_bridges.bridge import MinerBridge, bridge_of
from firmware_bridges.commands import Command
from firmware_bridges.detect import Prober
from firmware_bridges.family import Family
from firmware_bridges.http.digest import Credentials


class AsicUnit(msgspec.Struct, frozen=True, kw_only=True):
    """One miner of a site.

    Args:
        device_id: Of the site.
        address: Where it listens.
        nameplate: Of its model.
        family: Of its firmware; `None` = it is found out at the first reading.
        credentials: Of its web pages and writes; `None` = the factory's.
        wake_mode: Mode to wake into when the one before sleep is not known.
    """

    device_id: str
    address: MinerAddress
    nameplate: AsicNameplate
    family: Family | None = ANTMINER_STOCK
    credentials: Credentials | None = None
    wake_mode: WorkMode = WorkMode.NORMAL


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the whole fleet.

    Args:
        in_flight: Open connections of the site at one time.
        poll: How to poll.
        drive: How to command.
    """

    in_flight: int = 512
    poll: PollSettings = PollSettings()
    drive: DriverSettings = DriverSettings()


class _Bridges:
    """Makes the bridges of one site, which share its connections."""

    def __init__(
        self, in_flight: asyncio.Semaphore, client_nonce: Callable[[], str], clock: Clock
    ) -> None:
        self._in_flight = in_flight
        self._client_nonce = client_nonce
        self._clock = clock

    def to(self, unit: AsicUnit) -> AsicBridge:
        """Make the bridge to one miner."""
        if unit.family is not None:
            return self._known(unit, unit.family)
        prober = Prober(
            in_flight=self._in_flight,
            client_nonce=self._client_nonce,
            credentials=unit.credentials,
        )
        return AutoBridge(unit.address, prober, lambda family: self._known(unit, family))

    def _known(self, unit: AsicUnit, family: Family) -> MinerBridge:
        return bridge_of(
            family,
            unit.address,
            credentials=unit.credentials,
            in_flight=self._in_flight,
            client_nonce=self._client_nonce,
            wall_s=lambda: self._clock.wall().timestamp(),
        )


class MinerFleet:
    """The miners of a site, implementing `AsicFleet`.

    Args:
        units: In the order of the site's device index.
        clock: For the stamps.
        client_nonce: Fresh random text for digest authentication.
        settings: Of the fleet.
        modes: The modes before sleep, kept over restarts; `None` = in memory only.
    """

    def __init__(
        self,
        units: Sequence[AsicUnit],
        *,
        clock: Clock,
        client_nonce: Callable[[], str],
        settings: FleetSettings,
        modes: ModeMemory | None = None,
    ) -> None:
        in_flight = asyncio.Semaphore(settings.in_flight)
        bridges_of = _Bridges(in_flight, client_nonce, clock)
        bridges = [bridges_of.to(unit) for unit in units]
        pairs = list(zip(units, bridges, strict=True))
        self._poller = AsicPoller(
            [PolledAsic(unit.device_id, bridge) for unit, bridge in pairs],
            clock=clock,
            settings=settings.poll,
            on_reading=self._on_reading,
        )
        self._places = {unit.device_id: index for index, unit in enumerate(units)}
        self._ids = tuple(unit.device_id for unit in units)
        self._late = LateEffects()
        driven = {
            unit.device_id: DrivenAsic(
                device_id=unit.device_id,
                bridge=bridge,
                nameplate=unit.nameplate,
                wake_mode=unit.wake_mode,
            )
            for unit, bridge in pairs
        }
        self._one_offs = OneOffDriver(driven, clock=clock, settings=settings.drive, late=self._late)
        turns = Turns(settings.drive.at_once)
        self._driver = AsicDriver(
            list(driven.values()),
            clock=clock,
            settings=settings.drive,
            late=self._late,
            modes=modes,
            turns=turns,
        )
        self._modes = ModeSetter(
            driven, clock=clock, settings=settings.drive, late=self._late, turns=turns
        )

    async def run(self) -> None:
        """Poll until cancelled; a named task of the composition root."""
        await self._poller.run()

    async def apply(
        self,
        switch_id: str,
        phase: str,
        action: AsicAction,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Carry out one action; see `AsicFleet.apply`."""
        return await self._driver.apply(switch_id, phase, action, device_ids, deadline_s)

    async def set_mode(
        self,
        switch_id: str,
        phase: str,
        mode: ModePoint,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Set a power mode; see `AsicFleet.set_mode`."""
        return await self._modes.apply(switch_id, phase, mode, device_ids, deadline_s)

    async def act(self, verb: str, device_id: str) -> tuple[str, str]:
        """Do a one-off act; see `OneOffDriver.act`."""
        return await self._one_offs.act(verb, device_id)

    async def tell(self, command: Command, device_id: str) -> tuple[str, str]:
        """Send one command; see `OneOffDriver.tell`."""
        return await self._one_offs.tell(command, device_id)

    async def read(self) -> AsicReadings:
        """Give the newest reading of every device."""
        return self._poller.batch()

    async def next_batch(self) -> AsicReadings:
        """Wait for the end of the running tick and give its values: one batch per tick."""
        return await self._poller.next_batch()

    def known(self, device_id: str) -> Known:
        """Give the last good reading of a device with its age, and why it is not newer."""
        return self._poller.known(self._places[device_id])

    def _on_reading(self, index: int, reading: Reading, now_ns: int) -> None:
        self._late.observe(self._ids[index], reading, now_ns)

    def counts(self) -> PollCounts:
        """Give what the poller did so far."""
        return self._poller.counts()

"""The real fleet: poller and driver over the same bridges, behind the `AsicFleet` port."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from edge_agent.devices.asic_driver import AsicDriver, DrivenAsic, DriverSettings
from edge_agent.devices.poller import AsicPoller, PollCounts, PolledAsic, PollSettings
from edge_agent.devices.ports import AsicAction, AsicNameplate, AsicReadings, DeviceOutcome
from edge_agent.ports import Clock
from firmware_bridges.antminer.family import ANTMINER_STOCK
from firmware_bridges.base import MinerAddress, WorkMode
from firmware_bridges.bridge import bridge_of
from firmware_bridges.family import Family
from firmware_bridges.http.digest import Credentials


class AsicUnit(msgspec.Struct, frozen=True, kw_only=True):
    """One miner of a site.

    Args:
        device_id: Of the site.
        address: Where it listens.
        nameplate: Of its model.
        family: Of its firmware.
        credentials: Of its web pages and writes; `None` = the factory's.
        wake_mode: Mode to wake into when the one before sleep is not known.
    """

    device_id: str
    address: MinerAddress
    nameplate: AsicNameplate
    family: Family = ANTMINER_STOCK
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


class MinerFleet:
    """The miners of a site, implementing `AsicFleet`.

    Args:
        units: In the order of the site's device index.
        clock: For the stamps.
        client_nonce: Fresh random text for digest authentication.
        settings: Of the fleet.
    """

    def __init__(
        self,
        units: Sequence[AsicUnit],
        *,
        clock: Clock,
        client_nonce: Callable[[], str],
        settings: FleetSettings,
    ) -> None:
        in_flight = asyncio.Semaphore(settings.in_flight)
        bridges = [
            bridge_of(
                unit.family,
                unit.address,
                credentials=unit.credentials,
                in_flight=in_flight,
                client_nonce=client_nonce,
                wall_s=lambda: clock.wall().timestamp(),
            )
            for unit in units
        ]
        pairs = list(zip(units, bridges, strict=True))
        self._poller = AsicPoller(
            [PolledAsic(unit.device_id, bridge) for unit, bridge in pairs],
            clock=clock,
            settings=settings.poll,
        )
        self._driver = AsicDriver(
            [
                DrivenAsic(
                    device_id=unit.device_id,
                    bridge=bridge,
                    nameplate=unit.nameplate,
                    wake_mode=unit.wake_mode,
                )
                for unit, bridge in pairs
            ],
            clock=clock,
            settings=settings.drive,
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

    async def read(self) -> AsicReadings:
        """Give the newest reading of every device."""
        return self._poller.batch()

    async def next_batch(self) -> AsicReadings:
        """Wait for the end of the running tick and give its values: one batch per tick."""
        return await self._poller.next_batch()

    def counts(self) -> PollCounts:
        """Give what the poller did so far."""
        return self._poller.counts()

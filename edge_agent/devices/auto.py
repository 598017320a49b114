"""A miner whose firmware is not configured: found out at the first reading, then like any other.

What was found is kept for the machine (address and MAC): when another MAC answers, or the answers
make no sense to the family any more, the firmware is looked for again.
"""

from collections.abc import Callable

from firmware_bridges.base import MinerAddress, ReadDetail, Reading, WorkMode, WriteResult
from firmware_bridges.bridge import MinerBridge
from firmware_bridges.commands import Command
from firmware_bridges.detect import Prober
from firmware_bridges.errors import (
    BridgeGarbledError,
    BridgeUnreachableError,
    BridgeUnsupportedError,
)
from firmware_bridges.family import Family
from firmware_bridges.sheet import Capability


class AutoBridge:
    """Reads and controls one miner of any known firmware; implements `AsicBridge`.

    Args:
        address: Where it listens.
        prober: Finds its firmware out.
        bridge_to: Makes the bridge once the firmware is known.
    """

    def __init__(
        self, address: MinerAddress, prober: Prober, bridge_to: Callable[[Family], MinerBridge]
    ) -> None:
        self._address = address
        self._prober = prober
        self._bridge_to = bridge_to
        self._found: MinerBridge | None = None
        self._mac: str | None = None

    @property
    def family_name(self) -> str:
        """Name the firmware family; empty while it is not known."""
        return "" if self._found is None else self._found.family_name

    def effect_s(self, capability: Capability) -> float | None:
        """Give the time within which an effect shows; `None` while it is not known."""
        return None if self._found is None else self._found.effect_s(capability)

    async def read(self, detail: ReadDetail) -> Reading:
        """Read the miner.

        Raises:
            BridgeError: Nothing answered, or nothing that is a miner.
        """
        bridge = await self._bridge()
        try:
            reading = await bridge.read(detail)
        except (BridgeGarbledError, BridgeUnsupportedError):
            self._found = None
            raise
        if reading.mac is not None:
            if self._mac not in (None, reading.mac):
                # Another machine stands at this address: the next reading looks what it is.
                self._found = None
            self._mac = reading.mac
        return reading

    async def mode(self) -> WorkMode | None:
        """Read what it was told to do."""
        return await (await self._bridge()).mode()

    async def set_mode(self, mode: WorkMode) -> WriteResult:
        """Put it to sleep, or wake it into a mode."""
        return await (await self._bridge()).set_mode(mode)

    async def write(self, command: Command) -> WriteResult:
        """Send one command."""
        return await (await self._bridge()).write(command)

    async def _bridge(self) -> MinerBridge:
        if self._found is None:
            found = await self._prober.detect(self._address)
            if found is None:
                raise BridgeUnreachableError(self._address.host, "nothing there speaks as a miner")
            self._found = self._bridge_to(found.decoded.family)
        return self._found

"""Ports of the ASIC side: what the executor asks of a fleet, and a fleet of one miner's bridge.

A command is *commanded*, then *acknowledged*, then *confirmed by effect*: an answer is not
evidence, a rate and a power that were read back are. Until `confirmed`, the power rule counts the
larger of the powers before and after.
"""

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.core.curve import ModePoint
from firmware_bridges.base import MinerState, ReadDetail, Reading, WorkMode, WriteResult
from firmware_bridges.commands import Command
from firmware_bridges.sheet import Capability


class AsicAction(StrEnum):
    """What an ASIC is told to do."""

    CURTAIL = "curtail"
    MINE = "mine"


class OutcomeState(StrEnum):
    """How a command ended, as far as is known."""

    CONFIRMED = "confirmed"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class StateCode(IntEnum):
    """State of a miner inside an array."""

    UNKNOWN = -1
    MINING = 0
    IDLE = 1
    ASLEEP = 2
    STARTING = 3
    FAULT = 4


class ModeCode(IntEnum):
    """Power mode of a miner inside an array."""

    UNKNOWN = -1
    LOW = 0
    NORMAL = 1
    HIGH = 2


MODE_CODES = {
    WorkMode.LOW: ModeCode.LOW,
    WorkMode.NORMAL: ModeCode.NORMAL,
    WorkMode.HIGH: ModeCode.HIGH,
}
STATE_CODES = {
    None: StateCode.UNKNOWN,
    MinerState.MINING: StateCode.MINING,
    MinerState.TUNING: StateCode.MINING,
    MinerState.STARTING: StateCode.STARTING,
    MinerState.IDLE: StateCode.IDLE,
    MinerState.ASLEEP: StateCode.ASLEEP,
    MinerState.STOPPED: StateCode.ASLEEP,
    MinerState.OVERHEATED: StateCode.FAULT,
    MinerState.FAULT: StateCode.FAULT,
}


class DeviceOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one device took one command.

    Args:
        device_id: Of the site.
        state: `confirmed` = the effect was observed; `refused` = the command certainly did not
            take place; `unknown` = it may or may not have (count the larger power).
        commanded_ns: Boottime when the write was sent; `None` = no write was sent, because the
            device was already told, or could not be reached.
        acknowledged_ns: Boottime when the device said yes.
        confirmed_ns: Boottime when the effect was observed.
        hashrate_ths: Last rate that was read; `None` = not read.
        power_w: Last power that was read; `None` where the firmware gives none: the caller then
            takes the nameplate of the mode.
        code: Stable code of the reason when not confirmed, else empty.
        detail: The reason for a person.
    """

    device_id: str
    state: OutcomeState
    commanded_ns: int | None = None
    acknowledged_ns: int | None = None
    confirmed_ns: int | None = None
    hashrate_ths: float | None = None
    power_w: float | None = None
    code: str = ""
    detail: str = ""


class AsicReadings(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The newest reading of every ASIC as read-only columns over the site's device index.

    Sentinels live inside these arrays only: NaN = unknown for rates, powers and temperatures; -1 =
    unknown or never for codes and times.

    Args:
        at_ns: Boottime when the columns were taken.
        device_ids: The index: row i of every column is `device_ids[i]`.
        hashrate_ths: float64.
        power_w: float64; NaN where the firmware gives no power.
        temp_c: float64, hottest chip, else hottest board.
        state: int8, `StateCode`.
        reachable: int8; 1 = answered when last asked, 0 = did not, -1 = never asked.
        measured_ns: int64, boottime of the reading; -1 = none yet.
        mode: int8, `ModeCode` of the power mode that the firmware tells; -1 = it tells none.
    """

    at_ns: int
    device_ids: tuple[str, ...]
    hashrate_ths: npt.NDArray[np.float64]
    power_w: npt.NDArray[np.float64]
    temp_c: npt.NDArray[np.float64]
    state: npt.NDArray[np.int8]
    reachable: npt.NDArray[np.int8]
    measured_ns: npt.NDArray[np.int64]
    mode: npt.NDArray[np.int8] | None = None


class AsicNameplate(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is built for.

    Args:
        hashrate_ths: Rate when mining.
        power_w: Power when mining.
        sleep_power_w: Power when asleep (control board and fans).
    """

    hashrate_ths: float
    power_w: float
    sleep_power_w: float


class AsicBridge(Protocol):
    """One miner, whatever its firmware; `BridgeError` stands for all faults of the world."""

    async def read(self, detail: ReadDetail) -> Reading:
        """Read what it does."""
        ...

    async def mode(self) -> WorkMode | None:
        """Read what it was told to do."""
        ...

    async def set_mode(self, mode: WorkMode) -> WriteResult:
        """Tell it what to do; an error raised here means that nothing was written."""
        ...

    async def write(self, command: Command) -> WriteResult:
        """Send one command; an error raised here means that nothing was written."""
        ...

    @property
    def family_name(self) -> str:
        """Name the firmware family; empty while it is not known."""
        ...

    def effect_s(self, capability: Capability) -> float | None:
        """Give the time within which an effect shows; `None` = not known."""
        ...


class ModeMemory(Protocol):
    """The mode that each miner had before it was put to sleep; it outlives the agent."""

    def mode(self, device_id: str) -> WorkMode | None:
        """Give the mode to wake into; `None` = not known."""
        ...

    async def keep(self, device_id: str, mode: WorkMode) -> None:
        """Keep a mode; returns when it is durable, or cannot be made so."""
        ...


class AsicFleet(Protocol):
    """All ASICs of a site, as the switch executor and the control loop see them."""

    async def apply(
        self,
        switch_id: str,
        phase: str,
        action: AsicAction,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Carry out one action on some devices and wait for its effect, at most `deadline_s`.

        Idempotent on (switch_id, phase): asked again, a confirmed device is not commanded again,
        and an unknown one is read before anything is written.

        Returns:
            One outcome for each device id, in their order.
        """
        ...

    async def set_mode(
        self,
        switch_id: str,
        phase: str,
        mode: ModePoint,
        device_ids: Sequence[str],
        deadline_s: float,
    ) -> tuple[DeviceOutcome, ...]:
        """Bring running miners into a power mode and wait for the effect, at most `deadline_s`.

        Idempotent as `apply`. A miner that says no to the mode is `refused` with `mode.refused` or
        `mode.unsupported`, and mines on as before.

        Returns:
            One outcome for each device id, in their order.
        """
        ...

    async def read(self) -> AsicReadings:
        """Give the newest reading of every device; does not wait for the devices."""
        ...

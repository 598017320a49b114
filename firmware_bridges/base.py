"""What every firmware's answers are turned into, and how partial answers are merged.

Each answer is decoded by itself into a `Partial`; a `Reading` is merged from those that came. A
lost or garbled answer therefore costs its own fields and nothing else. Unknown is `None`: a
placeholder such as -273 C, or 0 W on a hashing unit, never becomes a value.
"""

import ipaddress
from collections.abc import Sequence
from enum import StrEnum

import msgspec

_PORT_MAX = 65_535


class WorkMode(StrEnum):
    """The configured mode of a miner; what it was told to do, not what it does."""

    NORMAL = "normal"
    SLEEP = "sleep"
    HIGH = "high"
    LOW = "low"


class MinerState(StrEnum):
    """What the miner does, by the evidence of its own answers."""

    MINING = "mining"
    IDLE = "idle"
    ASLEEP = "asleep"


class ReadDetail(StrEnum):
    """How much to ask a miner for."""

    FAST = "fast"
    FULL = "full"


class WriteState(StrEnum):
    """What is known of a write: only an effect that was read back confirms it."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class WriteResult(msgspec.Struct, frozen=True, kw_only=True):
    """The device's answer to one write.

    Args:
        state: `unknown` means that the device may or may not have acted: read before any retry.
        code: The device's own code, or ours when it gave none.
        detail: What it said, for a person.
    """

    state: WriteState
    code: str
    detail: str


class MinerAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a miner listens.

    Args:
        host: An IP address; names are refused, because resolving one would block.
        cgminer_port: TCP port of the cgminer API.
        web_port: TCP port of the web pages.

    Raises:
        ValueError: The host is no IP address or a port is outside 1..65535.
    """

    host: str
    cgminer_port: int = 4028
    web_port: int = 80

    def __post_init__(self) -> None:
        """Refuse what could not be dialled."""
        ipaddress.ip_address(self.host)
        for name in ("cgminer_port", "web_port"):
            port = getattr(self, name)
            if not 0 < port <= _PORT_MAX:
                msg = f"{name}: {port} is outside 1..{_PORT_MAX}"
                raise ValueError(msg)


class Fault(msgspec.Struct, frozen=True):
    """One alarm that the firmware itself raised."""

    field: str
    code: str


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """One mining pool as the miner sees it."""

    url: str
    user: str | None = None
    priority: int | None = None
    is_alive: bool | None = None
    is_active: bool | None = None
    accepted: int | None = None
    rejected: int | None = None


class ReadingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What a miner may say of itself; `None` = it did not say.

    Args:
        hashrate_ths: Rate over the shortest window that it gives, TH/s.
        hashrate_avg_ths: Rate since start, TH/s.
        expected_hashrate_ths: What it should reach, TH/s.
        power_w: Input power; an estimate on most firmwares.
        power_limit_w: The set limit.
        uptime_s: Seconds since the mining process started.
        temp_chip_c_max: Hottest chip.
        temp_board_c_max: Hottest board sensor.
        temp_inlet_c: Air at the inlet.
        fan_rpm: One entry for each fan.
        configured_mode: The mode in its configuration.
        state: What it does, by evidence.
        faults: Alarms that it raises; an empty tuple = it says that there are none.
    """

    make: str | None = None
    model: str | None = None
    firmware: str | None = None
    fw_version: str | None = None
    api_version: str | None = None
    mac: str | None = None
    serial: str | None = None
    hostname: str | None = None
    hashrate_ths: float | None = None
    hashrate_avg_ths: float | None = None
    expected_hashrate_ths: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    uptime_s: int | None = None
    configured_mode: WorkMode | None = None
    state: MinerState | None = None
    temp_chip_c_max: float | None = None
    temp_board_c_max: float | None = None
    temp_inlet_c: float | None = None
    fan_rpm: tuple[int, ...] | None = None
    board_count: int | None = None
    chip_count: int | None = None
    pools: tuple[Pool, ...] | None = None
    faults: tuple[Fault, ...] | None = None


class Partial(ReadingFields, frozen=True, kw_only=True):
    """What one answer says.

    Args:
        source: The command or page that was asked.
        rejected: Fields of that answer whose values are implausible and were not taken.
    """

    source: str
    rejected: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True):
    """A command or page that gave nothing, and the stable code of the reason."""

    source: str
    code: str


class Reading(ReadingFields, frozen=True, kw_only=True):
    """One miner at one moment, merged from the answers that came.

    Args:
        address: Host of the miner.
        is_mining: True or False by evidence (a measured rate, or the signs of sleep), never by
            configuration; `None` when there is no evidence.
        answered: Sources that were decoded.
        failed: Sources that were not.
        rejected: `source.field` of every implausible value.
    """

    address: str
    is_mining: bool | None = None
    answered: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    rejected: tuple[str, ...] = ()


def merge(address: str, partials: Sequence[Partial], failed: Sequence[Failure] = ()) -> Reading:
    """Merge what came into one reading; for each field the first source that knows it wins.

    Args:
        address: Host of the miner.
        partials: Decoded answers, most trusted first.
        failed: The answers that did not come.
    """
    values: dict[str, object] = {}
    for partial in partials:
        for name in ReadingFields.__struct_fields__:
            if name not in values and (value := getattr(partial, name)) is not None:
                values[name] = value
    state = _state(partials)
    values["state"] = state
    reading = Reading(
        address=address,
        is_mining=None if state is None else state is MinerState.MINING,
        answered=tuple(part.source for part in partials),
        failed=tuple(failed),
        rejected=tuple(f"{part.source}.{name}" for part in partials for name in part.rejected),
    )
    return msgspec.structs.replace(reading, **values)


def _state(partials: Sequence[Partial]) -> MinerState | None:
    """Judge by the strongest evidence: a measured rate outweighs an empty answer."""
    rates = [part.hashrate_ths for part in partials if part.hashrate_ths is not None]
    states = [part.state for part in partials if part.state is not None]
    if any(rate > 0 for rate in rates):
        return MinerState.MINING
    if MinerState.ASLEEP in states:
        return MinerState.ASLEEP
    if rates:
        return MinerState.IDLE
    return states[0] if states else None

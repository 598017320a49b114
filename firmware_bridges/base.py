"""What every firmware's answers are turned into, and how partial answers are merged.

Each answer is decoded by itself into a `Partial`; a `Reading` is merged from those that came. A
lost or garbled answer therefore costs its own fields and nothing else. Unknown is `None`: a
placeholder such as -273 C, or 0 W on a hashing unit, never becomes a value.
"""

import ipaddress
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final

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
    TUNING = "auto-tuning"
    """Hashes while it looks for its frequencies."""
    STARTING = "starting"
    """Runs up, or restarts: no rate yet."""
    IDLE = "idle"
    """Awake and without a rate: no pool, or nothing said."""
    ASLEEP = "asleep"
    """Told to sleep or to pause, and does."""
    STOPPED = "stopped"
    """Its mining program is stopped."""
    OVERHEATED = "overheated"
    """Stopped itself for heat."""
    FAULT = "fault"
    """Stopped itself for another reason."""


STATES_MINING: Final = frozenset({MinerState.MINING, MinerState.TUNING})


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
        cgminer_port: TCP port instead of 4028. web_port: instead of the web server's. v3_port:
            instead of 4433. `None` = the firmware's own.

    Raises:
        ValueError: The host is no IP address or a port is outside 1..65535.
    """

    host: str
    cgminer_port: int | None = None
    web_port: int | None = None
    v3_port: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be dialled."""
        ipaddress.ip_address(self.host)
        for name in ("cgminer_port", "web_port", "v3_port"):
            port = getattr(self, name)
            if port is not None and not 0 < port <= _PORT_MAX:
                msg = f"{name}: {port} is outside 1..{_PORT_MAX}"
                raise ValueError(msg)

    def port_for(self, usual: int) -> int:
        """Give the port that stands for a firmware's usual one.

        Args:
            usual: 4028 and 4433 are APIs, every other port is a web server's.
        """
        given = {4028: self.cgminer_port, 4433: self.v3_port}.get(usual, self.web_port)
        return usual if given is None else given


class Pool(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One mining pool as the miner sees it."""

    url: str
    user: str | None = None
    priority: int | None = None
    is_alive: bool | None = None
    is_active: bool | None = None
    accepted: int | None = None
    rejected: int | None = None


class ReadingFields(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a miner may say of itself; `None` = it did not say.

    Args:
        make: Maker of the machine (Bitmain, MicroBT ...), whoever wrote its firmware.
        firmware: Who wrote it: `stock`, `luxos`, `braiins`, `vnish` ...
        hashrate_ths: Rate over the shortest window that it gives, TH/s.
        hashrate_avg_ths: Rate since start, TH/s.
        expected_hashrate_ths: Nameplate, or what it should reach with its settings, TH/s.
        power_w: Input power; an estimate on most firmwares.
        power_limit_w: The set limit.
        uptime_s: Seconds since the mining process started.
        chip_temp_c_max: Hottest chip.
        board_temp_c_max: Hottest board sensor.
        inlet_temp_c: Air at the inlet.
        fans_rpm: One entry for each fan of the chassis.
        fan_count: Fans of the chassis; that of `fans_rpm` where the answer gives no other.
        configured_mode: The mode in its configuration: what it was told to do.
        state: What it does, by evidence.
        board_count: Hash boards that the machine has or should have, as the firmware counts.
        chips_total: Chips on all boards.
        pools: Without the empty slots.
        error_codes: What it raises: numbers of the firmware as numbers, else its own text; an empty
            tuple = it says that there is nothing.
        fault_light: Whether its locate light is on.
        power_profile: Name of the profile or preset in force, where the firmware has such.
        power_profiles: (name, watts) of those that it has; the limit follows from the one in force.
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
    chip_temp_c_max: float | None = None
    board_temp_c_max: float | None = None
    inlet_temp_c: float | None = None
    fans_rpm: tuple[int, ...] | None = None
    fan_count: int | None = None
    board_count: int | None = None
    chips_total: int | None = None
    pools: tuple[Pool, ...] | None = None
    error_codes: tuple[int | str, ...] | None = None
    fault_light: bool | None = None
    power_profile: str | None = None
    power_profiles: tuple[tuple[str, float], ...] | None = None


class Partial(ReadingFields, frozen=True, kw_only=True, gc=False):
    """What one answer says.

    Args:
        source: Key of the query that was asked.
        rejected: Fields of that answer whose values are implausible and were not taken.
        repairs: Repairs that were needed to read the answer.
    """

    source: str
    rejected: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True, gc=False):
    """A command or page that gave nothing, and the stable code of the reason."""

    source: str
    code: str


class Reading(ReadingFields, frozen=True, kw_only=True, gc=False):
    """One miner at one moment, merged from the answers that came.

    Args:
        address: Host of the miner.
        is_mining: True or False by evidence (a measured rate, or the signs of sleep), never by
            configuration; `None` when there is no evidence.
        answered: Sources that were decoded.
        failed: Sources that were not.
        rejected: `source.field` of every implausible value.
        repairs: `source:repair` of every repair that was needed.
    """

    address: str
    is_mining: bool | None = None
    answered: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    rejected: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()


class Kept(msgspec.Struct, frozen=True, gc=False):
    """What one answer said, without what it left unsaid: a tenth of a `Partial`, for keeping.

    Args:
        source: Key of the query that was asked.
        names: Of the fields that it knows; equal tuples are one object.
        values: Theirs, in the same order.
    """

    source: str
    names: tuple[str, ...]
    values: tuple[object, ...]


def keep(partial: Partial, without: frozenset[str]) -> Kept:
    """Give what a partial knows, for keeping.

    Args:
        partial: As decoded.
        without: Fields that are left out, because they hold for their own moment only.
    """
    told = _told(partial)
    names = tuple(name for name in told if name not in without)
    values = tuple(_shared(told[name]) for name in names)
    return Kept(partial.source, _one_of(names), values)


def _told(partial: Partial) -> dict[str, object]:
    """Give the fields that a partial knows, by name."""
    told = {
        name: value for name, value in msgspec.structs.asdict(partial).items() if value is not None
    }
    for name in _OF_THE_ANSWER:
        del told[name]
    return told


# Fields of a partial that speak of the answer, not of the machine.
_OF_THE_ANSWER: Final = ("source", "rejected", "repairs")


@lru_cache(maxsize=4_096)
def _one_of(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Give the one object that stands for equal tuples; a site has few of them and many miners."""
    return texts


def _shared(value: object) -> object:
    """Let equal texts of many miners (models, versions, pools) be one object."""
    # Not an enum's member, which is one object as it is.
    return sys.intern(value) if type(value) is str else value


def merge(
    address: str, partials: Sequence[Partial | Kept], failed: Sequence[Failure] = ()
) -> Reading:
    """Merge what came into one reading; for each field the first source that knows it wins.

    Args:
        address: Host of the miner.
        partials: Decoded answers and kept ones, most trusted first.
        failed: The answers that did not come.
    """
    values: dict[str, object] = {}
    for part in reversed(partials):
        if isinstance(part, Kept):
            values.update(zip(part.names, part.values, strict=True))
        else:
            values.update(_told(part))
    fresh = [part for part in partials if isinstance(part, Partial)]
    state = values["state"] = _state(fresh)
    if "power_limit_w" not in values:
        values["power_limit_w"] = _profile_w(values)
    fans = values.get("fans_rpm")
    if "fan_count" not in values and isinstance(fans, tuple):
        values["fan_count"] = len(fans)
    return Reading(
        address=address,
        is_mining=None if state is None else state in STATES_MINING,
        answered=_one_of(tuple([part.source for part in partials])),
        failed=tuple(failed),
        rejected=tuple([f"{part.source}.{name}" for part in fresh for name in part.rejected]),
        repairs=tuple([f"{part.source}:{name}" for part in fresh for name in part.repairs]),
        **values,  # type: ignore[arg-type] # the names are those of ReadingFields
    )


def _profile_w(values: Mapping[str, object]) -> float | None:
    """Give the watts of the profile in force, when one answer names it and another lists them."""
    profiles = values.get("power_profiles")
    if not isinstance(profiles, tuple):
        return None
    return next((watts for name, watts in profiles if name == values.get("power_profile")), None)


def _state(partials: Sequence[Partial]) -> MinerState | None:
    """Judge by the strongest evidence: a measured rate outweighs every word about the state.

    It is the rate that the reading gives, of the most trusted source: the averages of a lesser one
    still fall minutes after the machine went to sleep.
    """
    rates = [part.hashrate_ths for part in partials if part.hashrate_ths is not None]
    states = [part.state for part in partials if part.state is not None]
    if rates and rates[0] > 0:
        return MinerState.TUNING if MinerState.TUNING in states else MinerState.MINING
    # Without a rate nobody mines: the words of a firmware that still says so are its plan.
    told = [state for state in states if not rates or state not in STATES_MINING]
    if told:
        return min(told, key=_CERTAINTY.__getitem__)
    return MinerState.IDLE if rates else None


# Of several words about one moment, the more telling one first.
_CERTAINTY: Final = {
    MinerState.OVERHEATED: 0,
    MinerState.FAULT: 1,
    MinerState.ASLEEP: 2,
    MinerState.STOPPED: 3,
    MinerState.STARTING: 4,
    MinerState.TUNING: 5,
    MinerState.MINING: 6,
    MinerState.IDLE: 7,
}

"""Whether a command had its effect, judged from readings before and after it; pure.

An answer proves nothing, and neither does a mode that the miner reports as set: a command counts
when rate, power, uptime, pools or the light moved as it wanted. Silence is no evidence either way.
"""

from enum import StrEnum
from typing import Final

import msgspec

from firmware_bridges.base import MinerState, Pool, Reading, WorkMode
from firmware_bridges.commands import (
    Command,
    Locate,
    Reboot,
    RestartMining,
    SetMode,
    SetPools,
    SetPowerLimit,
    SetPowerPercent,
    Sleep,
    Wake,
)
from firmware_bridges.sheet import Capability

# A mode or a limit moves the power by tens of percent; the noise of the sensors is below this.
_MOVED_SHARE: Final = 0.03
# How far a limit may be overshot: firmwares regulate on their own estimate.
_LIMIT_SHARE: Final = 0.06
_LIMIT_ECHO_SHARE: Final = 0.02
_UPTIME_SLACK_S: Final = 3.0
_RANKS: Final = {WorkMode.LOW: 0, WorkMode.NORMAL: 1, WorkMode.HIGH: 2}
_CAPABILITIES: Final = {
    Sleep: Capability.SLEEP,
    Wake: Capability.WAKE,
    SetMode: Capability.POWER_MODE,
    SetPowerLimit: Capability.POWER_LIMIT,
    SetPowerPercent: Capability.POWER_PERCENT,
    RestartMining: Capability.RESTART,
    Reboot: Capability.REBOOT,
    Locate: Capability.LOCATE,
    SetPools: Capability.POOLS,
}


class Verdict(StrEnum):
    """What a reading says of a command."""

    EFFECTIVE = "effective"
    NOT_YET = "not yet"
    """The reading shows that it goes on as before."""
    UNSEEN = "unseen"
    """The reading does not say."""


class Rated(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine is built for, and which shares of that count.

    Args:
        hashrate_ths, power_w: When mining. sleep_power_w: When asleep.
        mining_share_min: Share of the rate from which it counts as mining.
        asleep_share_max: Share of the rate up to which it counts as stopped.
        asleep_power_share_max: Share of the power up to which it counts as stopped.
    """

    hashrate_ths: float
    power_w: float
    sleep_power_w: float
    mining_share_min: float = 0.5
    asleep_share_max: float = 0.02
    asleep_power_share_max: float = 0.1


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a command is judged from.

    Args:
        before: Last reading before it; `None` = there was none.
        after: A reading after it.
        elapsed_s: From the reading before to the one after.
        rated: Of the model.
    """

    before: Reading | None
    after: Reading
    elapsed_s: float
    rated: Rated


def capability_of(command: Command) -> Capability:
    """Give the row of the capability table that a command belongs to."""
    return _CAPABILITIES[type(command)]


def judge(command: Command, seen: Evidence) -> Verdict:
    """Judge one command by one reading."""
    match command:
        case Sleep() | SetMode(mode=WorkMode.SLEEP):
            return _asleep(seen)
        case Wake():
            return _mining(seen)
        case SetMode(mode=mode):
            return _in_mode(mode, seen)
        case SetPowerLimit(power_w=limit_w):
            return _limited(float(limit_w), seen, echo_w=float(limit_w))
        case SetPowerPercent(percent=percent):
            return _limited(percent / 100.0 * seen.rated.power_w, seen, echo_w=None)
        case RestartMining() | Reboot():
            return _restarted(seen)
        case Locate(on=on):
            light = seen.after.fault_light
            return Verdict.UNSEEN if light is None else _of(light is on)
        case SetPools(pools=wanted):
            return _has_pools(seen.after.pools, [(_place(pool.url), pool.user) for pool in wanted])


def _asleep(seen: Evidence) -> Verdict:
    """Rate (or the signs of sleep) and, where the firmware gives it, power must agree."""
    rated, after = seen.rated, seen.after
    rate_ths, power_w = after.hashrate_ths, after.power_w
    if after.is_mining is None and rate_ths is None:
        return Verdict.UNSEEN
    if rate_ths is not None and rate_ths > rated.asleep_share_max * rated.hashrate_ths:
        return Verdict.NOT_YET
    limit_w = max(2 * rated.sleep_power_w, rated.asleep_power_share_max * rated.power_w)
    return _of(power_w is None or power_w <= limit_w)


def _mining(seen: Evidence) -> Verdict:
    """The rate must be a good part of what the limit in force leaves of the rated one."""
    rate_ths, limit_w, rated = seen.after.hashrate_ths, seen.after.power_limit_w, seen.rated
    if rate_ths is None:
        return Verdict.UNSEEN
    left = 1.0 if not limit_w else min(1.0, limit_w / rated.power_w)
    return _of(rate_ths >= rated.mining_share_min * left * rated.hashrate_ths)


def _in_mode(mode: WorkMode, seen: Evidence) -> Verdict:
    """The mode must be told, and power (else rate) must have gone its way."""
    after, before = seen.after, seen.before
    if after.configured_mode is not None and after.configured_mode is not mode:
        return Verdict.NOT_YET
    was = None if before is None else before.configured_mode
    if before is None or was is None or was is WorkMode.SLEEP:
        return _mining(seen)
    if was is mode:
        return _of(after.is_mining is not False)
    up = _RANKS[mode] > _RANKS[was]
    for old, new in ((before.power_w, after.power_w), (before.hashrate_ths, after.hashrate_ths)):
        if old and new is not None:
            moved = new / old - 1.0
            return _of(moved >= _MOVED_SHARE if up else moved <= -_MOVED_SHARE and new > 0)
    return Verdict.UNSEEN


def _limited(limit_w: float, seen: Evidence, *, echo_w: float | None) -> Verdict:
    """Power must be within the limit; where it was already, the limit itself must be told."""
    after, before = seen.after, seen.before
    if after.power_w is not None and after.power_w > limit_w * (1.0 + _LIMIT_SHARE):
        return Verdict.NOT_YET
    told_w = after.power_limit_w if echo_w is not None else None
    if echo_w is not None and told_w is not None:
        if abs(told_w - echo_w) > _LIMIT_ECHO_SHARE * echo_w:
            return Verdict.NOT_YET
        return Verdict.UNSEEN if after.power_w is None else Verdict.EFFECTIVE
    was_w = None if before is None else before.power_w
    if after.power_w is None or not was_w:
        return Verdict.UNSEEN
    fell = was_w > limit_w * (1.0 + _LIMIT_SHARE)
    return _of(fell or after.power_w >= was_w * (1.0 + _MOVED_SHARE))


def _restarted(seen: Evidence) -> Verdict:
    """The uptime must be younger than it would be without the restart."""
    after, before = seen.after, seen.before
    if after.uptime_s is None:
        return Verdict.EFFECTIVE if after.state is MinerState.STARTING else Verdict.UNSEEN
    if before is None or before.uptime_s is None:
        return _of(after.uptime_s <= seen.elapsed_s + _UPTIME_SLACK_S)
    return _of(after.uptime_s + _UPTIME_SLACK_S < before.uptime_s + seen.elapsed_s)


def _has_pools(pools: tuple[Pool, ...] | None, told: list[tuple[str, str]]) -> Verdict:
    """The first pools must be those that were told, in their order."""
    if pools is None:
        return Verdict.UNSEEN
    has = [(_place(pool.url), pool.user) for pool in pools[: len(told)]]
    return _of(
        len(has) == len(told)
        and all(
            place == wanted and user in (None, who)
            for (place, user), (wanted, who) in zip(has, told, strict=True)
        )
    )


def _place(url: str) -> str:
    """Give host and port of a pool: firmwares add or drop the scheme."""
    return url.rpartition("//")[2].rstrip("/").lower()


def _of(effective: object) -> Verdict:
    return Verdict.EFFECTIVE if effective else Verdict.NOT_YET

"""The configuration of Bitmain's stock firmware: its mode, and what is written back with a change.

Only an intact configuration is edited: one that was cut and repaired would lose the owner's pools
when written back. Machines before the S19 take a form of other fields and not this object: nothing
is written to them.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from firmware_bridges.base import WorkMode
from firmware_bridges.commands import PoolTarget
from firmware_bridges.errors import BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.rows import Row, as_float

# The numbers that set_miner_conf.cgi takes and get_miner_conf.cgi gives.
MODE_NUMBERS: Final = {
    WorkMode.NORMAL: 0,
    WorkMode.SLEEP: 1,
    WorkMode.HIGH: 2,
    WorkMode.LOW: 3,
}
# The sleep of S17 and T17, also in `Mode` of their stats.
MODE_NUMBER_SLEEP_OLD: Final = 254
MODE_WRITE_KEY: Final = "miner-mode"
MODE_READ_KEY: Final = "bitmain-work-mode"
POOLS_MAX: Final = 3

_SOURCE: Final = "get_miner_conf.cgi"
_MODES: Final = {
    **{number: mode for mode, number in MODE_NUMBERS.items()},
    MODE_NUMBER_SLEEP_OLD: WorkMode.SLEEP,
}
# Elphapex has the same numbers under its own name.
_MODE_KEYS: Final = (MODE_READ_KEY, MODE_WRITE_KEY, "fc-work-mode")
_FREQUENCY_KEY: Final = "bitmain-freq"
# Every generation from the S19 on has one of these beside the frequency, or no frequency at all.
_MARKS_OF_JSON: Final = (
    "bitmain-freq-level",
    "bitmain-hashrate-percent",
    "bitmain-ccdelay",
    "bitmain-pwth",
    MODE_WRITE_KEY,
)


def mode_of(configuration: Row) -> WorkMode | None:
    """Read the configured mode, as a number or a text; `None` = not said or not known."""
    for key in _MODE_KEYS:
        number = as_float(configuration.get(key))
        if number is not None:
            return _MODES.get(int(number)) if number == int(number) else None
    return None


def with_mode(configuration: bytes, mode: WorkMode, address: str) -> bytes:
    """Give the whole configuration with another mode, under both names of the field.

    Raises:
        BridgeGarbledError: The configuration is not strict JSON, or has no pools.
        BridgeUnsupportedError: The machine takes no such object.
    """
    number = MODE_NUMBERS[mode]
    row = _editable(configuration, address)
    return msgspec.json.encode({**row, MODE_READ_KEY: number, MODE_WRITE_KEY: number})


def with_pools(configuration: bytes, pools: Sequence[PoolTarget], address: str) -> bytes:
    """Give the whole configuration with other pools; its mode goes along under both names.

    Raises:
        BridgeGarbledError: The configuration is not strict JSON, or has no pools.
        BridgeUnsupportedError: More than three pools, or none, or the machine takes no such object.
    """
    if not 0 < len(pools) <= POOLS_MAX:
        raise BridgeUnsupportedError(address, f"{len(pools)} pools, 1..{POOLS_MAX} are possible")
    row = _editable(configuration, address)
    number = MODE_NUMBERS[mode_of(row) or WorkMode.NORMAL]
    filled = [{"url": pool.url, "user": pool.user, "pass": pool.password} for pool in pools]
    empty = [{"url": "", "user": "", "pass": ""}] * (POOLS_MAX - len(pools))
    return msgspec.json.encode(
        {**row, MODE_READ_KEY: number, MODE_WRITE_KEY: number, "pools": [*filled, *empty]}
    )


def strict_object(body: bytes, address: str) -> Row:
    """Read a configuration without any repair.

    Raises:
        BridgeGarbledError: It is no strict JSON object.
    """
    try:
        value = msgspec.json.decode(body.rstrip(b"\0"), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BridgeGarbledError(address, f"{_SOURCE}: {exc}") from exc
    return value


def _editable(configuration: bytes, address: str) -> Row:
    row = strict_object(configuration, address)
    if not isinstance(row.get("pools"), list):
        raise BridgeGarbledError(address, f"{_SOURCE}: no list of pools")
    if _FREQUENCY_KEY in row and not any(key in row for key in _MARKS_OF_JSON):
        raise BridgeUnsupportedError(address, "a machine from before the S19 takes a form")
    return row

"""What the controls of both WhatsMiner generations share: waking, and what silence means."""

from collections.abc import Awaitable, Callable
from typing import Final

from firmware_bridges.base import WorkMode, WriteResult, WriteState
from firmware_bridges.commands import PoolTarget, SetPools
from firmware_bridges.errors import BridgeUnsupportedError
from firmware_bridges.http.digest import Credentials
from firmware_bridges.transport import Deadlines
from firmware_bridges.whatsminer.facts import MODES
from firmware_bridges.writes import refused, unknown

# What the maker ships; public, and writes need it changed by the owner first.
FACTORY_V2: Final = Credentials("super", "admin")
FACTORY_V3: Final = Credentials("super", "super")
# A miner drops a connection that stays silent for 10 s; what it has not answered by then, it never
# will.
WRITE_DEADLINES: Final = Deadlines(connect_s=1.5, answer_s=10.0)
POOLS_MAX: Final = 3
MODE_WORDS: Final = {mode: word for word, mode in MODES.items()}


def mode_word(mode: WorkMode, address: str) -> str:
    """Give the firmware's word for a power mode.

    Raises:
        BridgeUnsupportedError: Sleep is no power mode here.
    """
    word = MODE_WORDS.get(mode)
    if word is None:
        raise BridgeUnsupportedError(address, f"{mode}: no power mode of this firmware")
    return word


def pools_of(command: SetPools, address: str) -> tuple[PoolTarget, ...]:
    """Give the pools of a command.

    Raises:
        BridgeUnsupportedError: None, or more than the firmware has places for.
    """
    if not 1 <= len(command.pools) <= POOLS_MAX:
        detail = f"{len(command.pools)} pools, the firmware takes 1..{POOLS_MAX}"
        raise BridgeUnsupportedError(address, detail)
    return command.pools


async def woken(
    start: Callable[[], Awaitable[WriteResult]],
    restore: Callable[[], Awaitable[WriteResult | None]],
) -> WriteResult:
    """Start, then bring the former mode back; the second is tried only once the first was said yes.

    Args:
        start: Sends the start.
        restore: Sends the mode; `None` = there was nothing to send.
    """
    started = await start()
    if started.state is not WriteState.ACKNOWLEDGED:
        return started
    restored = await restore()
    if restored is None or restored.state is WriteState.ACKNOWLEDGED:
        return started
    detail = f"woken, but its mode: {restored.detail}"
    if restored.state is WriteState.REFUSED:
        return refused(restored.code, detail)
    return unknown(restored.code, detail)

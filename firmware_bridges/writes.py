"""What all writes share: the ability behind a command, its deadlines, and what silence means.

Pure but for `send`, which asks once and never again: whoever wants a second try reads first.
"""

from collections.abc import Mapping
from typing import Final

from firmware_bridges.base import WriteResult, WriteState
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
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeError,
    BridgeRefusedError,
    BridgeUnsupportedError,
)
from firmware_bridges.query import Asker, Query
from firmware_bridges.sheet import Capability, Sheet
from firmware_bridges.transport import Deadlines

CONNECT_S: Final = 1.5
DETAIL_CHARS_MAX: Final = 200

_CAPABILITY: Final[Mapping[type, Capability]] = {
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


def deadlines_for(sheet: Sheet, command: Command, address: str) -> Deadlines:
    """Give how long a miner may take to answer a command.

    Raises:
        BridgeUnsupportedError: The sheet of this firmware has no row for it.
    """
    capability = _CAPABILITY[type(command)]
    row = sheet.ability(capability)
    if row is None:
        raise BridgeUnsupportedError(address, f"{sheet.title} has no {capability.value}")
    return Deadlines(connect_s=CONNECT_S, answer_s=row.answer_s)


async def send(asker: Asker, query: Query, deadlines: Deadlines) -> bytes | WriteResult:
    """Send one write; give its answer, or what follows from there being none."""
    try:
        return await asker.ask(query, deadlines)
    except (BridgeAuthError, BridgeRefusedError, BridgeUnsupportedError) as exc:
        return refused(exc.code, exc.detail)
    except BridgeError as exc:
        return (unknown if exc.sent else refused)(exc.code, exc.detail)


def acknowledged(code: str = "", detail: str = "") -> WriteResult:
    """The miner said yes."""
    return _result(WriteState.ACKNOWLEDGED, code, detail)


def refused(code: str, detail: str) -> WriteResult:
    """The miner said no, or nothing reached it."""
    return _result(WriteState.REFUSED, code, detail)


def unknown(code: str, detail: str) -> WriteResult:
    """The miner may or may not have acted."""
    return _result(WriteState.UNKNOWN, code, detail)


def _result(state: WriteState, code: str, detail: str) -> WriteResult:
    return WriteResult(state=state, code=code, detail=detail[:DETAIL_CHARS_MAX])

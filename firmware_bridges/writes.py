"""What became of a write: the miner's answer, or its silence, as one `WriteResult`."""

from collections.abc import Callable, Mapping
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
    """Give how long a miner may take to answer a command, by its firmware's sheet.

    Raises:
        BridgeUnsupportedError: The sheet has no row for it.
    """
    capability = _CAPABILITY[type(command)]
    row = sheet.ability(capability)
    if row is None:
        raise BridgeUnsupportedError(address, f"{sheet.title} has no {capability.value}")
    return Deadlines(connect_s=CONNECT_S, answer_s=row.answer_s)


async def send(
    asker: Asker,
    query: Query,
    judge: Callable[[bytes], WriteResult],
    deadlines: Deadlines | None = None,
) -> WriteResult:
    """Send one write and judge what came back.

    Args:
        asker: To the miner.
        query: The write.
        judge: Reads the answer; it raises `BridgeError` where that cannot be understood.
        deadlines: Of this exchange.

    Returns:
        `unknown` where the request may have reached the miner and nothing clear came back.
    """
    try:
        body = await asker.ask(query, deadlines)
    except BridgeError as exc:
        return _result_of(exc, sent=exc.sent)
    try:
        return judge(body)
    except BridgeError as exc:
        # The miner has answered, so it has the request: what cannot be read leaves it open.
        return _result_of(exc, sent=True)


def acknowledged(detail: str = "", code: str = "") -> WriteResult:
    """Give the result of a write that the miner said yes to."""
    return _result(WriteState.ACKNOWLEDGED, code, detail)


def refused(code: str, detail: str) -> WriteResult:
    """Give the result of a write that certainly did not take place."""
    return _result(WriteState.REFUSED, code, detail)


def unknown(code: str, detail: str) -> WriteResult:
    """Give the result of a write that may or may not have taken place."""
    return _result(WriteState.UNKNOWN, code, detail)


def _result_of(error: BridgeError, *, sent: bool) -> WriteResult:
    if isinstance(error, BridgeAuthError | BridgeRefusedError | BridgeUnsupportedError):
        return refused(error.code, error.detail)
    return (unknown if sent else refused)(error.code, error.detail)


def _result(state: WriteState, code: str, detail: str) -> WriteResult:
    return WriteResult(state=state, code=code, detail=detail[:DETAIL_CHARS_MAX])

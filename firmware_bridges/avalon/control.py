"""Writes of Avalon through `ascset`; sleep and wake are scheduled, at least five seconds ahead.

`softon` may close the connection without an answer, and an acknowledgement only repeats the time;
what follows is seen by reading. Source: recorded answers of a Home Q and an A1566.
"""

from typing import Final

from firmware_bridges.avalon.decode import decode_stats
from firmware_bridges.base import WorkMode, WriteResult
from firmware_bridges.cgminer.codec import Severity, decode_answers, raise_for_status
from firmware_bridges.commands import (
    Command,
    Locate,
    Reboot,
    SetMode,
    SetPowerLimit,
    Sleep,
    Wake,
)
from firmware_bridges.errors import BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.family import ControlContext
from firmware_bridges.query import Query, cgminer
from firmware_bridges.transport import Deadlines
from firmware_bridges.writes import acknowledged, refused, send

AHEAD_S: Final = 5
DEADLINES: Final = Deadlines(connect_s=1.5, answer_s=5.0)
CODE_REFUSED: Final = "avalon.refused"

_MODES: Final = {WorkMode.NORMAL: 0, WorkMode.HIGH: 1}
_ASCSET: Final = "ascset"


class AvalonControl:
    """Commands one machine.

    Args:
        context: To the machine; its clock gives the times of sleep and wake.
    """

    def __init__(self, context: ControlContext) -> None:
        self._asker = context.asker
        self._address = context.address
        self._wall_s = context.wall_s

    async def mode(self) -> WorkMode | None:
        """Read whether it was switched off.

        Raises:
            BridgeError: It could not be read.
        """
        body = await self._asker.ask(cgminer("estats"))
        answer = decode_answers(body, ("estats",), self._address)[0]
        raise_for_status(answer, self._address)
        return decode_stats(answer).configured_mode

    async def write(self, command: Command) -> WriteResult:
        """Send one command; see `MinerControl`."""
        return await send(self._asker, self._query(command), self._judge, DEADLINES)

    def _query(self, command: Command) -> Query:
        at = int(self._wall_s()) + AHEAD_S
        match command:
            case Sleep():
                return _set(f"0,softoff,1:{at}")
            case Wake():
                return _set(f"0,softon,1:{at}")
            case SetMode(mode=mode) if mode in _MODES:
                return _set(f"0,workmode,{_MODES[mode]}")
            case SetPowerLimit(power_w=power_w):
                return _set(f"0,worklevel,set,{power_w}")
            case Locate(on=on):
                return _set(f"0,led,1-{1 if on else 0}")
            case Reboot():
                return _set("0,reboot,0")
        name = type(command).__name__
        raise BridgeUnsupportedError(self._address, f"{name}: not on Avalon in this form")

    def _judge(self, body: bytes) -> WriteResult:
        answer = decode_answers(body, (_ASCSET,), self._address)[0]
        raise_for_status(answer, self._address)
        if not answer.status:
            raise BridgeGarbledError(self._address, "the answer names no result", sent=True)
        said = answer.status[0].message or ""
        if answer.status[0].severity is Severity.WARNING or "fail" in said.lower():
            return refused(CODE_REFUSED, said)
        return acknowledged(said)


def _set(parameter: str) -> Query:
    return cgminer(_ASCSET, parameter=parameter)

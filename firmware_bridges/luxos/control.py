"""Control of LuxOS: every write goes through its one session, which is taken and given back.

A session keeps several clients from configuring one miner at once. One that somebody else holds is
reported and not used; one of ours that was left open, because an answer was lost, is used again.
Source: the vendor's public documents of its API.
"""

import asyncio
from typing import Final

from firmware_bridges.base import WorkMode, WriteResult, WriteState
from firmware_bridges.cgminer.codec import decode_answers
from firmware_bridges.cgminer.writes import judge, read, replace_pools, write
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
from firmware_bridges.errors import BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.family import ControlContext
from firmware_bridges.luxos.decode import told_mode
from firmware_bridges.luxos.profiles import Profile, at_most, normal_of, profiles_of
from firmware_bridges.luxos.sheet import SHEET
from firmware_bridges.query import cgminer
from firmware_bridges.rows import as_text
from firmware_bridges.transport import Deadlines
from firmware_bridges.writes import deadlines_for, refused

LOW_SHARE: Final = 0.75
"""Share of the normal profile's watts that `low` may draw; as much as Bitmain's low mode."""

# A profile of such a name would be taken for the number of a board, of which older releases ask.
_BOARD_NUMBERS: Final = frozenset("0123")

_Steps = tuple[tuple[str, str], ...]
"""Commands of one session and what follows the session's id in their parameter."""


class LuxosControl:
    """The writes of one miner.

    Args:
        context: What it is made of.
    """

    def __init__(self, context: ControlContext) -> None:
        self._asker = context.asker
        self._address = context.address
        self._ours: str | None = None
        self._one = asyncio.Lock()

    async def mode(self) -> WorkMode | None:
        """Read what it was told: curtailed, or a profile below or above the normal one.

        Raises:
            BridgeError: It could not be read.
        """
        return told_mode(await read(self._asker, "config", self._address))

    async def write(self, command: Command) -> WriteResult:
        """Send one command, within a session where the firmware wants one.

        Raises:
            BridgeUnsupportedError: This firmware has no such command; nothing was sent.
            BridgeError: Profiles, pools or the session could not be read; nothing was written.
        """
        deadlines = deadlines_for(SHEET, command, self._address)
        async with self._one:
            match command:
                case Sleep():
                    return await self._within_session((("curtail", "sleep"),), deadlines)
                case Wake():
                    return await self._within_session((("curtail", "wakeup"),), deadlines)
                case Locate(on=on):
                    light = "red,blink" if on else "red,auto"
                    return await self._within_session((("ledset", light),), deadlines)
                case RestartMining():
                    return await self._within_session((("resetminer", ""),), deadlines)
                case Reboot():
                    return await self._within_session((("rebootdevice", ""),), deadlines)
                case SetPools(pools=pools):
                    return await replace_pools(self._asker, pools, self._address, deadlines)
                case SetMode() | SetPowerLimit() | SetPowerPercent():
                    return await self._set_profile(command, deadlines)

    async def _set_profile(
        self, command: SetMode | SetPowerLimit | SetPowerPercent, deadlines: Deadlines
    ) -> WriteResult:
        profiles = profiles_of(await read(self._asker, "profiles", self._address))
        chosen = self._chosen(command, profiles)
        if isinstance(chosen, WriteResult):
            return chosen
        name = f"0,{chosen.name}" if chosen.name in _BOARD_NUMBERS else chosen.name
        # The automatic thermal management would choose another profile at once.
        steps = (("atmset", "enabled=false"), ("profileset", name))
        return await self._within_session(steps, deadlines)

    def _chosen(
        self,
        command: SetMode | SetPowerLimit | SetPowerPercent,
        profiles: tuple[Profile, ...],
    ) -> Profile | WriteResult:
        """Choose the profile of a command, or say why there is none."""
        if isinstance(command, SetPowerLimit):
            return _at_most(profiles, command.power_w)
        normal = normal_of(profiles)
        if isinstance(command, SetMode) and command.mode not in (WorkMode.NORMAL, WorkMode.LOW):
            raise BridgeUnsupportedError(
                self._address, f"mode {command.mode.value}: LuxOS has profiles; give a power limit"
            )
        if normal is None:
            return refused("luxos.no_normal_profile", "no profile is marked as the normal one")
        if isinstance(command, SetPowerPercent):
            return _at_most(profiles, normal.power_w * command.percent / 100)
        if command.mode is WorkMode.LOW:
            return _at_most(profiles, normal.power_w * LOW_SHARE)
        return normal

    async def _within_session(self, steps: _Steps, deadlines: Deadlines) -> WriteResult:
        session = await self._session()
        if isinstance(session, WriteResult):
            return session
        self._ours = session
        for command, rest in steps:
            parameter = f"{session},{rest}" if rest else session
            result = await write(self._asker, command, parameter, self._address, deadlines)
            if result.state is not WriteState.ACKNOWLEDGED:
                break
        if command in ("rebootdevice", "resetminer") and result.state is WriteState.ACKNOWLEDGED:
            self._ours = None
        elif result.state is not WriteState.UNKNOWN:
            await self._give_back(session, deadlines)
        return result

    async def _session(self) -> str | WriteResult:
        """Take the session; that which we left open is used again."""
        if self._ours is not None and self._ours == await self._shown():
            return self._ours
        self._ours = None
        body = await self._asker.ask(cgminer("logon"))
        (answer,) = decode_answers(body, ("logon",), self._address)
        rows = answer.section("SESSION") or ()
        session = as_text(rows[0].get("SessionID")) if rows else None
        if session is not None:
            return session
        result = judge(answer)
        if result.state is WriteState.REFUSED and await self._shown() is not None:
            return refused(
                "luxos.session_held", f"another client holds the session: {result.detail}"
            )
        if result.state is WriteState.REFUSED:
            return result
        return refused(BridgeGarbledError.code, "logon: no session was given")

    async def _shown(self) -> str | None:
        answer = await read(self._asker, "session", self._address)
        rows = answer.section("SESSION") or ()
        return as_text(rows[0].get("SessionID")) if rows else None

    async def _give_back(self, session: str, deadlines: Deadlines) -> None:
        """End the session; one that could not be ended ends by itself after a minute."""
        result = await write(self._asker, "logoff", session, self._address, deadlines)
        if result.state is not WriteState.UNKNOWN:
            self._ours = None


def _at_most(profiles: tuple[Profile, ...], limit_w: float) -> Profile | WriteResult:
    chosen = at_most(profiles, limit_w)
    if chosen is not None:
        return chosen
    least = min((profile.power_w for profile in profiles), default=None)
    says = "it lists no profile" if least is None else f"its least profile draws {least:g} W"
    return refused("luxos.no_profile", f"no profile within {limit_w:g} W: {says}")

"""Writes of Bitmain's stock firmware: the whole configuration is read, changed and posted back.

The mode goes out under both of its names; `set_miner_conf.cgi` answers after the reload, some 21 s
later, and the API is away meanwhile. Source: recorded answers of an S21; 256foundation/asic-rs
issues 245 and 249 on the key and the time.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from firmware_bridges.antminer.configuration import (
    mode_of,
    strict_object,
    with_mode,
    with_pools,
)
from firmware_bridges.base import WorkMode, WriteResult, WriteState
from firmware_bridges.commands import (
    Command,
    Locate,
    Reboot,
    SetMode,
    SetPools,
    Sleep,
    Wake,
)
from firmware_bridges.errors import BridgeGarbledError, BridgeUnsupportedError
from firmware_bridges.family import ControlContext
from firmware_bridges.query import page, submit
from firmware_bridges.transport import Deadlines
from firmware_bridges.writes import send

CGI: Final = "/cgi-bin/"
# About 21 s were seen; a deadline of 5 s made false failures.
_SUCCESS: Final = "success"
_CODE_CHARS_MAX: Final = 32
# blink.cgi answers with these instead of "success"; on and off.
_BLINK_CODES: Final = frozenset({"B000", "B100"})
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]+")
CONFIGURE: Final = Deadlines(connect_s=1.5, answer_s=30.0)


class AntminerControl:
    """Commands one machine.

    Args:
        context: To the machine.
    """

    __slots__ = ("_address", "_asker")

    def __init__(self, context: ControlContext) -> None:
        self._asker = context.asker
        self._address = context.address

    async def mode(self) -> WorkMode | None:
        """Read the configured mode.

        Raises:
            BridgeError: It could not be read.
        """
        return mode_of(strict_object(await self._configuration(), self._address))

    async def write(self, command: Command) -> WriteResult:
        """Send one command; see `MinerControl`."""
        match command:
            case Sleep():
                return await self._configure(_mode(WorkMode.SLEEP))
            case Wake(mode=mode):
                return await self._configure(_mode(mode or WorkMode.NORMAL))
            case SetMode(mode=mode) if mode is not WorkMode.SLEEP:
                return await self._configure(_mode(mode))
            case SetPools(pools=pools):
                return await self._configure(lambda body, at: with_pools(body, pools, at))
            case Locate(on=on):
                blink = {"blink": "true" if on else "false"}
                return await send(self._asker, submit(CGI + "blink.cgi", blink), judge_write)
            case Reboot():
                return await send(self._asker, submit(CGI + "reboot.cgi", None), judge_write)
        raise BridgeUnsupportedError(self._address, f"{type(command).__name__}: not on stock")

    async def _configuration(self) -> bytes:
        return await self._asker.ask(page(CGI + "get_miner_conf.cgi"))

    async def _configure(self, edit: Callable[[bytes, str], bytes]) -> WriteResult:
        """Read the configuration, edit it and write it back.

        Raises:
            BridgeError: It could not be read whole, or is none that may be written back; nothing
                was written.
        """
        body = edit(await self._configuration(), self._address)
        query = submit(CGI + "set_miner_conf.cgi", body)
        return await send(self._asker, query, judge_write, CONFIGURE)


def _mode(mode: WorkMode) -> Callable[[bytes, str], bytes]:
    return lambda body, address: with_mode(body, mode, address)


def judge_write(body: bytes) -> WriteResult:
    """Judge what a page said to a write; what cannot be understood is `unknown`."""
    try:
        row = msgspec.json.decode(body.rstrip(b"\0"), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return WriteResult(
            state=WriteState.UNKNOWN, code=BridgeGarbledError.code, detail="answer is no object"
        )
    code = _code(row.get("code"))
    stats = row.get("stats")
    detail = str(row.get("msg", ""))[:_CODE_CHARS_MAX]
    if stats == _SUCCESS or code in _BLINK_CODES:
        return WriteResult(state=WriteState.ACKNOWLEDGED, code=code, detail=detail)
    if isinstance(stats, str):
        return WriteResult(state=WriteState.REFUSED, code=code, detail=f"{stats}: {detail}")
    return WriteResult(state=WriteState.UNKNOWN, code=code, detail="answer names no result")


def _code(value: object) -> str:
    found = _CODE.match(value) if isinstance(value, str) else None
    return found.group()[:_CODE_CHARS_MAX] if found else ""

"""Writes of WhatsMiner API v3: each signed with a token of command, password, salt and time."""

from collections.abc import Mapping
from typing import Final

import msgspec

from firmware_bridges.base import WorkMode, WriteResult
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
from firmware_bridges.document import Document, object_of, read_json
from firmware_bridges.errors import BridgeGarbledError
from firmware_bridges.family import ControlContext
from firmware_bridges.query import Query, Wire, btminer_v3
from firmware_bridges.rows import Row, as_text
from firmware_bridges.whatsminer.cipher import digest_v3, seal_v3, token_v3
from firmware_bridges.whatsminer.control import (
    FACTORY_V3,
    WRITE_DEADLINES,
    mode_word,
    pools_of,
    woken,
)
from firmware_bridges.whatsminer.decode_v3 import (
    CODE_NO_PERMISSION,
    CODE_OK,
    code_of,
    decode_device_info,
    decode_setting,
    refusal,
)
from firmware_bridges.writes import acknowledged, refused, send, unknown

_INFO: Final = "get.device.info"
_SETTING: Final = "get.miner.setting"
_SERVICE: Final = "set.miner.service"
_POOLS: Final = "set.miner.pools"
_MEANINGS: Final = {
    CODE_NO_PERMISSION: "no permission: wrong password, or the owner has not enabled the write API",
    -2: "the firmware does not know this command",
    -1: "command failed",
}
_SERVICES: Final[Mapping[type, str]] = {Sleep: "stop", Wake: "start", RestartMining: "restart"}
_LED_ON: Final = ({"color": "red", "period": 200, "duration": 100, "start": 0},)


class WhatsminerV3Control:
    """Steers one miner.

    Args:
        context: The way to it.
    """

    def __init__(self, context: ControlContext) -> None:
        self._context = context
        self._credentials = context.credentials or FACTORY_V3
        self._salt: str | None = None

    async def mode(self) -> WorkMode | None:
        """Read what it was told to do; a stopped service is sleep.

        Raises:
            BridgeError: It could not be read.
        """
        info = decode_device_info(await self._read(_INFO, "miner"))
        if info.configured_mode is not None:
            return info.configured_mode
        return decode_setting(await self._read(_SETTING)).configured_mode

    async def write(self, command: Command) -> WriteResult:
        """Send one command.

        Raises:
            BridgeUnsupportedError: Not in this firmware; nothing was sent.
            BridgeError: The salt could not be fetched; nothing was written.
        """
        if isinstance(command, Wake):
            mode = command.mode
            return await woken(
                lambda: self._send(_SERVICE, _SERVICES[Wake]), lambda: self._restore(mode)
            )
        return await self._send(*_request(command, self._context.address))

    async def _restore(self, mode: WorkMode | None) -> WriteResult | None:
        if mode is None or mode is WorkMode.SLEEP:
            return None
        return await self._send(*_request(SetMode(mode), self._context.address))

    async def _send(self, name: str, param: object) -> WriteResult:
        """Send one command; where it is not permitted, the salt is fetched again, once."""
        if self._salt is not None:
            result = await self._attempt(self._salt, name, param)
            if result.code != str(CODE_NO_PERMISSION):
                return result
        self._salt = await self._new_salt()
        return await self._attempt(self._salt, name, param)

    async def _new_salt(self) -> str:
        document = await self._read(_INFO, "salt")
        answer = object_of(document)
        message = answer.get("msg")
        salt = as_text(message.get("salt")) if isinstance(message, dict) else None
        if salt is not None and code_of(answer) == CODE_OK:
            return salt
        if code_of(answer) not in (CODE_OK, None):
            raise refusal(answer, self._context.address)
        raise BridgeGarbledError(self._context.address, f"{_INFO}: no salt in the answer")

    async def _attempt(self, salt: str, name: str, param: object) -> WriteResult:
        ts = int(self._context.wall_s())
        digest = digest_v3(name, self._credentials.password, salt, ts)
        body: dict[str, object] = {
            "cmd": name,
            "ts": ts,
            "token": token_v3(digest),
            "account": self._credentials.user,
        }
        if name == _POOLS:
            body["param"] = seal_v3(digest, msgspec.json.encode(param))
        elif param is not None:
            body["param"] = param
        query = Query(wire=Wire.BTMINER_V3, key=name, payload=msgspec.json.encode(body))

        def judge(raw: bytes) -> WriteResult:
            try:
                return judged(object_of(read_json(raw, self._context.address, name)))
            except BridgeGarbledError as exc:
                # It came after the whole command was sent, so the miner may have acted.
                return unknown(exc.code, exc.detail)

        return await send(self._context.asker, query, judge, WRITE_DEADLINES)

    async def _read(self, command: str, parameter: object = None) -> Document:
        raw = await self._context.asker.ask(btminer_v3(command, parameter))
        return read_json(raw, self._context.address, command)


def judged(answer: Row) -> WriteResult:
    """Judge what the miner said."""
    code = code_of(answer)
    said = as_text(answer.get("msg")) or "no reason given"
    if code is None:
        return unknown("", "answer names no result")
    if code == CODE_OK:
        return acknowledged(said, str(code))
    return refused(str(code), (_MEANINGS[code] + ": " if code in _MEANINGS else "") + said)


def _request(command: Command, address: str) -> tuple[str, object]:
    match command:
        case Sleep() | Wake() | RestartMining():
            return _SERVICE, _SERVICES[type(command)]
        case SetMode(mode=mode):
            return "set.miner.power_mode", mode_word(mode, address)
        case SetPowerLimit(power_w=watts):
            return "set.miner.power_limit", watts
        case SetPowerPercent(percent=percent):
            # A text: to a number, which the document names, the firmware answers -1.
            return "set.miner.power_percent", {"percent": str(percent), "mode": "normal"}
        case Reboot():
            return "set.system.reboot", None
        case Locate(on=on):
            return "set.system.led", list(_LED_ON) if on else "auto"
        case SetPools():
            pools = pools_of(command, address)
            rows = [{"pool": p.url, "worker": p.user, "passwd": p.password} for p in pools]
            return _POOLS, rows

"""Writes of WhatsMiner API v1 and v2: `get_token`, then commands encrypted with what it gave.

A token lives 30 minutes, and a miner keeps 32 of them for each of 16 clients: one is made, and used
until it is old or the miner no longer takes it.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from firmware_bridges.base import WorkMode, WriteResult
from firmware_bridges.cgminer.codec import Answer, Severity, decode_answers
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
from firmware_bridges.errors import BridgeError, BridgeGarbledError
from firmware_bridges.family import ControlContext
from firmware_bridges.query import Query, Wire, cgminer
from firmware_bridges.rows import Row, as_text
from firmware_bridges.whatsminer.cipher import TokenV2, open_v2, seal_v2, token_v2
from firmware_bridges.whatsminer.control import (
    FACTORY_V2,
    POOLS_MAX,
    WRITE_DEADLINES,
    mode_word,
    pools_of,
    woken,
)
from firmware_bridges.whatsminer.decode import decode_status, decode_summary
from firmware_bridges.whatsminer.facts import mode_of
from firmware_bridges.writes import acknowledged, refused, send, unknown

TOKEN_LIFE_S: Final = 25 * 60
CODE_OK: Final = 131
CODE_TOKEN_WRONG: Final = 135
_MEANINGS: Final = {
    45: "permission denied: the owner has not enabled the write API in the maker's tool",
    132: "command failed",
    CODE_TOKEN_WRONG: "token wrong or too old (or the password is)",
    136: "too many tokens are in use on this miner",
}
_LED_ON: Final = {"color": "red", "period": "200", "duration": "100", "start": "0"}

_Params = Mapping[str, object]
_PLAIN: Final[Mapping[type, tuple[str, _Params]]] = {
    # A text, not a truth value: answer first, then act.
    Sleep: ("power_off", {"respbefore": "true"}),
    Wake: ("power_on", {}),
    RestartMining: ("restart_btminer", {}),
    Reboot: ("reboot", {}),
}


class _Token(msgspec.Struct, frozen=True, kw_only=True):
    token: TokenV2
    until_s: float


class WhatsminerV2Control:
    """Steers one miner.

    Args:
        context: The way to it.
    """

    def __init__(self, context: ControlContext) -> None:
        self._context = context
        self._password = (context.credentials or FACTORY_V2).password
        self._token: _Token | None = None

    async def mode(self) -> WorkMode | None:
        """Read what it was told to do; an off miner sleeps.

        Raises:
            BridgeError: It could not be read.
        """
        status = await self._read("status")
        if (mode := decode_status(status).configured_mode) is not None:
            return mode
        if (mode := _power_mode(status)) is not None:
            return mode
        return decode_summary(await self._read("summary")).configured_mode

    async def write(self, command: Command) -> WriteResult:
        """Send one command.

        Raises:
            BridgeUnsupportedError: Not in this firmware; nothing was sent.
            BridgeError: The token could not be fetched; nothing was written.
        """
        if isinstance(command, Wake):
            mode = command.mode
            return await woken(lambda: self._send(*_PLAIN[Wake]), lambda: self._restore(mode))
        return await self._send(*_request(command, self._context.address))

    async def _restore(self, mode: WorkMode | None) -> WriteResult | None:
        """Set the former mode where the firmware, which keeps its own, has another one."""
        if mode is None or mode is WorkMode.SLEEP:
            return None
        try:
            if _power_mode(await self._read("status")) is mode:
                return None
        except BridgeError:
            # Not said: setting the same mode again costs a restart of what has just started.
            pass
        return await self._send(*_request(SetMode(mode), self._context.address))

    async def _send(self, name: str, params: _Params) -> WriteResult:
        """Send one command; a token that the miner no longer takes is renewed once."""
        kept = self._token
        if kept is not None and self._context.wall_s() < kept.until_s:
            result = await self._attempt(kept.token, name, params)
            if result.code != str(CODE_TOKEN_WRONG):
                return result
        token = await self._new_token()
        if isinstance(token, WriteResult):
            return token
        return await self._attempt(token, name, params)

    async def _new_token(self) -> TokenV2 | WriteResult:
        self._token = None
        answer = await self._read("get_token")
        rows = answer.section("Msg") or ({},)
        parts = [as_text(rows[0].get(name)) for name in ("salt", "newsalt", "time")]
        salt, new_salt, time = parts
        if salt is None or new_salt is None or time is None:
            return judged(answer, is_write=False)
        token = token_v2(self._password, salt, new_salt, time)
        self._token = _Token(token=token, until_s=self._context.wall_s() + TOKEN_LIFE_S)
        return token

    async def _attempt(self, token: TokenV2, name: str, params: _Params) -> WriteResult:
        body = msgspec.json.encode({"token": token.sign, "cmd": name, **params})
        sealed = msgspec.json.encode({"enc": 1, "data": seal_v2(token.key, body)})
        query = Query(wire=Wire.CGMINER, key=name, payload=sealed)

        def judge(raw: bytes) -> WriteResult:
            return judged(_opened(raw, token, name, self._context.address), is_write=True)

        return await send(self._context.asker, query, judge, WRITE_DEADLINES)

    async def _read(self, command: str) -> Answer:
        raw = await self._context.asker.ask(cgminer(command))
        return decode_answers(raw, (command,), self._context.address)[0]


def judged(answer: Answer, *, is_write: bool) -> WriteResult:
    """Judge what the miner said.

    Args:
        answer: Decrypted.
        is_write: False for what comes before a write: then nothing can have happened.
    """
    status = answer.status[0] if answer.status else None
    code = None if status is None else status.code
    said = ("" if status is None else status.message) or "no reason given"
    detail = (_MEANINGS[code] + ": " if code in _MEANINGS else "") + said
    text = "" if code is None else str(code)
    if status is not None and is_write and _is_yes(status.severity, code):
        return acknowledged(detail, text)
    if not is_write or code in _MEANINGS or (status and status.severity is Severity.ERROR):
        return refused(text, detail)
    return unknown(text, detail)


def _is_yes(severity: Severity | None, code: int | None) -> bool:
    return severity is Severity.SUCCESS and code not in _MEANINGS


def _opened(raw: bytes, token: TokenV2, name: str, address: str) -> Answer:
    """Read an answer, encrypted or not: refusals come in plain text.

    Raises:
        BridgeGarbledError: It cannot be read; it came after the whole command was sent.
    """
    try:
        sealed = msgspec.json.decode(raw.rstrip(b"\0 \r\n"), type=dict[str, object]).get("enc")
        plain = open_v2(token.key, sealed) if isinstance(sealed, str) else raw
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as exc:
        detail = f"{name}: the answer cannot be decrypted"
        raise BridgeGarbledError(address, detail, sent=True) from exc
    try:
        return decode_answers(plain, (name,), address)[0]
    except BridgeGarbledError as exc:
        raise BridgeGarbledError(address, f"{name}: {exc.detail}", sent=True) from exc


def _power_mode(status: Answer) -> WorkMode | None:
    rows: tuple[Row, ...] = status.section("Msg") or ({},)
    return mode_of(rows[0].get("power_mode"))


def _request(command: Command, address: str) -> tuple[str, _Params]:
    """Give the command's name and parameters; all values are texts on this firmware."""
    match command:
        case Sleep() | Wake() | RestartMining() | Reboot():
            return _PLAIN[type(command)]
        case SetMode(mode=mode):
            return f"set_{mode_word(mode, address)}_power", {}
        case SetPowerLimit(power_w=watts):
            return "adjust_power_limit", {"power_limit": str(watts)}
        case SetPowerPercent(percent=percent):
            return "set_power_pct", {"percent": str(percent)}
        case Locate(on=on):
            return "set_led", dict(_LED_ON) if on else {"param": "auto"}
        case SetPools():
            return "update_pools", _pools(command, address)


def _pools(command: SetPools, address: str) -> _Params:
    pools = pools_of(command, address)
    params: dict[str, object] = {}
    for place in range(POOLS_MAX):
        pool = pools[place] if place < len(pools) else None
        params[f"pool{place + 1}"] = "" if pool is None else pool.url
        params[f"worker{place + 1}"] = "" if pool is None else pool.user
        params[f"passwd{place + 1}"] = "" if pool is None else pool.password
    return params

"""WhatsMiner of API v2 as a dialect: plain reads, and writes under a token and AES.

A miner keeps 32 tokens for a client, half an hour each; who asks is not seen here, so all are of
one client. Writes wait for the owner to enable them: a locked machine gives no token. Source: the
vendor's API document 2.0.5; the wording of refusals is an assumption.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from simulators import asic_whatsminer_reads as reads
from simulators.asic_dialect import RESET, OneWire, Outcome, Unit, answer
from simulators.asic_pools import Pool
from simulators.asic_rpc import CODE_INVALID_COMMAND, CODE_INVALID_JSON, REQUEST_BYTES_MAX, Json
from simulators.asic_whatsminer_secrets import decrypt_zeros, encrypt_zeros, v2_keys
from simulators.asic_whatsminer_state import (
    LIMIT_NONE_W,
    MODES,
    POOLS_MAX,
    REBOOT,
    TOKEN_LIFE_S,
    TOKENS_MAX,
    Memory,
    Token,
    memory_of,
    salt_of,
    whole,
)

CODE_PERMISSION = 45
CODE_OK = 131
CODE_FAILED = 132
CODE_TOKEN_GIVEN = 134
CODE_TOKEN_WRONG = 135
CODE_TOKENS_OUT = 136
_Fields = dict[str, object]


class WhatsminerDialect(OneWire):
    """WhatsMiner stock firmware, API v2.

    Args:
        secret: Seed of its salts.
        password: Of the write API.
        locked: The owner has not enabled the write API.
    """

    def __init__(self, secret: int, *, password: str = "admin", locked: bool = False) -> None:  # noqa: S107 - the maker's published default
        self.name = "whatsminer-locked" if locked else "whatsminer"
        self._secret = secret
        self._password = password
        self._locked = locked

    def begin(self, unit: Unit) -> object:
        """Start as the miner is."""
        return Memory(unit)

    def restart(self, unit: Unit) -> None:
        """Boot; one that was switched off stays so."""
        memory_of(unit).work(unit, REBOOT)

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """Answer one request, plain or encrypted."""
        if unit.is_api_away:
            return RESET
        try:
            fields = msgspec.json.decode(
                data[:REQUEST_BYTES_MAX].rstrip(b"\0\r\n "), type=dict[str, object]
            )
        except msgspec.DecodeError:
            return _plain(reads.refuse(unit, CODE_INVALID_JSON, "invalid json"))
        if fields.get("enc") == 1:
            return self._encrypted(unit, str(fields.get("data", "")))
        command = str(fields.get("cmd") or fields.get("command") or "")
        if command == "get_token":
            return _plain(self._token(unit))
        if command in _WRITES:
            return _plain(reads.refuse(unit, CODE_PERMISSION, "permission denied"))
        told = reads.read(unit, command)
        if told is None:
            return _plain(reads.refuse(unit, CODE_INVALID_COMMAND, "invalid cmd"))
        return answer(told)

    def _token(self, unit: Unit) -> Json:
        memory = memory_of(unit)
        if self._locked:
            return reads.refuse(unit, CODE_PERMISSION, "permission denied")
        memory.tokens = [token for token in memory.tokens if unit.wall_s < token.until_s]
        if len(memory.tokens) >= TOKENS_MAX:
            return reads.refuse(unit, CODE_TOKENS_OUT, "over max connect")
        memory.given += 1
        salt = salt_of(unit, self._secret, "salt")
        new_salt = salt_of(unit, self._secret, f"new {memory.given}")
        stamp = f"{unit.wall_s % 10_000:04d}"
        key, sign = v2_keys(self._password, salt, new_salt, stamp)
        memory.tokens.append(Token(key, sign, unit.wall_s + TOKEN_LIFE_S))
        given = {"time": stamp, "salt": salt, "newsalt": new_salt}
        return reads.own(unit, CODE_TOKEN_GIVEN, given)

    def _encrypted(self, unit: Unit, data: str) -> Outcome:
        for token in memory_of(unit).tokens:
            fields = _opened(token, data)
            if fields is not None and fields.get("token") == token.sign:
                if unit.wall_s >= token.until_s:
                    break
                said = _carry_out(unit, fields)
                sealed = encrypt_zeros(token.key, msgspec.json.encode(said))
                return _plain({"enc": sealed})
        return _plain(reads.refuse(unit, CODE_TOKEN_WRONG, "check token error"))


def _plain(reply: Json) -> Outcome:
    return answer(msgspec.json.encode(reply) + b"\0")


def _opened(token: Token, data: str) -> _Fields | None:
    plain = decrypt_zeros(token.key, data)
    try:
        return None if plain is None else msgspec.json.decode(plain, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _carry_out(unit: Unit, fields: _Fields) -> Json:
    write = _WRITES.get(str(fields.get("cmd")))
    if write is None:
        return reads.refuse(unit, CODE_INVALID_COMMAND, "invalid cmd")
    if not write(unit, fields):
        return reads.refuse(unit, CODE_FAILED, "command error")
    return reads.own(unit, CODE_OK, "API command OK")


def _power_off(unit: Unit, fields: _Fields) -> bool:
    # A text: a truth value of JSON is refused.
    if fields.get("respbefore", "true") not in ("true", "false"):
        return False
    memory_of(unit).switch(unit, off=True)
    return True


def _power_on(unit: Unit, _: _Fields) -> bool:
    memory_of(unit).switch(unit, off=False)
    return True


def _mode(name: str) -> Callable[[Unit, _Fields], bool]:
    def take(unit: Unit, _: _Fields) -> bool:
        memory_of(unit).take_mode(unit, MODES[name])
        return True

    return take


def _limit(unit: Unit, fields: _Fields) -> bool:
    limit_w = whole(fields.get("power_limit"), 0, LIMIT_NONE_W)
    if limit_w is not None:
        memory_of(unit).take_limit(unit, limit_w)
    return limit_w is not None


def _percent(unit: Unit, fields: _Fields) -> bool:
    percent = whole(fields.get("percent"), 1, 100)
    if percent is not None:
        memory_of(unit).take_percent(unit, percent)
    return percent is not None


def _restart(unit: Unit, _: _Fields) -> bool:
    memory_of(unit).restart(unit)
    return True


def _reboot(unit: Unit, _: _Fields) -> bool:
    memory_of(unit).work(unit, REBOOT)
    return True


def _led(unit: Unit, fields: _Fields) -> bool:
    if fields.get("param") == "auto":
        memory_of(unit).led = "auto"
        return True
    if fields.get("color") not in ("red", "green"):
        return False
    memory_of(unit).led = "manual"
    return True


def _pools(unit: Unit, fields: _Fields) -> bool:
    rows = [
        Pool(*(str(fields.get(f"{name}{number}", "")) for name in ("pool", "worker", "passwd")))
        for number in range(1, POOLS_MAX + 1)
    ]
    if not rows[0].url:
        return False
    memory_of(unit).take_pools(unit, [row for row in rows if row.url])
    return True


_WRITES: dict[str, Callable[[Unit, _Fields], bool]] = {
    "power_off": _power_off,
    "power_on": _power_on,
    "set_low_power": _mode("low"),
    "set_normal_power": _mode("normal"),
    "set_high_power": _mode("high"),
    "adjust_power_limit": _limit,
    "set_power_pct": _percent,
    "set_power_pct_v2": _percent,
    "restart_btminer": _restart,
    "reboot": _reboot,
    "set_led": _led,
    "update_pools": _pools,
}

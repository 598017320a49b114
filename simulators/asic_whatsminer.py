"""WhatsMiner's stock firmware as dialects: API v2 on 4028 and v3 on 4433.

v2 wants each write encrypted (AES-256-ECB under a key made of password and salt) and signed by a
token of half an hour; v3 wants a salted digest, and encrypts secret parameters. Defects are the
firmware's own: Msg is now a text, now an object; `summary` goes away with the mining program; pools
alone are refused on an idle v3 miner; a percentage given as a number is refused.
Source: the vendor's text of 2.0.5 and client of v3; recorded answers of an M50S and an M60S. The
times of a change are assumptions.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from simulators.asic_dialect import RESET, OneWire, Outcome, Unit, answer
from simulators.asic_md5crypt import md5crypt
from simulators.asic_models import WorkMode
from simulators.asic_physics import Step

if TYPE_CHECKING:
    from collections.abc import Callable

PASSWORD_V2 = "admin"  # noqa: S105 - the maker's published default
PASSWORD_V3 = "super"  # noqa: S105 - the maker's published default
TOKEN_LIFE_S = 1800
TOKENS_MAX = 32
STOP = Step(stop_s=3.0, fall_s=6.0, boot_s=60.0, rise_s=40.0, warm_up_s=300.0)
REBOOT = Step(stop_s=0.0, fall_s=2.0, boot_s=110.0, rise_s=40.0, warm_up_s=300.0, api_away_s=60.0)
MODES = {"low": WorkMode.LOW, "normal": WorkMode.NORMAL, "high": WorkMode.HIGH}
WORDS = {mode: word for word, mode in MODES.items()}
_Json = dict[str, object]


class Memory:
    """What the firmware keeps of one miner."""

    __slots__ = ("led", "limit_w", "mode", "off", "percent", "pools", "salt", "tokens")

    def __init__(self, unit: Unit) -> None:
        self.off = unit.mode is WorkMode.SLEEP
        self.mode = WorkMode.NORMAL
        self.limit_w = round(unit.who.model.power_w)
        self.percent = 100
        self.led = "auto"
        self.pools: list[tuple[str, str]] = [("stratum+tcp://pool.example.com:3333", "site")]
        self.salt = hashlib.sha256(f"salt {unit.who.seed} {unit.who.index}".encode()).hexdigest()[
            :8
        ]
        self.tokens: dict[str, tuple[int, bytes]] = {}


class GenerationBase(OneWire):
    """What both generations do."""

    def begin(self, unit: Unit) -> object:
        """Start as the miner is."""
        return Memory(unit)

    def restart(self, unit: Unit) -> None:
        """Boot, and hash unless it was switched off."""
        follow(unit, REBOOT)


def memory_of(unit: Unit) -> Memory:
    """Give what the firmware keeps."""
    assert isinstance(unit.memory, Memory)
    return unit.memory


def follow(unit: Unit, step: Step) -> None:
    """Go into what the configuration says, by stopping and starting."""
    memory = memory_of(unit)
    share = min(1.0, memory.limit_w / unit.who.model.power_w) * memory.percent / 100
    unit.change(WorkMode.SLEEP if memory.off else memory.mode, step, share=share)


def set_power(unit: Unit, *, watts: int | None = None, percent: int | None = None) -> bool:
    """Take a limit, by a restart, or a percentage, at once; False when it is none."""
    memory = memory_of(unit)
    if watts is not None and 0 < watts < 100_000:
        memory.limit_w = watts
        follow(unit, STOP)
        return True
    if percent is not None and 0 < percent <= 100:
        memory.percent = percent
        limit = min(1.0, memory.limit_w / unit.who.model.power_w)
        unit.trim(limit * percent / 100, 1.0)
        return True
    return False


def whole(value: object) -> int | None:
    """Read a whole number that came as a text; as a number it is refused."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else None


def aes(key: bytes, body: bytes, *, decrypt: bool = False) -> bytes:
    """Run AES-256-ECB over whole blocks."""
    cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - the firmware knows no other
    context = cipher.decryptor() if decrypt else cipher.encryptor()
    return context.update(body) + context.finalize()


class WhatsminerV2Dialect(GenerationBase):
    """API v2."""

    name = "whatsminer-v2"

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """Answer one plain read, or one encrypted write."""
        if unit.is_api_away:
            return RESET
        try:
            request = msgspec.json.decode(data.rstrip(b"\0\r\n "), type=dict[str, object])
        except msgspec.DecodeError:
            return _say(unit, "E", 23, "Invalid JSON")
        if request.get("enc") == 1:
            return _sealed(unit, str(request.get("data", "")))
        command = str(request.get("command", request.get("cmd", "")))
        names = command.split("+")
        if len(names) > 1:
            parts = {name: [_READS[name](unit)] for name in names if name in _READS}
            return answer(msgspec.json.encode({**parts, "id": 1}) + b"\0")
        read = _READS.get(command)
        if read is None:
            return _say(unit, "E", 14, "invalid cmd")
        return answer(msgspec.json.encode(read(unit)) + b"\0")


def _message(unit: Unit, letter: str, code: int, message: object) -> _Json:
    return {"STATUS": letter, "When": unit.wall_s, "Code": code, "Msg": message, "Description": ""}


def _say(unit: Unit, letter: str, code: int, message: object) -> Outcome:
    return answer(msgspec.json.encode(_message(unit, letter, code, message)) + b"\0")


def _section(unit: Unit, code: int, name: str, rows: list[_Json]) -> _Json:
    status = {"STATUS": "S", "When": unit.wall_s, "Code": code, "Msg": name.title(),
              "Description": "cgminer 4.9.2"}  # fmt: skip
    return {"STATUS": [status], name: rows, "id": 1}


def _get_token(unit: Unit) -> _Json:
    memory = memory_of(unit)
    now_s = unit.wall_s
    memory.tokens = {
        sign: kept for sign, kept in memory.tokens.items() if now_s - kept[0] < TOKEN_LIFE_S
    }
    if len(memory.tokens) >= TOKENS_MAX:
        return _message(unit, "E", 136, "over max connect")
    time = str(now_s)[-4:]
    new_salt = hashlib.sha256(f"{memory.salt}{now_s}".encode()).hexdigest()[:8]
    key_text = md5crypt(PASSWORD_V2, memory.salt)
    sign = md5crypt(key_text + time, new_salt)
    memory.tokens[sign] = (now_s, hashlib.sha256(key_text.encode()).digest())
    return _message(unit, "S", 134, {"time": time, "salt": memory.salt, "newsalt": new_salt})


def _summary(unit: Unit) -> _Json:
    memory, seen, model = memory_of(unit), unit.seen(), unit.who.model
    if seen.asleep:
        return _message(unit, "E", 14, "invalid cmd: btminer is off")
    ready = seen.hashrate_ths > 0.9 * model.hashrate_ths * unit.state.share
    row: _Json = {
        "Elapsed": seen.elapsed_s, "Uptime": seen.elapsed_s + 60, "MAC": unit.mac,
        "MHS av": seen.hashrate_ths_av * 1e6, "MHS 1m": seen.hashrate_ths * 1e6,
        "HS RT": seen.hashrate_ths * 1e6, "Factory GHS": round(model.hashrate_ths * 1000),
        "Power": round(seen.power_w), "Power Limit": memory.limit_w,
        "Power Mode": WORDS[memory.mode].title(), "Fan Speed In": seen.fan_rpm,
        "Fan Speed Out": seen.fan_rpm, "Env Temp": 25.0, "Temperature": seen.chip_c_inlet,
        "Chip Temp Max": seen.chip_c_outlet, "Chip Temp Min": seen.chip_c_inlet,
        "Accepted": seen.accepted, "Upfreq Complete": int(ready), "Hash Stable": ready,
        "Error Code Count": 0,
    }  # fmt: skip
    return _section(unit, 11, "SUMMARY", [row])


def _status(unit: Unit) -> _Json:
    memory = memory_of(unit)
    return _message(unit, "S", 131, {
        "mineroff": "true" if memory.off else "false", "mineroff_reason": "",
        "power_mode": WORDS[memory.mode], "power_limit_set": str(memory.limit_w),
        "hash_percent": str(memory.percent - 100), "FirmwareVersion": "20230803.11.REL",
    })  # fmt: skip


def _get_version(unit: Unit) -> _Json:
    facts = {"api_ver": "2.0.5", "fw_ver": "20230803.11.REL", "platform": "H616"}
    return _message(unit, "S", 131, facts)


def _get_miner_info(unit: Unit) -> _Json:
    facts = {"hostname": "WhatsMiner", "ledstat": memory_of(unit).led, "mac": unit.mac}
    return _message(unit, "S", 131, facts)


def _get_error_code(unit: Unit) -> _Json:
    return _message(unit, "S", 131, {"error_code": []})


def _edevs(unit: Unit) -> _Json:
    seen, model = unit.seen(), unit.who.model
    return _section(unit, 9, "DEVS", [
        {"ASC": board, "Slot": board, "Status": "Alive", "Effective Chips": model.chips,
         "MHS av": seen.hashrate_ths_av * 1e6 / model.boards,
         "Factory GHS": round(model.hashrate_ths * 1000 / model.boards),
         "Chip Temp Max": seen.chip_c_outlet, "Temperature": seen.chip_c_inlet}
        for board in range(model.boards)
    ])  # fmt: skip


def _devdetails(unit: Unit) -> _Json:
    model = unit.who.model
    return _section(unit, 69, "DEVDETAILS", [
        {"DEVDETAILS": board, "ID": board, "Name": "SM", "Driver": "bitmicro",
         "Model": model.device_type.removeprefix("WhatsMiner ")}
        for board in range(model.boards)
    ])  # fmt: skip


def _pools(unit: Unit) -> _Json:
    return _section(unit, 7, "POOLS", [
        {"POOL": place + 1, "URL": url, "User": user, "Status": "Alive", "Priority": place,
         "Stratum Active": place == 0, "Accepted": 1, "Rejected": 0}
        for place, (url, user) in enumerate(memory_of(unit).pools)
    ])  # fmt: skip


_READS: dict[str, Callable[[Unit], _Json]] = {
    "get_token": _get_token,
    "summary": _summary,
    "status": _status,
    "get_version": _get_version,
    "get_miner_info": _get_miner_info,
    "get_error_code": _get_error_code,
    "edevs": _edevs,
    "devs": _edevs,
    "devdetails": _devdetails,
    "pools": _pools,
}


def _sealed(unit: Unit, data: str) -> Outcome:
    """Carry out an encrypted write: any key that opens it to a known token will do."""
    for sign, (made_s, key) in memory_of(unit).tokens.items():
        if unit.wall_s - made_s >= TOKEN_LIFE_S:
            continue
        try:
            plain = aes(key, base64.b64decode(data, validate=True), decrypt=True).rstrip(b"\0")
            body = msgspec.json.decode(plain, type=dict[str, object])
        except (ValueError, msgspec.DecodeError):
            continue
        if body.get("token") == sign:
            return _carry_out(unit, body, key)
    return _say(unit, "E", 135, "token err")


def _carry_out(unit: Unit, body: _Json, key: bytes) -> Outcome:
    command = str(body.get("cmd", ""))
    if command == "reboot":
        follow(unit, REBOOT)
        return RESET
    reply = (
        _message(unit, "S", 131, "API command OK")
        if _act(unit, command, body)
        else _message(unit, "E", 132, "API command ERROR")
    )
    plain = msgspec.json.encode(reply)
    sealed = base64.b64encode(aes(key, plain + bytes(-len(plain) % 16))).decode()
    return answer(msgspec.json.encode({"enc": sealed}) + b"\0")


def _act(unit: Unit, command: str, body: _Json) -> bool:
    memory = memory_of(unit)
    if command in ("power_off", "power_on", "restart_btminer"):
        off = {"power_off": True, "power_on": False}.get(command, memory.off)
        if command == "restart_btminer" or off is not memory.off:
            memory.off = off
            follow(unit, STOP)
        return True
    if command.startswith("set_") and command.endswith("_power"):
        memory.mode = MODES[command.removeprefix("set_").removesuffix("_power")]
        follow(unit, STOP)
        return True
    if command == "adjust_power_limit":
        return set_power(unit, watts=whole(body.get("power_limit")))
    if command == "set_power_pct":
        return set_power(unit, percent=whole(body.get("percent")))
    if command == "set_led":
        memory.led = "auto" if body.get("param") == "auto" else "manual"
        return True
    if command == "update_pools":
        rows = [(str(body.get(f"pool{n}", "")), str(body.get(f"worker{n}", ""))) for n in (1, 2, 3)]
        memory.pools = [row for row in rows if row[0]]
        return bool(memory.pools)
    return False

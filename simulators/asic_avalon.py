"""Avalon's stock firmware as a dialect: cgminer 4.11.1 with a text of `KEY[value]` items.

Sleep and wake are scheduled; a time that is not at least five seconds ahead is refused. Text
requests get text answers with a trailing `| `, a request for a wake may close without an answer,
and the rates of a machine that stands decay. Source: recorded answers of an A1566 and a Home Q; the
refusal's wording is an assumption.
"""

from __future__ import annotations

import msgspec

from simulators.asic_dialect import RESET, OneWire, Outcome, Unit, answer
from simulators.asic_models import WorkMode
from simulators.asic_physics import Step

AHEAD_S = 5
CHANGE = Step(stop_s=1.0, fall_s=6.0, boot_s=45.0, rise_s=30.0, warm_up_s=240.0)
REBOOT = Step(stop_s=0.0, fall_s=2.0, boot_s=70.0, rise_s=30.0, warm_up_s=240.0, api_away_s=40.0)
_Json = dict[str, object]


class Memory:
    """What the firmware keeps of one miner; `due` is a change that is scheduled (ns, off)."""

    __slots__ = ("due", "high", "led", "limit_w", "off", "pools")

    def __init__(self, *, off: bool, limit_w: int, user: str) -> None:
        self.off = off
        self.high = False
        self.led = 0
        self.limit_w = limit_w
        self.due: tuple[int, bool] | None = None
        self.pools = [("stratum+tcp://pool.example.com:3333", user)]


class AvalonDialect(OneWire):
    """Avalon stock firmware."""

    name = "avalon"

    def begin(self, unit: Unit) -> object:
        """Start as the miner is."""
        return Memory(
            off=unit.mode is WorkMode.SLEEP,
            limit_w=round(unit.who.model.power_w),
            user=f"site.{unit.who.index:05d}",
        )

    def restart(self, unit: Unit) -> None:
        """Boot, and hash unless it was switched off."""
        unit.change(_mode(_memory(unit)), REBOOT)

    def api(self, unit: Unit, data: bytes) -> Outcome:
        """Answer one request, JSON or text."""
        if unit.is_api_away:
            return RESET
        _come_due(unit)
        data = data.rstrip(b"\0\r\n ")
        as_text = not data.startswith(b"{")
        command, parameter = _text_request(data) if as_text else _json_request(data)
        if command == "ascset":
            return _ascset(unit, parameter, as_text=as_text)
        page = _PAGES.get(command)
        if page is None:
            return _reply(_status(unit, "E", 14, "Invalid command"), as_text=as_text)
        return _reply(page(unit), as_text=as_text)


def _memory(unit: Unit) -> Memory:
    assert isinstance(unit.memory, Memory)
    return unit.memory


def _mode(memory: Memory) -> WorkMode:
    if memory.off:
        return WorkMode.SLEEP
    return WorkMode.HIGH if memory.high else WorkMode.NORMAL


def _come_due(unit: Unit) -> None:
    memory = _memory(unit)
    if memory.due is not None and unit.now_ns >= memory.due[0]:
        (at_ns, memory.off), memory.due = memory.due, None
        unit.change(_mode(memory), CHANGE, at_ns=at_ns)


def _json_request(data: bytes) -> tuple[str, str]:
    try:
        fields = msgspec.json.decode(data, type=dict[str, object])
    except msgspec.DecodeError:
        return "", ""
    return str(fields.get("command", "")), str(fields.get("parameter", ""))


def _text_request(data: bytes) -> tuple[str, str]:
    command, _, parameter = data.decode("latin-1").partition("|")
    return command, parameter


def _status(unit: Unit, letter: str, code: int, message: str) -> _Json:
    row = {"STATUS": letter, "When": unit.wall_s, "Code": code, "Msg": message,
           "Description": "cgminer 4.11.1"}  # fmt: skip
    return {"STATUS": [row], "id": 1}


def _section(unit: Unit, code: int, message: str, name: str, row: _Json) -> _Json:
    return {**_status(unit, "S", code, message), name: [row]}


def _reply(reply: _Json, *, as_text: bool) -> Outcome:
    if not as_text:
        return answer(msgspec.json.encode(reply) + b"\0")
    chunks = []
    for name, rows in reply.items():
        for row in rows if isinstance(rows, list) else ():
            items = [f"{key}={value}" for key, value in row.items()]
            chunks.append(",".join(items if name == "STATUS" else [name, *items]))
    return answer("|".join([*chunks, " "]).encode() + b"\0")


def _version(unit: Unit) -> _Json:
    model = unit.who.model.device_type
    return _section(
        unit, 22, "CGMiner versions", "VERSION",
        {"CGMiner": "4.11.1", "API": "3.7", "PROD": model, "MODEL": model.rpartition(" ")[2],
         "HWTYPE": "MM4v2_X3", "VERSION": "24102401_25462b2_9ddf522",
         "MAC": unit.mac.replace(":", "").lower()},
    )  # fmt: skip


def _summary(unit: Unit) -> _Json:
    seen = unit.seen()
    return _section(
        unit, 11, "Summary", "SUMMARY",
        {"Elapsed": seen.elapsed_s, "MHS av": seen.hashrate_ths_av * 1e6,
         "MHS 5s": seen.hashrate_ths * 1e6, "MHS 1m": seen.hashrate_ths * 1e6,
         "Accepted": seen.accepted, "Rejected": 0, "Hardware Errors": 0},
    )  # fmt: skip


def _devs(unit: Unit) -> _Json:
    seen = unit.seen()
    return _section(
        unit, 9, "1 ASC(s)", "DEVS",
        {"ASC": 0, "Name": "AVA10", "ID": 0, "Enabled": "Y", "Status": "Alive",
         "Temperature": -273.0, "MHS av": seen.hashrate_ths_av * 1e6,
         "MHS 1m": seen.hashrate_ths * 1e6, "Device Elapsed": seen.elapsed_s},
    )  # fmt: skip


def _pools(unit: Unit) -> _Json:
    rows = [
        {"POOL": place, "URL": url, "Status": "Alive", "Priority": place, "User": user,
         "Accepted": unit.seen().accepted, "Rejected": 0, "Stratum Active": place == 0}
        for place, (url, user) in enumerate(_memory(unit).pools)
    ]  # fmt: skip
    return {**_status(unit, "S", 7, f"{len(rows)} Pool(s)"), "POOLS": rows}


def _estats(unit: Unit) -> _Json:
    seen = unit.seen()
    return _section(
        unit, 70, "CGMiner stats", "STATS",
        {"STATS": 0, "ID": "AVA100", "Elapsed": seen.elapsed_s, "MM ID0": _module(unit),
         "MM Count": 1, "Nonce Mask": 25},
    )  # fmt: skip


def _module(unit: Unit) -> str:
    seen, model, memory = unit.seen(), unit.who.model, _memory(unit)
    work = "Idle" if memory.off else "Init" if seen.hashrate_ths <= 0 else "Work"
    rate_ghs, wall_w = seen.hashrate_ths * 1000, round(seen.power_w)
    output_w = 0 if memory.off else round(0.945 * wall_w)
    board_ghs = " ".join([f"{rate_ghs / model.boards:.2f}"] * model.boards)
    hottest = " ".join([f"{seen.chip_c_outlet:.0f}"] * model.boards)
    shown_ghs = seen.hashrate_ths_av * 1000 if memory.off else rate_ghs
    items = (
        ("Ver", "15-194-24102401_25462b2_9ddf522"),
        ("SYSTEMSTATU", f"Work: In {work}, Hash Board: {model.boards} "),
        ("Elapsed", seen.elapsed_s), ("Temp", 25),
        ("TMax", round(seen.chip_c_outlet)), ("TAvg", round(seen.chip_c_inlet)),
        ("Fan1", seen.fan_rpm), ("Fan2", seen.fan_rpm), ("FanR", "49%"),
        ("PS", f"0 1209 1187 297 {output_w} 1188 {wall_w}"),
        ("GHSspd", f"{rate_ghs:.2f}"), ("DHspd", "1.299%"),
        ("GHSmm", f"{model.hashrate_ths * 1000:.2f}"), ("GHSavg", f"{shown_ghs:.2f}"),
        ("Led", memory.led), ("MGHS", board_ghs), ("MTmax", hottest),
        ("TA", model.chips * model.boards), ("SoftOFF", 4 if memory.off else 0),
        ("ECHU", " ".join(["0"] * model.boards)), ("ECMM", 0),
        ("MPO", memory.limit_w), ("WORKMODE", 1 if memory.high else 0),
    )  # fmt: skip
    return " ".join(f"{key}[{value}]" for key, value in items)


def _ascset(unit: Unit, parameter: str, *, as_text: bool) -> Outcome:
    words = parameter.split(",")
    option, value = (words[1], ",".join(words[2:])) if len(words) > 2 else ("", "")
    memory = _memory(unit)
    if option in ("softoff", "softon"):
        return _schedule(unit, memory, option, value, as_text=as_text)
    if option == "reboot":
        unit.change(_mode(memory), REBOOT)
        return RESET
    act = _OPTIONS.get(option)
    if act is None or not act(unit, memory, value):
        return _reply(_status(unit, "E", 120, f"ASC 0 set failed: {option}"), as_text=as_text)
    return _reply(_status(unit, "S", 119, "ASC 0 set OK"), as_text=as_text)


def _schedule(unit: Unit, memory: Memory, option: str, value: str, *, as_text: bool) -> Outcome:
    at_text = value.partition(":")[2]
    at_s = int(at_text) if at_text.isascii() and at_text.isdigit() else 0
    if at_s < unit.wall_s + AHEAD_S:
        message = f"ASC 0 set failed: {option} needs a time ahead"
        return _reply(_status(unit, "E", 120, message), as_text=as_text)
    memory.due = (unit.now_ns + (at_s - unit.wall_s) * 10**9, option == "softoff")
    if option == "softon" and unit.who.index % 2:
        return RESET
    message = f"ASC 0 set info: success {option}:{at_s}"
    return _reply(_status(unit, "I", 118, message), as_text=as_text)


def _workmode(unit: Unit, memory: Memory, value: str) -> bool:
    if value not in ("0", "1"):
        return False
    memory.high = value == "1"
    if not memory.off:
        unit.change(_mode(memory), CHANGE)
    return True


def _worklevel(unit: Unit, memory: Memory, value: str) -> bool:
    watts = value.removeprefix("set,")
    if not (watts.isascii() and watts.isdigit() and 0 < int(watts) <= 10_000):
        return False
    memory.limit_w = int(watts)
    unit.trim(min(1.0, memory.limit_w / unit.who.model.power_w), 30.0)
    return True


def _led(_: Unit, memory: Memory, value: str) -> bool:
    if value not in ("1-0", "1-1"):
        return False
    memory.led = int(value[-1])
    return True


_PAGES = {
    "version": _version,
    "summary": _summary,
    "devs": _devs,
    "pools": _pools,
    "stats": _estats,
    "estats": _estats,
}
_OPTIONS = {"workmode": _workmode, "worklevel": _worklevel, "led": _led}

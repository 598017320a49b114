"""The cgminer API as Bitmain's stock firmware speaks it: request bytes in, answer bytes out.

Every answer ends with a NUL and the server closes the connection after it. Spellings such as "Deed"
and "Pool Stale%%" are the firmware's own, and clients must live with them.
Source: API-README of cgminer 4.11.1; recorded answers of an S21 (2024-07) and an S19 Pro (2022-12).
"""

from __future__ import annotations

import msgspec

from simulators.asic_models import WorkMode
from simulators.asic_physics import MinerTraits, Snapshot

REQUEST_BYTES_MAX = 4095
COMMANDS = ("version", "summary", "stats", "pools", "devs")
_Json = dict[str, object]
_DESCRIPTION = "cgminer 1.0.0"


class Pool(msgspec.Struct, frozen=True):
    """One pool of the configuration; an empty URL is an unused slot."""

    url: str = ""
    user: str = ""
    password: str = msgspec.field(default="", name="pass")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that an answer is made of.

    Args:
        wall_s: The miner's wall clock, Unix seconds.
        reported_mode: The mode that the configuration says. is_hot: it stopped for heat.
    """

    who: MinerTraits
    seen: Snapshot
    pools: tuple[Pool, ...]
    reported_mode: WorkMode
    wall_s: int
    is_hot: bool = False


class Request(msgspec.Struct, frozen=True):
    """One request; JSON or text (`summary|parameter`)."""

    command: str
    new_api: bool = False
    as_text: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """Why a request is refused, by the API's own code."""

    code: int
    message: str


def parse(data: bytes) -> Request | Refusal:
    """Read a request, or say why it is refused.

    The firmware receives once, at most 4,095 bytes: what a client sends later is not seen.
    """
    data = data[:REQUEST_BYTES_MAX].rstrip(b"\0\r\n ")
    if not data.startswith(b"{"):
        name = data.split(b"|", 1)[0].decode("latin-1")
        return Request(name, as_text=True)
    try:
        fields = msgspec.json.decode(data, type=_RequestFields)
    except msgspec.DecodeError:
        return Refusal(23, "Invalid JSON")
    if fields.command is None:
        return Refusal(24, "Missing JSON 'command'")
    return Request(fields.command, new_api=fields.new_api is True)


class _RequestFields(msgspec.Struct):
    command: str | None = None
    new_api: object = None


def answer(request: Request, view: View) -> bytes:
    """Return the bytes that a miner sends back, trailing NUL included."""
    if request.new_api and request.command in {"stats", "summary"}:
        return msgspec.json.encode(web_answer(request.command, view)) + b"\0"
    names = request.command.split("+")
    if len(names) > 1 and view.who.model.firmware.joins and not request.as_text:
        parts: _Json = {name: [_command(name, view)] for name in names if name}
        return msgspec.json.encode({**parts, "id": 1}) + b"\0"
    reply = _command(request.command, view)
    if request.as_text:
        return _as_text(reply) + b"\0"
    payload = msgspec.json.encode(reply)
    if request.command == "stats" and view.who.model.firmware.comma_lost:
        payload = payload.replace(b"},{", b"}{")
    return payload + b"\0"


def refuse(refusal: Refusal, wall_s: int) -> bytes:
    """Return the bytes of a refusal."""
    return msgspec.json.encode(_reply("E", refusal.code, refusal.message, wall_s)) + b"\0"


def web_answer(page: str, view: View) -> _Json:
    """Return the newer, web-shaped form of `stats` or `summary`."""
    firmware, seen = view.who.model.firmware, view.seen
    info: _Json = {
        "miner_version": firmware.miner_version,
        "CompileTime": firmware.compile_time,
        "type": view.who.model.device_type,
    }
    rates: _Json = {
        "elapsed": seen.elapsed_s,
        "rate_5s": _ghs(seen.hashrate_ths),
        "rate_30m": _ghs(seen.hashrate_ths_30m),
        "rate_avg": _ghs(seen.hashrate_ths_av),
        "rate_ideal": view.who.model.hashrate_ths * 1000,
        "rate_unit": "GH/s",
    }
    if page == "summary":
        alarms = [_alarm(name) for name in ("rate", "network", "fans")]
        alarms.append(_alarm("temp", is_raised=view.is_hot))
        body = {**rates, "hw_all": 0, "bestshare": 0, "status": alarms}
        status: object = [_status("S", 0, "summary", view.wall_s)]
        return {"STATUS": status, "INFO": info, "SUMMARY": [] if seen.asleep else [body]}
    body = {**rates, **_web_hardware(view), "miner-mode": int(view.reported_mode)}
    if firmware.tells_power:
        body["watt"] = round(seen.power_w)
    return {
        "STATUS": {"STATUS": "S", "when": view.wall_s, "Msg": "stats", "api_version": "1.0.0"},
        "INFO": info,
        "STATS": [] if seen.asleep else [body],
    }


def serial(who: MinerTraits) -> str:
    """Return the serial number, made from seed and index."""
    return f"SIM{who.seed & 0xFFFF:04X}{who.index:010d}"


def _command(name: str, view: View) -> _Json:
    if name == "version":
        return _reply("S", 22, "CGMiner versions", view.wall_s, VERSION=[_version(view, api=True)])
    if name == "summary":
        rows = [] if view.seen.asleep else [_summary(view)]
        return _reply("S", 11, "Summary", view.wall_s, SUMMARY=rows)
    if name == "stats":
        # Asleep there is only the head element: a client that takes STATS[1] fails here.
        rows = [_version(view, api=False)]
        if not view.seen.asleep:
            rows.append(_stats(view))
        return _reply("S", 70, "CGMiner stats", view.wall_s, STATS=rows)
    if name == "pools":
        rows = [_pool(number, view) for number in range(3)]
        return _reply("S", 7, "3 Pool(s)", view.wall_s, POOLS=rows)
    if name == "devs":
        return _reply("S", 9, "1 ASC(s)", view.wall_s, DEVS=[_device(view)])
    return _reply("E", 14, "Invalid command", view.wall_s)


def _status(status: str, code: int, message: str, wall_s: int) -> _Json:
    return {
        "STATUS": status,
        "When": wall_s,
        "Code": code,
        "Msg": message,
        "Description": _DESCRIPTION,
    }


def _reply(status: str, code: int, message: str, wall_s: int, **body: list[_Json]) -> _Json:
    return {"STATUS": [_status(status, code, message, wall_s)], **body, "id": 1}


def _version(view: View, *, api: bool) -> _Json:
    model = view.who.model
    head: _Json = {"BMMiner": "1.0.0"}
    if api:
        head["API"] = "3.1"
    head["Miner"] = model.firmware.miner_version
    head["CompileTime"] = model.firmware.compile_time
    head["Type"] = model.device_type
    return head


def _summary(view: View) -> _Json:
    seen = view.seen
    rate = _ghs(seen.hashrate_ths)
    return {
        "Elapsed": seen.elapsed_s,
        "GHS 5s": f"{rate:.2f}" if view.who.model.firmware.rates_as_text else rate,
        "GHS av": _ghs(seen.hashrate_ths_av),
        "GHS 30m": _ghs(seen.hashrate_ths_30m),
        "Found Blocks": 0,
        "Getwork": seen.elapsed_s // 10,
        "Accepted": seen.accepted,
        "Rejected": seen.accepted // 1200,
        "Hardware Errors": 0,
        "Utility": round(seen.accepted * 60 / max(seen.elapsed_s, 1), 2),
        "Discarded": 0,
        "Stale": 0,
        "Get Failures": 0,
        "Remote Failures": 0,
        "Total MH": round(seen.hashrate_ths_av * 1e6 * seen.elapsed_s, 1),
        "Difficulty Accepted": seen.accepted * 262144.0,
        "Best Share": 0,
        "Device Hardware%": 0.0,
        "Pool Rejected%": 0.0,
        "Pool Stale%": 0.0,
        "Last getwork": view.wall_s,
    }


def _stats(view: View) -> _Json:
    who, seen = view.who, view.seen
    model = who.model
    rate = _ghs(seen.hashrate_ths)
    body: _Json = {
        "STATS": 0,
        "ID": "BTM_SOC0",
        "Elapsed": seen.elapsed_s,
        "GHS 5s": f"{rate:.2f}" if model.firmware.rates_as_text else rate,
        "GHS av": _ghs(seen.hashrate_ths_av),
        "rate_30m": _ghs(seen.hashrate_ths_30m),
        "Mode": int(view.reported_mode),
        "miner_count": model.boards,
        "frequency": model.frequency_mhz,
        "fan_num": 4,
    }
    for fan in range(1, 5):
        body[f"fan{fan}"] = seen.fan_rpm
    for board in range(1, model.boards + 1):
        body[f"freq{board}"] = model.frequency_mhz
        body[f"chain_acn{board}"] = model.chips
        body[f"chain_acs{board}"] = " " + "o" * model.chips
        body[f"chain_hw{board}"] = 0
        body[f"chain_rate{board}"] = f"{rate / model.boards:.2f}"
        for name, below_c in (("temp_pcb", 5), ("temp_chip", 0), ("temp_pic", 15)):
            body[f"{name}{board}"] = "-".join(str(c) for c in _temperatures(seen, below_c))
    body["total_rateideal"] = model.hashrate_ths * 1000
    body["rate_unit"] = "GH"
    body["total_acn"] = model.chips * model.boards
    body["miner_id"] = serial(who)
    if model.firmware.tells_power:
        body["chain_power"] = f"{round(seen.power_w)} W"
    return body


def _pool(number: int, view: View) -> _Json:
    pool = view.pools[number] if number < len(view.pools) else Pool()
    alive = bool(pool.url) and number == 0 and not view.seen.asleep
    accepted = view.seen.accepted if alive else 0
    return {
        "POOL": number,
        "URL": pool.url,
        "Status": "Alive" if alive else "Deed",
        "Priority": number,
        "Quota": 1,
        "Accepted": accepted,
        "Rejected": accepted // 1200,
        "Stale": 0,
        "User": pool.user,
        "Last Share Time": "0:00:03" if alive else "0",
        "Diff": "262K" if alive else "",
        "Difficulty Accepted": accepted * 262144.0,
        "Has Stratum": bool(pool.url),
        "Stratum Active": alive,
        "Stratum URL": pool.url.rpartition("/")[2].partition(":")[0],
        "Pool Rejected%": 0.0,
        "Pool Stale%%": 0.0,
    }


def _device(view: View) -> _Json:
    seen = view.seen
    # The key says MH/s, the value is GH/s: so recorded from an S21 of 2024-07.
    return {
        "ASC": 0,
        "Name": "BTM_SOC",
        "ID": 0,
        "Enabled": "Y",
        "Status": "Alive",
        "Temperature": round(seen.chip_c_outlet, 1),
        "MHS av": _ghs(seen.hashrate_ths_av),
        "MHS 5s": _ghs(seen.hashrate_ths),
        "Accepted": seen.accepted,
        "Rejected": seen.accepted // 1200,
        "Hardware Errors": 0,
        "Last Share Time": view.wall_s,
        "Device Elapsed": seen.elapsed_s,
    }


def _web_hardware(view: View) -> _Json:
    model, seen = view.who.model, view.seen
    chain: list[_Json] = [
        {
            "index": board,
            "freq_avg": model.frequency_mhz,
            "rate_ideal": model.hashrate_ths * 1000 / model.boards,
            "rate_real": _ghs(seen.hashrate_ths / model.boards),
            "asic_num": model.chips,
            "temp_pic": _temperatures(seen, 15),
            "temp_pcb": _temperatures(seen, 5),
            "temp_chip": _temperatures(seen, 0),
            "hw": 0,
            "sn": f"{serial(view.who)}{board}",
        }
        for board in range(model.boards)
    ]
    return {
        "chain_num": model.boards,
        "fan_num": 4,
        "fan": [seen.fan_rpm] * 4,
        "chain": chain,
    }


def _temperatures(seen: Snapshot, below_c: int) -> list[int]:
    inlet_c = round(seen.chip_c_inlet - below_c)
    outlet_c = round(seen.chip_c_outlet - below_c)
    return [inlet_c, inlet_c, outlet_c, outlet_c]


def _alarm(name: str, *, is_raised: bool = False) -> _Json:
    if is_raised:
        return {"type": name, "status": "e", "code": 1, "msg": "temp is too high"}
    return {"type": name, "status": "s", "code": 0, "msg": ""}


def _ghs(rate_ths: float) -> float:
    return round(rate_ths * 1000, 2)


def _as_text(reply: _Json) -> bytes:
    """Write a reply in the API's text form: `STATUS=S,When=..|SUMMARY,Elapsed=..|`."""
    sections: list[str] = []
    for section, rows in reply.items():
        if not isinstance(rows, list):
            continue
        for number, row in enumerate(rows):
            head = [] if section == "STATUS" else [f"{section}{number or ''}"]
            pairs = [f"{key}={_text_value(value)}" for key, value in row.items()]
            sections.append(",".join([*head, *pairs]))
    return ("|".join(sections) + "|").encode()


def _text_value(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value

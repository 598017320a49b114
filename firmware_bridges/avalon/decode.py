"""What Avalon machines answer: the text of each module under `MM ID0`, `MM ID1` ...

`GHSavg` is the rate that the maker shows, `GHSspd` that of the moment, `GHSmm` what the frequencies
should give, all in GH/s. `PS[..]` ends with the power at the wall, and has the output power before
the last but one; while that is 0, the last number is no power. The Nanos have another order, see
`_nano_power`. Older modules (A10) have six numbers, none of them at the wall. `devs` gives -273 C
for unknown. Source: recorded answers of an A1566 and a Home Q; public ones of A9, A1047, A1346,
Nano 3, Nano 3S and Mini 3.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from firmware_bridges.base import MinerState, Partial, WorkMode
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import decode_summary as decode_common_summary
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import CHIPS_MAX, fans_of, hottest_c, sum_of
from firmware_bridges.rows import UPTIME_S_MAX, RowReader, as_float, first_text

MODULES_MAX: Final = 64

_MODULE: Final = re.compile(r"MM ID\d{1,3}(?::Summary)?\Z")
_ITEM: Final = re.compile(r"([A-Za-z][A-Za-z0-9_ ]{0,31})\[([^\]]{0,4096})\]")
_NUMBER: Final = re.compile(r"[-+]?\d+(?:\.\d+)?")
# Modules up to the A9 have one fan, without a number.
_FAN: Final = re.compile(r"Fan(\d{0,2})\Z")
_BOARDS: Final = re.compile(r"Hash Board:\s*(\d{1,3})")
_WORK: Final = re.compile(r"Work:\s*In\s*(\w+)")
# The build's date is what follows the name; before the A10 names and dates are of other lengths.
_VERSION: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]{0,31}?)-\d{8}(?:[_-]|\Z)")
_SUPPLY_NUMBERS: Final = 7
_STATES: Final = {
    "work": MinerState.MINING,
    "idle": MinerState.IDLE,
    "init": MinerState.STARTING,
    "warmup": MinerState.STARTING,
    "standby": MinerState.ASLEEP,
}
_ERRORS: Final = ("ECHU", "ECMM", "FanErr", "PCOMM_E")

Module = Mapping[str, str]


def decode_version(answer: Answer) -> Partial:
    """Decode `version`: model, MAC and versions."""
    rows = answer.section("VERSION")
    reader = RowReader(rows[0] if rows else {})
    return Partial(
        source=answer.command,
        model=first_text(reader, "PROD", "MODEL", truncated=answer.truncated),
        fw_version=first_text(reader, "CGMiner", "VERSION", "LVERSION", truncated=answer.truncated),
        api_version=reader.text("API"),
        mac=mac_address(reader.text("MAC")),
        serial=reader.text("SN"),
        rejected=reader.rejected,
    )


def decode_summary(answer: Answer) -> Partial:
    """Decode `summary`."""
    return decode_common_summary(answer)


def decode_devs(answer: Answer) -> Partial:
    """Decode `devs`: the rate since start; its windows are another count than the module's own."""
    rows = answer.section("DEVS") or ()
    rates = [rate_ths(RowReader(row), "MHS av", "MH") for row in rows]
    elapsed = RowReader(rows[0] if rows else {})
    return Partial(
        source=answer.command,
        hashrate_avg_ths=None if answer.truncated else sum_of(rates),
        uptime_s=elapsed.whole("Device Elapsed", low=0, high=UPTIME_S_MAX),
    )


def decode_stats(answer: Answer) -> Partial:
    """Decode `stats`, `estats` or `litestats`: everything that the modules say."""
    rows = answer.section("STATS") or ()
    modules = list(islice(_modules(answer), MODULES_MAX))
    if not modules:
        return Partial(source=answer.command)
    elapsed = RowReader(next((row for row in rows if "Elapsed" in row), {}))
    state = _state(modules)
    return Partial(
        source=answer.command,
        model=_model(modules[0]),
        hashrate_ths=None if answer.truncated else _rate_now(modules, state),
        expected_hashrate_ths=None if answer.truncated else _sum_ghs(modules, "GHSmm"),
        power_w=None if answer.truncated else sum_of(_power(module) for module in modules),
        power_limit_w=None if answer.truncated else _sum_w(modules, "MPO"),
        uptime_s=elapsed.whole("Elapsed", low=0, high=UPTIME_S_MAX) or _uptime(modules[0]),
        configured_mode=_told(modules),
        state=state,
        chip_temp_c_max=hottest_c(
            value for module in modules for key in ("TMax", "MTmax") for value in _all(module, key)
        ),
        inlet_temp_c=hottest_c(
            value
            for module in modules
            for value in _all(module, "ITemp")[:1] or _all(module, "Temp")[:1]
        ),
        fans_rpm=fans_of(value for module in modules for value in _fans(module)),
        board_count=sum(_board_count(module) for module in modules) or None,
        chips_total=_chips(modules),
        error_codes=_errors(modules),
        fault_light=_light(modules),
        rejected=elapsed.rejected,
    )


def _modules(answer: Answer) -> Iterator[Module]:
    for row in answer.section("STATS") or ():
        for key, value in row.items():
            if _MODULE.match(key) and isinstance(value, str):
                yield {name.strip(): text for name, text in _ITEM.findall(value)}


def _model(module: Module) -> str | None:
    """Give the name that `PROD` of `version` has, from the one before the build date in `Ver`."""
    found = _VERSION.match(module.get("Ver", ""))
    if found is None:
        return None
    name = found.group(1)
    if name[0].isdigit():
        return f"AvalonMiner {name}"
    return f"Avalon {name[0].upper()}{name[1:]}"


def _all(module: Module, key: str) -> list[float]:
    """Give the numbers of one item."""
    found = (as_float(text) for text in _NUMBER.findall(module.get(key, "")))
    return [number for number in found if number is not None]


def _first(module: Module, key: str) -> float | None:
    numbers = _all(module, key)
    return numbers[0] if numbers else None


def _state(modules: list[Module]) -> MinerState | None:
    """Judge by the word of the firmware; idle after a soft-off is sleep."""
    words = [found.group(1).lower() for m in modules if (found := _WORK.search(_status(m)))]
    states = {_STATES.get(word) for word in words}
    if MinerState.MINING in states:
        return MinerState.MINING
    if states == {MinerState.IDLE} and any(_first(module, "SoftOFF") for module in modules):
        return MinerState.ASLEEP
    return next((state for state in states if state is not None), None)


def _status(module: Module) -> str:
    return module.get("SYSTEMSTATU", "")


def _told(modules: list[Module]) -> WorkMode | None:
    flags = [_first(module, "SoftOFF") for module in modules]
    if any(flag is None for flag in flags):
        return None
    return WorkMode.SLEEP if any(flags) else WorkMode.NORMAL


def _rate_now(modules: list[Module], state: MinerState | None) -> float | None:
    """Give what the maker shows, unless the machine stands: its averages outlive its work."""
    momentary = _sum_ghs(modules, "GHSspd")
    if state in (MinerState.IDLE, MinerState.ASLEEP) and not momentary:
        return 0.0
    shown = _sum_ghs(modules, "GHSavg")
    return momentary if shown is None else shown


def _sum_ghs(modules: list[Module], key: str) -> float | None:
    return sum_of(rate_ths(RowReader({key: _first(m, key)}), key, "GH") for m in modules)


def _sum_w(modules: list[Module], key: str) -> float | None:
    return sum_of(power_w(RowReader({key: _first(m, key)}), key) for m in modules)


def _power(module: Module) -> float | None:
    wall = power_w(RowReader({"w": _first(module, "WALLPOWER")}), "w")
    supply = _all(module, "PS")
    if wall is not None or len(supply) < _SUPPLY_NUMBERS:
        return wall
    if module.get("Ver", "").lower().startswith("nano"):
        return _nano_power(module, supply)
    return power_w(RowReader({"w": supply[-1]}), "w") if supply[-3] > 0 else None


def _nano_power(module: Module, supply: list[float]) -> float | None:
    """Read the power of a Nano while it works.

    Nano 3S: mV in the third place, 0 in the fifth, W in the last. Nano 3: 0 in the third place, W
    in the sixth; its last number is the voltage that is set.
    """
    state = _state([module])
    if state is not MinerState.MINING and (state is not None or not _first(module, "GHSspd")):
        return None
    if supply[2] > 0 and supply[4] == 0:
        return power_w(RowReader({"w": supply[-1]}), "w")
    if supply[2] == 0 and supply[4] > 0:
        return power_w(RowReader({"w": supply[-2]}), "w")
    return None


def _uptime(module: Module) -> int | None:
    return RowReader({"s": _first(module, "Elapsed")}).whole("s", low=0, high=UPTIME_S_MAX)


def _fans(module: Module) -> list[float]:
    numbered = sorted((int(f.group(1) or 0), key) for key in module if (f := _FAN.match(key)))
    return [value for _, key in numbered for value in _all(module, key)[:1]]


def _board_count(module: Module) -> int:
    found = _BOARDS.search(_status(module))
    return int(found.group(1)) if found else len(_all(module, "MGHS"))


def _chips(modules: list[Module]) -> int | None:
    counts = [_first(module, "TA") for module in modules]
    total = sum(int(count) for count in counts if count is not None and 0 < count <= CHIPS_MAX)
    return total or None


def _errors(modules: list[Module]) -> tuple[int | str, ...] | None:
    if not any(key in module for module in modules for key in _ERRORS):
        return None
    return tuple(
        f"{key}{place}:{int(value)}"
        for module in modules
        for key in _ERRORS
        for place, value in enumerate(_all(module, key))
        if value
    )


def _light(modules: list[Module]) -> bool | None:
    lights = [_first(module, "Led") for module in modules]
    known = [light for light in lights if light is not None]
    return any(light != 0 for light in known) if known else None

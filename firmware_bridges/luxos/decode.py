"""What LuxOS answers beside the common cgminer sections.

Source: recorded answers of 2025.4 and 2025.9, the vendor's public list of commands. `stats` has the
shape of Bitmain's stock firmware, and is read by its decoder.
"""

import re
from collections.abc import Iterable
from typing import Final

from firmware_bridges.base import MinerState, Partial, WorkMode
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import chips_of, fans_of, hottest_c
from firmware_bridges.rows import POWER_W_MAX, Row, RowReader, as_float, as_text, first_text

EVENTS_MAX: Final = 32

# Older releases knew an idle curtailment beside sleep; neither hashes.
_CURTAILED: Final = frozenset({"sleep", "idle"})
# The names of sensors differ with the model: corners of a board, or its chips.
_ON_BOARD: Final = re.compile(r"(top|bottom) ?(left|right)|board", re.IGNORECASE)
_ON_CHIP: Final = re.compile(r"chip|die", re.IGNORECASE)
# SystemStatus words that say why the machine does not hash.
_WORDS: Final = {
    "overheat": MinerState.OVERHEATED,
    "shutdown": MinerState.STOPPED,
    "panic": MinerState.FAULT,
    "initializing": MinerState.STARTING,
    "starting": MinerState.STARTING,
}


def decode_config(answer: Answer) -> Partial:
    """Decode `config`: identity, curtailment, profile and locate light."""
    reader = _first(answer, "CONFIG")
    return Partial(
        source=answer.command,
        model=reader.text("Model"),
        mac=mac_address(reader.text("MACAddr")),
        serial=reader.text("SerialNumber"),
        hostname=reader.text("Hostname"),
        expected_hashrate_ths=rate_ths(reader, "NameplateTHS", "TH"),
        power_limit_w=_target_w(reader),
        configured_mode=told_mode(answer),
        state=_state(reader),
        fault_light=_light(reader),
        power_profile=reader.text("Profile"),
        rejected=reader.rejected,
    )


def decode_power(answer: Answer) -> Partial:
    """Decode `power`; an estimate where `PSU` is false."""
    reader = _first(answer, "POWER")
    return Partial(
        source=answer.command, power_w=power_w(reader, "Watts"), rejected=reader.rejected
    )


def decode_profiles(answer: Answer) -> Partial:
    """Decode `profiles`: the watts of each."""
    profiles = tuple(
        (name, watts)
        for row in answer.section("PROFILES") or ()
        if (name := as_text(row.get("Profile Name"))) is not None
        and (watts := as_float(row.get("Watts"))) is not None
        and 0.0 < watts <= POWER_W_MAX
    )
    return Partial(source=answer.command, power_profiles=profiles or None)


def decode_temps(answer: Answer) -> Partial:
    """Decode `temps`: the sensors at the corners of each board, and of chips where there are."""
    rows = answer.section("TEMPS") or ()
    return Partial(
        source=answer.command,
        board_temp_c_max=hottest_c(_sensors(rows, _ON_BOARD)),
        chip_temp_c_max=hottest_c(_sensors(rows, _ON_CHIP)),
    )


def decode_atm(answer: Answer) -> Partial:
    """Decode `atm`: the power target, on machines that follow one."""
    reader = _first(answer, "ATM")
    return Partial(
        source=answer.command,
        power_limit_w=power_w(reader, "PowerTarget"),
        rejected=reader.rejected,
    )


def decode_fans(answer: Answer) -> Partial:
    """Decode `fans`."""
    rows = answer.section("FANS") or ()
    return Partial(source=answer.command, fans_rpm=fans_of(row.get("RPM") for row in rows))


def decode_events(answer: Answer) -> Partial:
    """Decode `events`: each as `[TARGET] what happened`."""
    rows = answer.section("EVENTS")
    if rows is None:
        return Partial(source=answer.command)
    events = tuple(dict.fromkeys(text for row in rows if (text := _event(row)) is not None))
    return Partial(source=answer.command, error_codes=events[:EVENTS_MAX])


def decode_devs(answer: Answer) -> Partial:
    """Decode `devs`: boards, and what keeps them from hashing."""
    rows = answer.section("DEVS") or ()
    flags = {name: [row.get(name) for row in rows] for name in ("IsUserShutdown", "IsRamping")}
    state = None
    if rows and not answer.truncated:
        if all(flag is True for flag in flags["IsUserShutdown"]):
            state = MinerState.STOPPED
        elif any(flag is True for flag in flags["IsRamping"]):
            state = MinerState.STARTING
    return Partial(
        source=answer.command,
        board_count=len(rows) or None,
        board_temp_c_max=hottest_c(row.get("Temperature") for row in rows),
        power_profile=_common(row.get("Profile") for row in rows) if rows else None,
        state=state,
    )


def decode_version(answer: Answer) -> Partial:
    """Decode `version`; where LuxOS poses as stock firmware, only `LUXminer` is its release."""
    reader = _first(answer, "VERSION")
    return Partial(
        source=answer.command,
        model=reader.text("Type"),
        fw_version=_release(first_text(reader, "LUXminer", "Miner", truncated=answer.truncated)),
        api_version=reader.text("API"),
        rejected=reader.rejected,
    )


def decode_devdetails(answer: Answer) -> Partial:
    """Decode `devdetails`: model and chips."""
    rows = answer.section("DEVDETAILS") or ()
    chips = chips_of(row.get("Chips") for row in rows)
    return Partial(
        source=answer.command,
        model=next((model for row in rows if (model := as_text(row.get("Model")))), None),
        chips_total=sum(chips) or None,
    )


def _sensors(rows: tuple[Row, ...], names: re.Pattern[str]) -> list[object]:
    return [value for row in rows for name, value in row.items() if names.search(name)]


def _first(answer: Answer, section: str) -> RowReader:
    rows = answer.section(section)
    return RowReader(rows[0] if rows else {})


def _release(text: str | None) -> str | None:
    """Take the commit off `2025.4.8.220305-57b389c7`; a name of other firmware is no release."""
    return text.partition("-")[0] if text is not None and text[0].isdigit() else None


def told_mode(answer: Answer) -> WorkMode | None:
    """Tell from `config` what the miner was told to do.

    A profile below the normal one is `low` and one above it `high`, but only where nobody but its
    owner chooses profiles: the automatic thermal management moves them by itself.
    """
    reader = _first(answer, "CONFIG")
    mode = reader.text("CurtailMode")
    if mode is None:
        return None
    if mode.lower() in _CURTAILED:
        return WorkMode.SLEEP
    if answer.truncated:
        return None
    step = as_float(reader.row.get("ProfileStep"))
    if step is None or step == 0 or reader.row.get("IsAtmEnabled") is not False:
        return WorkMode.NORMAL
    return WorkMode.LOW if step < 0 else WorkMode.HIGH


def _target_w(reader: RowReader) -> float | None:
    """Read the power target of machines that follow one; others follow their profile's watts."""
    if reader.row.get("IsPowerTargetEnabled") is not True:
        return None
    return power_w(reader, "ActualPowerTarget")


def _state(reader: RowReader) -> MinerState | None:
    if (reader.text("CurtailMode") or "").lower() in _CURTAILED:
        return MinerState.ASLEEP
    status = (reader.text("SystemStatus") or "").lower()
    return next((state for word, state in _WORDS.items() if word in status), None)


def _light(reader: RowReader) -> bool | None:
    word = reader.text("RedLed")
    return None if word is None else word.lower() in {"blink", "on"}


def _event(row: Row) -> str | None:
    text = as_text(row.get("Description")) or as_text(row.get("Code"))
    target = as_text(row.get("Target"))
    if text is None or target is None:
        return text
    number = as_float(row.get("ID"))
    return f"[{target}] {text}" if number is None else f"[{target} {int(number)}] {text}"


def _common(values: Iterable[object]) -> str | None:
    names = {as_text(value) for value in values}
    return names.pop() if len(names) == 1 else None

"""Auradine FluxOS: REST pages of the cgminer shape, values as texts with their unit.

Source: recorded answers of an AT1500, of several builds.
"""

from typing import Final

from firmware_bridges.base import MinerState, Partial, WorkMode
from firmware_bridges.cgminer.codec import Answer, answer_of
from firmware_bridges.cgminer.decode import decode_version as decode_common_version
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import CHIPS_MAX, fans_of, hottest_c, sum_of
from firmware_bridges.document import Document
from firmware_bridges.paths import rows_at
from firmware_bridges.rows import Row, RowReader, as_text

BOARDS_MAX: Final = 64

_ON: Final = frozenset({"on", "true", "yes"})
_OFF: Final = frozenset({"off", "false", "no"})


def decode_version(answer: Answer) -> Partial:
    """Decode `version`: the API version; the rest names the server."""
    return Partial(source=answer.command, api_version=decode_common_version(answer).api_version)


def decode_asccount(answer: Answer) -> Partial:
    """Decode `asccount`: chips and boards."""
    reader = _first(answer, "ASCCount")
    return Partial(
        source=answer.command,
        board_count=reader.whole("BoardCount", low=1, high=BOARDS_MAX),
        chips_total=reader.whole("AsicCount", low=1, high=CHIPS_MAX),
        rejected=reader.rejected,
    )


def decode_devs(answer: Answer) -> Partial:
    """Decode `devs`: boards and their temperature."""
    rows = answer.section("DEVS") or ()
    return Partial(
        source=answer.command,
        board_count=len(rows) or None,
        board_temp_c_max=hottest_c(row.get("Temperature") for row in rows),
    )


def decode_fan(document: Document) -> Partial:
    """Decode /fan."""
    rows = rows_at(document.value, "Fan")
    return Partial(source=document.source, fans_rpm=fans_of(row.get("Speed") for row in rows))


def decode_led(document: Document) -> Partial:
    """Decode /led: whether it is used to locate the machine."""
    words = [(as_text(row.get("Msg")) or "").lower() for row in rows_at(document.value, "LED")]
    if any("locat" in word or "blink" in word for word in words):
        return Partial(source=document.source, fault_light=True)
    return Partial(source=document.source, fault_light=False if any(words) else None)


def decode_mode(document: Document) -> Partial:
    """Decode /mode: sleep, and the targets of power and rate."""
    reader = _first(answer_of(document), "Mode")
    sleep = (reader.text("Sleep") or "").lower()
    asleep = sleep in _ON
    told = WorkMode.SLEEP if asleep else WorkMode.NORMAL if sleep in _OFF else None
    return Partial(
        source=document.source,
        power_limit_w=power_w(reader, "Power"),
        expected_hashrate_ths=rate_ths(reader, "Ths", "TH") or None,
        configured_mode=told,
        state=MinerState.ASLEEP if asleep else None,
        rejected=reader.rejected,
    )


def decode_psu(document: Document) -> Partial:
    """Decode /psu: the input power of all supplies."""
    powers = [power_w(RowReader(row), "PowerIn") for row in rows_at(document.value, "PSU")]
    return Partial(source=document.source, power_w=None if document.truncated else sum_of(powers))


def decode_temperature(document: Document) -> Partial:
    """Decode /temperature: boards and chips, the control board left out."""
    rows = [
        row
        for row in rows_at(document.value, "Temperature")
        if "control" not in (as_text(row.get("Name")) or "").lower()
    ]
    return Partial(
        source=document.source,
        board_temp_c_max=hottest_c(_sensors(rows, "BoardTemp")),
        chip_temp_c_max=hottest_c(_sensors(rows, "ChipTemp")),
    )


def decode_ipreport(document: Document) -> Partial:
    """Decode /ipreport: identity."""
    reader = _first(answer_of(document), "IPReport")
    return Partial(
        source=document.source,
        model=reader.text("model"),
        fw_version=reader.text("version"),
        mac=mac_address(reader.text("mac")),
        serial=reader.text("SerialNo") or reader.text("CBSerialNo"),
        hostname=reader.text("hostname"),
    )


def _first(answer: Answer, section: str) -> RowReader:
    rows = answer.section(section)
    return RowReader(rows[0] if rows else {})


def _sensors(rows: list[Row], key: str) -> list[object]:
    return [sensor.get("Temperature") for row in rows for sensor in rows_at(row, key)]

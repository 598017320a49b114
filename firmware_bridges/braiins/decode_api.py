"""Braiins OS through the cgminer API (bosminer, boser): its own sections beside the common ones.

Source: the vendor's API documents up to 25.05. The version that `version` gives is that of the API
server and not of the firmware, so it is left out.
"""

from typing import Final

from firmware_bridges.base import MinerState, Partial, WorkMode
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import decode_version as decode_common_version
from firmware_bridges.cgminer.decode import power_w, rate_ths
from firmware_bridges.collect import chips_of, fans_of, hottest_c, sum_of
from firmware_bridges.rows import Row, RowReader, as_text, rows_of

_TUNING: Final = ("tuning", "testing")
_PAUSED: Final = "paused"
_UNAVAILABLE: Final = "unavailable"


def decode_version(answer: Answer) -> Partial:
    """Decode `version`: the API version alone."""
    return Partial(source=answer.command, api_version=decode_common_version(answer).api_version)


def decode_devs(answer: Answer) -> Partial:
    """Decode `devs`: what the boards should reach together."""
    rows = answer.section("DEVS") or ()
    rates = [rate_ths(RowReader(row), "Nominal MHS", "MH") for row in rows]
    return Partial(
        source=answer.command,
        expected_hashrate_ths=None if answer.truncated else sum_of(rates),
        board_count=len(rows) or None,
    )


def decode_devdetails(answer: Answer) -> Partial:
    """Decode `devdetails`: model and chips."""
    rows = answer.section("DEVDETAILS") or ()
    chips = chips_of(row.get("Chips") for row in rows)
    return Partial(
        source=answer.command,
        model=next((model for row in rows if (model := as_text(row.get("Model")))), None),
        board_count=len(rows) or None,
        chips_total=sum(chips) or None,
        state=_stopped(answer),
    )


def decode_temps(answer: Answer) -> Partial:
    """Decode `temps`: board and chip of each board."""
    rows = answer.section("TEMPS") or ()
    return Partial(
        source=answer.command,
        chip_temp_c_max=hottest_c(row.get("Chip") for row in rows),
        board_temp_c_max=hottest_c(row.get("Board") for row in rows),
    )


def decode_fans(answer: Answer) -> Partial:
    """Decode `fans`; places without a fan read 0."""
    rows = answer.section("FANS") or ()
    return Partial(
        source=answer.command,
        fans_rpm=fans_of((row.get("RPM") for row in rows), drop_silent=True),
    )


def decode_tunerstatus(answer: Answer) -> Partial:
    """Decode `tunerstatus`: power, limit, and what the boards' tuners say that they do."""
    rows = answer.section("TUNERSTATUS") or ()
    reader = RowReader(rows[0] if rows else {})
    words = _tuner_words(reader.row)
    is_paused = bool(words) and not answer.truncated and all(_PAUSED in word for word in words)
    state = None
    if is_paused:
        state = MinerState.ASLEEP
    elif any(word.startswith(_TUNING) for word in words):
        state = MinerState.TUNING
    return Partial(
        source=answer.command,
        power_w=power_w(reader, "ApproximateMinerPowerConsumption"),
        power_limit_w=power_w(reader, "PowerLimit"),
        configured_mode=WorkMode.SLEEP if is_paused else None,
        state=state or _stopped(answer),
        rejected=reader.rejected,
    )


def _tuner_words(row: Row) -> list[str]:
    chains = rows_of(row.get("TunerChainStatus"))
    words = (as_text(chain.get("Status")) for chain in chains)
    return [word.lower() for word in words if word]


def _stopped(answer: Answer) -> MinerState | None:
    """Tell that the mining program does not run: then the API says so instead of its sections."""
    if answer.sections or answer.truncated:
        return None
    said = {(status.message or "").lower() for status in answer.status}
    return MinerState.STOPPED if _UNAVAILABLE in said else None

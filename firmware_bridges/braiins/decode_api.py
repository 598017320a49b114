"""Braiins OS through the cgminer API (bosminer, boser): its own sections beside the common ones.

Source: the vendor's API documents up to 25.05. The version that `version` gives is that of the API
server and not of the firmware, so it is left out.
"""

from typing import Final

from firmware_bridges.base import MinerState, Partial
from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.cgminer.decode import decode_version as decode_common_version
from firmware_bridges.cgminer.decode import power_w, rate_ths
from firmware_bridges.collect import chips_of, fans_of, hottest_c, sum_of
from firmware_bridges.rows import Row, RowReader, as_text

_TUNING: Final = ("tuning", "testing")


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
    """Decode `tunerstatus`: power, limit, and whether a board is being tuned."""
    rows = answer.section("TUNERSTATUS") or ()
    reader = RowReader(rows[0] if rows else {})
    return Partial(
        source=answer.command,
        power_w=power_w(reader, "ApproximateMinerPowerConsumption"),
        power_limit_w=power_w(reader, "PowerLimit"),
        state=MinerState.TUNING if _is_tuning(reader.row) else None,
        rejected=reader.rejected,
    )


def _is_tuning(row: Row) -> bool:
    chains = row.get("TunerChainStatus")
    if not isinstance(chains, list):
        return False
    words = [as_text(chain.get("Status")) for chain in chains if isinstance(chain, dict)]
    return any(word.lower().startswith(_TUNING) for word in words if word)

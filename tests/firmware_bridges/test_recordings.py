"""Every recorded miner, whole and damaged: what remains must be right, and nothing may be wrong."""

import json
import random
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from firmware_bridges.base import Partial
from firmware_bridges.families import FAMILIES
from firmware_bridges.fixture import read_fixture
from firmware_bridges.query import Exchange
from firmware_bridges.recognise import Decoded, decode_exchanges, decode_query, read_partials
from firmware_bridges.report import MinerReport, report_of
from tests.firmware_bridges.captures import recorded

NAMES = sorted(name for family in FAMILIES for name in family.sheet.captures)
SHARE_OF_RATE = 0.005
SHARE_OF_POWER = 0.01


def report(exchanges: Sequence[Exchange]) -> MinerReport:
    return report_of(decode_exchanges(exchanges, "recording"))


def each_alone(exchanges: Sequence[Exchange]) -> list[MinerReport]:
    """Give what each answer says by itself, to one who knows whose it is."""
    family = decode_exchanges(exchanges, "recording").family
    reports = []
    for exchange in exchanges:
        parts = decode_query(family, exchange.query, exchange.body, "recording")
        partials = [outcome for _, outcome in parts if isinstance(outcome, Partial)]
        reading = read_partials(family, "recording", partials, ())
        reports.append(report_of(Decoded(family=family, reading=reading, missing=())))
    return reports


def said(found: MinerReport, name: str) -> object:
    """Give what a report says to one expected value, whose unit stands in its name."""
    rate = found.hashrate_ths
    special = {
        "hashrate_ths_rounded": None if rate is None else round(rate),
        "hashrate_mhs_rounded": None if rate is None else round(rate * 1e6),
        "hashrate_ghs": None if rate is None else rate * 1e3,
        "hashrate_ths_from_MHS_1m": rate,
        "hashrate_ths_from_summary": rate,
        "hashrate_ths_min": rate,
        "hashrate_ths_asserted_as_1": rate is not None and abs(rate - 1) < SHARE_OF_RATE,
        "power_w_min": found.power_w,
        "chip_temp_c": found.chip_temp_c_max,
        "board_temp_c": found.board_temp_c_max,
        "pools": None if found.pools is None else len(found.pools),
        "pool0_user": found.pools[0].user if found.pools else None,
        "errors": None if found.error_codes is None else list(found.error_codes),
    }
    value = special[name] if name in special else getattr(found, name)
    return list(value) if isinstance(value, tuple) else value


# Remarks of the recording and things that a reading does not carry.
NOT_CARRIED = {"pool_dead_status_spelling", "psu_fan_count", "pool_groups", "board0_active",
               "board0_chips", "board1_chips", "boards_present", "hashrate_unit_field", "health",
               "note", "power_mode", "hash_stable", "elapsed_s"}  # fmt: skip


def differences(found: MinerReport, expected: Mapping[str, object]) -> list[str]:
    wrong = []
    for name, wanted in expected.items():
        if name in NOT_CARRIED:
            continue
        got = said(found, name)
        if not agrees(name, got, wanted):
            wrong.append(f"{name}: {got!r}, expected {wanted!r}")
    return wrong


def agrees(name: str, got: object, wanted: object) -> bool:
    if isinstance(got, int | float) and isinstance(wanted, int | float) and got is not True:
        if name.endswith("_min"):
            return got >= wanted
        if name.startswith(("hashrate", "expected_hashrate")):
            return abs(got - wanted) <= SHARE_OF_RATE * abs(wanted)
        if name.startswith("power"):
            return abs(got - wanted) <= SHARE_OF_POWER * abs(wanted)
    if name == "model" and isinstance(got, str) and isinstance(wanted, str):
        return wanted.lower().replace(" ", "") in got.lower().replace(" ", "")
    return got == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_recording_gives_its_expected_values(name: str) -> None:
    capture = recorded(name)
    found = report(read_fixture(capture.raw))
    assert differences(found, capture.expected) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_answer_costs_its_own_fields_only(name: str) -> None:
    exchanges = read_fixture(recorded(name).raw)
    whole, alone = report(exchanges), each_alone(exchanges)
    for place in range(len(exchanges) if len(exchanges) > 1 else 0):
        rest = [*exchanges[:place], *exchanges[place + 1 :]]
        assert wrong_beside(report(rest), whole, alone) == [], exchanges[place].query.key


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_or_garbled_answer_makes_nothing_wrong(name: str) -> None:
    exchanges = read_fixture(recorded(name).raw)
    whole, alone = report(exchanges), each_alone(exchanges)
    rng = random.Random(name)
    for place, exchange in enumerate(exchanges):
        body = exchange.body
        cuts = {0, 1, len(body) - 1, *(rng.randrange(len(body)) for _ in range(40))}
        bodies = [body[:cut] for cut in sorted(cuts)]
        bodies += [b"\x00\xff{{{", b"<html>404</html>", rng.randbytes(200), b"[" * 300]
        for damaged in bodies:
            changed = [*exchanges]
            changed[place] = Exchange(query=exchange.query, body=damaged)
            found = report(changed)
            detail = f"{exchange.query.key} as {damaged[-40:]!r}"
            assert wrong_beside(found, whole, alone) == [], detail


def wrong_beside(found: MinerReport, whole: MinerReport, alone: Sequence[MinerReport]) -> list[str]:
    """List what a damaged recording says and no answer of the whole one does."""
    wrong = []
    for name in MinerReport.__struct_fields__:
        got = getattr(found, name)
        if got is None or name in ("v", "parts_missing", "repairs", "rejected"):
            continue
        # The family is the best guess of whoever has less; what follows from it is checked.
        if name == "family" or got == getattr(whole, name):
            continue
        allowed = [getattr(each, name) for each in alone]
        if got not in allowed:
            wrong.append(f"{name}: {got!r}, whole {getattr(whole, name)!r}")
    return wrong


def test_the_form_is_json_with_the_promised_names() -> None:
    found = json.loads(msgspec.json.encode(report(())))
    assert {"make", "model", "hashrate_ths", "power_w", "is_mining", "parts_missing"} <= set(found)

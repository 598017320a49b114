"""Decoding Avalon generations: figures of ours in the shape of public answers of each."""

import json

import pytest

from firmware_bridges.base import MinerState, Reading, WorkMode
from firmware_bridges.query import Exchange, cgminer
from firmware_bridges.recognise import Decoded, decode_exchanges

OK = [{"STATUS": "S", "When": 1, "Code": 70, "Msg": "CGMiner stats", "Description": "cgminer"}]


def answered(command: str, **sections: object) -> Exchange:
    body = json.dumps({"STATUS": OK, **sections, "id": 1}).encode()
    return Exchange(query=cgminer(command), body=body)


def stats(*modules: str, first: int = 0) -> Exchange:
    texts = {f"MM ID{first + place}": text for place, text in enumerate(modules)}
    return answered("estats", STATS=[{"STATS": 0, "ID": "AVA0", "Elapsed": 900, **texts}])


def decoded(*exchanges: Exchange) -> Decoded:
    return decode_exchanges(exchanges, "10.0.0.1")


def read(*exchanges: Exchange) -> Reading:
    return decoded(*exchanges).reading


WORKS = "SYSTEMSTATU[Work: In Work, Hash Board: 1] "
IDLE = "SYSTEMSTATU[Work: In Idle, Hash Board: 3 ] "
# Six numbers up to the A10, seven from the A11; the Nanos have an order of their own each.
A10 = (
    "Ver[1047-19120401_aa_bb] "
    + WORKS
    + "GHSmm[37000.5] GHSavg[36500.5] PS[0 1212 1315 174 2288 1]"
)
A13 = "Ver[1346-110-24041001_aa_bb] " + WORKS + "GHSspd[110.0] PS[0 1209 1187 297 3300 1188 3520]"
NANO_3 = "HashStatus[1] Ver[nano3-24071801_aa] GHSspd[2600.5] PS[0 0 0 3 2800 88 320] MPO[90]"
NANO = "Ver[Nano3s-25021401_aa] " + WORKS + "GHSspd[6000.0] PS[0 0 27500 4 0 3700 131] MPO[133]"
ASLEEP = (
    "Ver[1346-110-24041001_aa_bb] SoftOFF[5] " + IDLE
    + "GHSspd[0.00] GHSmm[0.00] GHSavg[22000.0] PS[0 1198 0 0 0 1393 11]"
)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "power_w"),
    [
        (A13, 3_520.0),
        (NANO, 131.0),
        (NANO_3, 88.0),
        (NANO_3.replace("2600.5", "0.00"), None),
        (NANO_3.replace("PS[0 0 0", "PS[0 0 9"), None),
        # A large supply that does not tell what it gives.
        (A13.replace("PS[0 1209 1187 297 3300", "PS[1 0 1187 0 0"), None),
        (A10, None),
        (ASLEEP, None),
        (NANO.replace("In Work", "In Idle"), None),
        ("Ver[Q-25052801_aa] " + IDLE + "PS[0 1216 1 0 0 2243 17]", None),
    ],
)
def test_power_is_that_at_the_wall_or_unknown(module: str, power_w: float | None) -> None:
    assert read(stats(module)).power_w == power_w


@pytest.mark.parametrize(
    ("version", "model"),
    [
        ("Nano3s-25021401_aa", "Avalon Nano3s"),
        ("nano3-24071801_aa_bb", "Avalon Nano3"),
        ("Mini3-25010801_aa", "Avalon Mini3"),
        ("Q-25052801_aa", "Avalon Q"),
        ("1346-110-24041001_aa_bb", "AvalonMiner 1346-110"),
        ("15-194-24102401_aa_bb", "AvalonMiner 15-194"),
        ("7411706-3162860", None),
        ("", None),
    ],
)
def test_the_version_of_a_module_names_the_model(version: str, model: str | None) -> None:
    assert read(stats(f"Ver[{version}] " + WORKS)).model == model


def test_what_version_says_of_the_model_wins() -> None:
    told = answered("version", VERSION=[{"PROD": "Avalon Nano3s", "VERSION": "25021401_aa"}])
    reading = read(stats(A13), told)
    assert (reading.model, reading.fw_version) == ("Avalon Nano3s", "25021401_aa")


def test_an_average_that_still_falls_does_not_make_a_sleeper_mine() -> None:
    falling = answered("summary", SUMMARY=[{"Elapsed": 900, "MHS 1m": 1102.8, "MHS av": 2.2e7}])
    reading = read(falling, stats(ASLEEP))
    assert (reading.state, reading.is_mining) == (MinerState.ASLEEP, False)
    assert (reading.hashrate_ths, reading.configured_mode) == (0.0, WorkMode.SLEEP)


def test_modules_behind_a_controller_are_counted_from_one() -> None:
    old = "Ver[9211809-b4b3d00] Temp[23] TMax[94] Fan[{rpm}] GHSmm[21700.0] TA[104] ECHU[0 0 0 0]"
    found = decoded(
        stats(old.format(rpm=4830), old.format(rpm=4710), first=1),
        answered("summary", SUMMARY=[{"MHS 5s": 43.1e6, "MHS av": 42.0e6}]),
    )
    assert found.family.name == "avalon"
    reading = found.reading
    assert reading.hashrate_ths == pytest.approx(43.1)
    assert reading.expected_hashrate_ths == pytest.approx(43.4)
    assert (reading.fans_rpm, reading.chips_total) == ((4830, 4710), 208)
    assert (reading.inlet_temp_c, reading.chip_temp_c_max) == (23.0, 94.0)


def test_the_text_form_reads_the_same() -> None:
    text = (
        "STATUS=S,When=1,Code=70,Msg=CGMiner stats,Description=cgminer 4.11.1|"
        f"STATS=0,ID=AVANANO0,Elapsed=900,Min=99999999.000000,MM ID0={NANO_3},MM Count=1|\0"
    )
    found = decoded(Exchange(query=cgminer("estats"), body=text.encode()))
    assert found.family.name == "avalon"
    assert (found.reading.power_w, found.reading.model) == (88.0, "Avalon Nano3")
    assert found.reading.hashrate_ths == pytest.approx(2.6005)

"""Firmwares and machines whose answers have Bitmain's shape: Hiveon, MSKMiner, Elphapex, Hammer."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridges.document import read_json
from firmware_bridges.errors import BridgeError
from firmware_bridges.families import FAMILY_OF
from firmware_bridges.query import Exchange, Query, Wire, cgminer, page
from firmware_bridges.recognise import Decoded, decode_exchanges, decode_query
from firmware_bridges.scrypt.decode import bare_version
from tests.firmware_bridges.jsonish import assert_plausible, values_under

CGI = "/cgi-bin/"
OK = [{"STATUS": "S", "Code": 70, "Msg": "BMMiner stats", "Description": "bmminer 1.0.0"}]
KIN = ("hiveon", "mskminer", "elphapex", "hammer")


def decoded(*answers: tuple[Query, object]) -> Decoded:
    rows = [Exchange(query=query, body=json.dumps(body).encode()) for query, body in answers]
    return decode_exchanges(rows, "10.0.0.1")


def stats(model: str, **row: object) -> tuple[Query, object]:
    head = {"BMMiner": "4.11.1 rwglr", "CompileTime": "Thu Apr 10", "Type": model}
    return cgminer("stats"), {"STATUS": OK, "STATS": [head, {"Elapsed": 700} | row]}


@pytest.mark.parametrize("written", ["Antminer S17 Hiveon", "Antminer S17 (Hiveon 1.04)"])
def test_hiveon_takes_its_name_off_the_model(written: str) -> None:
    found = decoded(stats(written, **{"GHS 5s": "55000.1", "total_power": 2_100}))
    assert found.family.name == "hiveon"
    reading = found.reading
    assert (reading.make, reading.model, reading.firmware) == ("Bitmain", "Antminer S17", "hiveon")
    assert reading.hashrate_ths == pytest.approx(55.0001)
    assert reading.power_w == 2_100.0


def test_mskminer_takes_its_version_off_the_model() -> None:
    version = {
        "STATUS": OK,
        "VERSION": [{"BMMiner": "4.11.1 rwglr", "API": "3.1", "Type": "T19-84 v.2.6.1.2 "}],
    }
    info = {"network_info": {"result": {"macaddr": "02:00:00:00:00:01"}}}
    found = decoded(
        (cgminer("version"), version),
        stats("T19-84 v.2.6.1.2 ", **{"GHS 5s": 84_000.5, "total_rate": 83_900.0}),
        (page("/api/info_v1"), info),
    )
    assert found.family.name == "mskminer"
    assert found.reading.model == "T19-84"
    assert found.reading.hashrate_ths == pytest.approx(84.0005)
    assert found.reading.mac == "02:00:00:00:00:01"


def elphapex(*rates: object, sample: float = 11_500.5) -> list[tuple[Query, object]]:
    head = {"STATUS": "S", "api_version": "1.0.0"}
    info = {"miner_version": "DG1+_SW_V1.0.2", "dev_sn": "SN1", "type": "DG1+"}
    chains = [
        {"asic_num": 204, "rate_real": rate, "temp_chip": ["47125", "50500", "", ""],
         "temp_pcb": [47, 46, 67, 66]}
        for rate in rates
    ]  # fmt: skip
    row = {"rate_unit": "MH/s", "rate_5s": sample, "rate_avg": 14_000.0, "rate_ideal": 14_229,
           "elapsed": 350_000, "chain": chains, "fan": ["5340", "5400"], "fan_num": 2}  # fmt: skip
    summary = {"rate_unit": "MH/s", "rate_5s": 14_900.5, "rate_avg": 14_000.0, "elapsed": 350_005}
    identity = {
        "Algorithm": "Scrypt", "minertype": "DG1+", "macaddr": "02:00:00:00:00:02",
        "hostname": "DG1+", "system_filesystem_version": "DG1+_SW_V1.0.2",
    }  # fmt: skip
    return [
        (page(CGI + "stats.cgi"), {"STATUS": head, "INFO": info, "STATS": [row]}),
        (page(CGI + "summary.cgi"), {"STATUS": head, "INFO": info, "SUMMARY": [summary]}),
        (page(CGI + "get_system_info.cgi"), identity),
    ]


def test_the_rate_of_an_elphapex_is_that_of_its_boards() -> None:
    found = decoded(*elphapex(3_500.0, 3_550.0, 3_550.0, 3_540.0))
    reading = found.reading
    assert found.family.name == "elphapex"
    assert reading.make == "Elphapex"
    assert reading.hashrate_ths == pytest.approx(14_140e-6)
    assert reading.hashrate_avg_ths == pytest.approx(14_000e-6)
    assert (reading.board_count, reading.chips_total) == (4, 816)
    assert (reading.chip_temp_c_max, reading.board_temp_c_max) == (50.5, 67.0)
    assert (reading.fw_version, reading.api_version) == ("1.0.2", "1.0.0")
    assert (reading.serial, reading.fans_rpm) == ("SN1", (5_340, 5_400))


def test_a_board_without_a_rate_leaves_the_machines_own() -> None:
    assert decoded(*elphapex(3_500.0, None)).reading.hashrate_ths == pytest.approx(11_500.5e-6)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("DG1+_SW_V1.0.2", "1.0.2"),
        ("DG-Home1_V1.0.5", "1.0.5"),
        ("2024-01-02", "2024-01-02"),
        (None, None),
    ],
)
def test_the_version_stands_behind_the_model(text: str | None, version: str | None) -> None:
    assert bare_version(text) == version


def test_a_hammer_is_read_in_mega_and_tells_nothing_of_its_light() -> None:
    head = {"CGMiner": "2.3.3", "Type": "Hammer D10+"}
    row = {"Elapsed": 10, "MHS 5s": "4600.5", "fan_num": 4, "fan1": 4_650, "fan2": 4_500}
    answer = {"STATUS": [{"STATUS": "S", "Description": "ccminer 2.3.3"}], "STATS": [head, row]}
    found = decoded(
        (cgminer("stats"), answer), (page(CGI + "get_blink_status.cgi"), {"code": "B000"})
    )
    assert found.family.name == "hammer"
    assert found.reading.hashrate_ths == pytest.approx(4_600.5e-6)
    assert found.reading.fault_light is None


NAMES = (
    "STATS", "VERSION", "SUMMARY", "INFO", "STATUS", "type", "Type", "Elapsed", "GHS 5s", "MHS 5s",
    "rate_5s", "rate_unit", "rate_real", "chain", "temp_chip", "fan", "fan_num", "fan1", "Mode",
    "miner-mode", "api_version", "miner_version", "chain_power1", "network_info", "result",
    "macaddr", "minertype", "blink", "code", "status",
)  # fmt: skip


@settings(max_examples=60)
@given(st.sampled_from(KIN), values_under(NAMES))
def test_any_answer_gives_plausible_values_or_a_bridge_error(name: str, value: object) -> None:
    family = FAMILY_OF[name]
    body = json.dumps(value).encode()
    queries = [cgminer(command) for command in ("stats", "version", "summary", "pools")]
    queries += [page(key) for wire, key in family.documents if wire is Wire.HTTP]
    for query in queries:
        for _, outcome in decode_query(family, query, body, "a"):
            if not isinstance(outcome, BridgeError):
                assert_plausible(outcome)


@settings(max_examples=60)
@given(st.sampled_from(KIN), st.binary(max_size=60))
def test_any_bytes_give_plausible_values_or_a_bridge_error(name: str, body: bytes) -> None:
    family = FAMILY_OF[name]
    try:
        read_json(body, "a")
    except BridgeError:
        for _, outcome in decode_query(family, cgminer("stats"), body, "a"):
            assert isinstance(outcome, BridgeError) or outcome.hashrate_ths is None

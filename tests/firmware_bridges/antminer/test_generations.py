"""Stock Antminers of other generations and algorithms: made-up values in answers of their shape.

Shapes: public recordings of S9, T17+, L3+, Z15 Pro, S21 XP Hyd., S23 Hyd., KS7.
"""

import json

import pytest

from firmware_bridges.antminer.configuration import with_mode, with_pools
from firmware_bridges.antminer.units import native_unit
from firmware_bridges.base import MinerState, Reading, WorkMode
from firmware_bridges.commands import PoolTarget
from firmware_bridges.errors import BridgeUnsupportedError
from firmware_bridges.query import Exchange, cgminer, page
from firmware_bridges.recognise import decode_exchanges

OK = [{"STATUS": "S", "Code": 70, "Msg": "CGMiner stats", "Description": "cgminer 1.0.0"}]


def read(*exchanges: Exchange) -> Reading:
    return decode_exchanges(exchanges, "10.0.0.1").reading


def stats(model: str, **row: object) -> Exchange:
    head = {"BMMiner": "1.0.0", "Miner": "1.0.1.3", "CompileTime": "now", "Type": model}
    body = json.dumps({"STATUS": OK, "STATS": [head, {"STATS": 0, "Elapsed": 5_000} | row]})
    return Exchange(query=cgminer("stats"), body=body.encode())


def web_stats(model: str, **row: object) -> Exchange:
    body = {"STATUS": {"STATUS": "S"}, "INFO": {"type": model}, "STATS": [{"elapsed": 5_000} | row]}
    return Exchange(query=page("/cgi-bin/stats.cgi"), body=json.dumps(body).encode())


def web_summary(model: str, status: list[object], **row: object) -> Exchange:
    rows = [{"elapsed": 60, "rate_unit": "GH/s", "status": status} | row]
    body = {"STATUS": {"STATUS": "S"}, "INFO": {"type": model}, "SUMMARY": rows}
    return Exchange(query=page("/cgi-bin/summary.cgi"), body=json.dumps(body).encode())


def test_an_s9_has_its_boards_and_fans_where_they_sit() -> None:
    places = {f"chain_acn{n}": 63 if n in (6, 7, 8) else 0 for n in range(1, 17)}
    fans = {f"fan{n}": {3: 5_700, 6: 4_500}.get(n, 0) for n in range(1, 9)}
    temps = {"temp6": 62, "temp2_6": 81, "temp31": 99, "temp1": 0}
    row = {"GHS 5s": "13800.5", "GHS av": 13_700.5, "fan_num": 2, "total_rateideal": 14_000.25}
    reading = read(stats("Antminer S9", **row, **places, **fans, **temps))
    assert reading.hashrate_ths == pytest.approx(13.8005)
    assert reading.expected_hashrate_ths == pytest.approx(14.00025)
    assert (reading.board_count, reading.chips_total) == (3, 189)
    assert (reading.fans_rpm, reading.fan_count) == ((5_700, 4_500), 2)
    assert (reading.board_temp_c_max, reading.chip_temp_c_max) == (62.0, 81.0)
    assert reading.is_mining is True


def test_a_t17_that_sleeps_says_so_by_its_mode_254() -> None:
    fans = {f"fan{n}": 0 for n in range(1, 17)}
    row = {"GHS 5s": "0.00", "GHS av": 0.0, "Mode": 254, "fan_num": 0, "rate_unit": "GH"}
    reading = read(stats("Antminer T17+", total_rateideal=0.0, **row, **fans))
    assert (reading.is_mining, reading.state) == (False, MinerState.ASLEEP)
    assert reading.fan_count is None, "it has fans, which stand"
    assert reading.expected_hashrate_ths is None


def test_a_mode_of_254_is_no_sleep_while_it_hashes() -> None:
    reading = read(stats("Antminer T17+", **{"GHS 5s": "40000.0", "Mode": 254}))
    assert reading.state is MinerState.MINING


@pytest.mark.parametrize("fan_num", [0, 4])
def test_a_hydro_machine_has_no_fans_whatever_it_counts(fan_num: int) -> None:
    fans = {f"fan{n}": 0 for n in range(1, 5)}
    row = {"GHS 5s": 480_000.5, "GHS av": 481_000.0, "fan_num": fan_num, "rate_unit": "GH"}
    reading = read(stats("Antminer S21 XP Hyd.", **row, **fans))
    assert reading.hashrate_ths == pytest.approx(480.0005)
    assert reading.fans_rpm is None
    assert reading.fan_count == (0 if fan_num == 0 else None)


@pytest.mark.parametrize(
    ("model", "temps", "hottest"),
    [
        # In and out of the water, and nothing of the chips.
        ("Antminer S21 Hyd.", (30, 41, 0, 0), None),
        ("Antminer S21 XP Hyd.", (63, 59, 56, 61), 63.0),
        ("Antminer S21", (30, 41, 0, 0), 41.0),
    ],
)
def test_the_water_of_a_hydro_machine_is_no_chip(
    model: str, temps: tuple[int, ...], hottest: float | None
) -> None:
    listed = read(web_stats(model, rate_5s=0, chain=[{"index": 0, "temp_chip": list(temps)}]))
    assert listed.chip_temp_c_max == hottest
    written = read(stats(model, temp_chip1="-".join(map(str, temps))))
    assert written.chip_temp_c_max == hottest


def test_a_hydro_page_gives_its_watts_and_its_mode() -> None:
    chain = {"asic_num": 84, "temp_pcb": [44, 52], "temp_chip": [44, 56], "rate_real": 1.0}
    row = {"rate_5s": 570_000.5, "rate_avg": 571_000.0, "rate_ideal": 580_000.0, "watt": 5_500}
    reading = read(
        web_stats(
            "Antminer S23 Hyd.", rate_unit="GH/s", fan=[], fan_num=0, chain=[chain] * 3,
            **{"miner-mode": 0}, **row,
        )
    )  # fmt: skip
    assert reading.hashrate_ths == pytest.approx(570.0005)
    assert (reading.power_w, reading.board_count, reading.chips_total) == (5_500.0, 3, 252)
    assert (reading.chip_temp_c_max, reading.board_temp_c_max) == (56.0, 52.0)
    assert (reading.fans_rpm, reading.fan_count) == (None, 0)
    assert reading.configured_mode is WorkMode.NORMAL


def test_a_page_of_no_rate_that_was_told_to_sleep_is_asleep() -> None:
    row = {"rate_5s": 0, "rate_avg": 0, "rate_unit": "GH/s", "fan": [0, 0, 0, 0], "fan_num": 4}
    reading = read(web_stats("Antminer S21", **{"miner-mode": 1}, **row))
    assert (reading.state, reading.configured_mode) == (MinerState.ASLEEP, WorkMode.SLEEP)
    assert reading.fans_rpm == (0, 0, 0, 0)
    awake = read(web_stats("Antminer S21", **{"miner-mode": 1}, **row | {"rate_5s": 200_000}))
    assert awake.is_mining is True, "what it was told is no evidence"


def test_scrypt_is_counted_in_mega_whatever_the_name_says() -> None:
    old = read(stats("Antminer L3+", **{"GHS 5s": "410.5", "GHS av": 405.25}))
    assert old.hashrate_ths == pytest.approx(410.5e-6)
    assert old.hashrate_avg_ths == pytest.approx(405.25e-6)
    row = {"GHS 5s": 9_400.5, "total_rateideal": 9_500.0, "rate_unit": "MH"}
    new = read(stats("Antminer L7", **row))
    assert new.hashrate_ths == pytest.approx(9_400.5e-6)
    assert new.expected_hashrate_ths == pytest.approx(9_500e-6)


def test_a_scrypt_rate_under_a_wrong_unit_is_found_out_by_the_nameplate() -> None:
    version = {"STATUS": OK, "VERSION": [{"BMMiner": "1", "API": "3.1", "Type": "Antminer L7"}]}
    summary = {"STATUS": OK, "SUMMARY": [{"Elapsed": 5_000, "GHS 5s": 9_400.5}]}
    reading = read(
        Exchange(query=cgminer("version"), body=json.dumps(version).encode()),
        Exchange(query=cgminer("summary"), body=json.dumps(summary).encode()),
    )
    assert reading.hashrate_ths is None
    assert "unit_trap.hashrate_ths" in reading.rejected


def test_solutions_are_no_hashes_but_mining() -> None:
    chain = {"asic_num": 6, "temp_chip": [60, 71], "temp_pcb": [38, 55]}
    row = {"rate_5s": 850.5, "rate_ideal": 870.25, "rate_unit": "Ksol/s", "fan": [4_560, 4_500]}
    page_of_it = read(web_stats("Antminer Z15 Pro", chain=[chain] * 3, fan_num=2, **row))
    old = read(stats("Antminer Z15 Pro", **{"GHS 5s": 850.5, "total_rateideal": 870.25}))
    for reading in (page_of_it, old):
        assert (reading.hashrate_ths, reading.expected_hashrate_ths) == (None, None)
        assert reading.is_mining is True
    assert (page_of_it.board_count, page_of_it.fans_rpm) == (3, (4_560, 4_500))


def test_a_cut_answer_gives_no_rate_whose_unit_may_be_lost() -> None:
    whole = {"GHS 5s": 410.5, "GHS av": 411.8}
    body = json.dumps({"STATS": [{"Elapsed": 5} | whole, {"Type": "Antminer L3+"}]}).encode()
    cut = Exchange(query=cgminer("stats"), body=body[: body.index(b"Type")])
    assert read(cut).hashrate_ths is None


@pytest.mark.parametrize(
    ("model", "unit"),
    [
        ("Antminer S21", "GH"),
        ("Antminer L9", "MH"),
        ("Bitmain Antminer L11", "MH"),
        ("L7", "MH"),
        ("Antminer D3", "MH"),
        ("Antminer E3", "MH"),
        ("Antminer D7", "GH"),
        ("Antminer Z11", "Sol"),
        ("Antminer KS5 Pro", "GH"),
        ("LX1", "GH"),
        (None, "GH"),
    ],
)
def test_the_series_tells_what_a_machine_counts(model: str | None, unit: str) -> None:
    assert native_unit(model) == unit


def test_a_machine_that_heat_stopped_is_overheated() -> None:
    fine = {"type": "rate", "status": "s", "code": 0}
    hot = {"type": "temp", "status": "e", "code": 5}
    reading = read(web_summary("Antminer S19 XP", [fine, hot], rate_5s=0, rate_avg=0))
    assert (reading.is_mining, reading.state) == (False, MinerState.OVERHEATED)
    assert reading.error_codes == ("temp:e5",)
    warm = read(web_summary("Antminer S19 XP", [fine, hot], rate_5s=140_000, rate_avg=1))
    assert warm.state is MinerState.MINING, "it still hashes"
    idle = read(web_summary("Antminer S19 XP", [fine], rate_5s=0, rate_avg=0))
    assert idle.state is MinerState.IDLE


@pytest.mark.parametrize(
    ("answer", "lit"),
    [
        ({"blink": True}, True),
        ({"blink": "false"}, False),
        ({"code": "B000"}, True),
        ({"code": "B100"}, False),
        ({"blink": None, "code": "E1"}, None),
        ({}, None),
    ],
)
def test_the_light_is_a_truth_value_or_a_code(answer: object, lit: object) -> None:
    query = page("/cgi-bin/get_blink_status.cgi")
    identity = {"minertype": "Antminer S19"}
    reading = read(
        Exchange(query=query, body=json.dumps(answer).encode()),
        Exchange(query=page("/cgi-bin/get_system_info.cgi"), body=json.dumps(identity).encode()),
    )
    assert reading.fault_light is lit


def test_the_boards_powers_add_up_where_there_is_no_sum() -> None:
    row = {"GHS 5s": 6_500.0, "chain_power1": 450, "chain_power2": "430 W", "chain_power3": 0}
    assert read(stats("Antminer S19", **row)).power_w == 880.0
    assert read(stats("Antminer S19", total_power=1_300, **row)).power_w == 1_300.0


def test_nothing_is_written_to_a_machine_that_takes_a_form() -> None:
    # get_miner_conf.cgi of S9 and S17: no frequency level, no hash rate percent.
    row = {"pools": [], "bitmain-use-vil": True, "bitmain-freq": "550", "bitmain-voltage": "0706"}
    body = json.dumps(row).encode()
    with pytest.raises(BridgeUnsupportedError):
        with_mode(body, WorkMode.SLEEP, "a")
    with pytest.raises(BridgeUnsupportedError):
        with_pools(body, [PoolTarget(url="stratum+tcp://p:1", user="u")], "a")
    newer = json.dumps(row | {"bitmain-freq-level": "100"}).encode()
    assert json.loads(with_mode(newer, WorkMode.SLEEP, "a"))["miner-mode"] == 1

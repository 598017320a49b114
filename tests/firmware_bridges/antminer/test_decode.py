"""Decoding stock Antminers: recorded machines, sleep, placeholders and hostile rows."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.antminer.configuration import MODE_NUMBERS, mode_of, with_mode
from firmware_bridges.antminer.decode import decode_stats, decode_web_summary
from firmware_bridges.antminer.family import ANTMINER_STOCK
from firmware_bridges.base import MinerState, Partial, WorkMode, merge
from firmware_bridges.cgminer.codec import decode_answers
from firmware_bridges.cgminer.decode import decode_pools, decode_summary, decode_version
from firmware_bridges.document import read_json
from firmware_bridges.errors import BridgeGarbledError
from firmware_bridges.query import Wire
from firmware_bridges.rows import TEMP_C_MAX
from tests.firmware_bridges.captures import Capture

AT = "127.0.0.1:4028"


def decode_page(body: bytes, name: str) -> Partial:
    decode = ANTMINER_STOCK.documents[(Wire.HTTP, f"/cgi-bin/{name}")]
    return decode(read_json(body, AT, name))


def stats(body: object) -> Partial:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_stats(decode_answers(raw, ["stats"], AT)[0])


def old_stats(**row: object) -> Partial:
    return stats({"STATUS": [{"STATUS": "S"}], "STATS": [{"Type": "X"}, {"Elapsed": 5} | row]})


# --- recorded machines ---------------------------------------------------------------------------


def test_the_recorded_s19_pro() -> None:
    capture = Capture("antminer-stock-s19pro-49013")
    reading = merge(
        "10.0.0.1",
        [
            stats(capture.rpc("stats")),
            decode_summary(decode_answers(capture.rpc("summary"), ["summary"], AT)[0]),
            decode_page(capture.page("get_system_info.cgi"), "get_system_info.cgi"),
            decode_version(decode_answers(capture.rpc("version"), ["version"], AT)[0]),
            decode_pools(decode_answers(capture.rpc("pools"), ["pools"], AT)[0]),
        ],
    )
    expected = capture.expected
    assert reading.hashrate_ths == expected["hashrate_ths"]
    assert reading.expected_hashrate_ths == expected["expected_hashrate_ths"]
    assert reading.uptime_s == expected["uptime_s"]
    assert reading.fw_version == expected["fw_version"]
    assert reading.api_version == expected["api_version"]
    assert reading.board_count == expected["board_count"]
    assert len(reading.fans_rpm or ()) == expected["fan_count"]
    assert reading.model == "Antminer S19 Pro"
    assert (reading.make, reading.firmware) == ("Bitmain", "stock")
    assert reading.chip_temp_c_max == 78.0
    assert reading.board_temp_c_max == 73.0
    assert reading.power_w is None, "this firmware gives no power"
    assert reading.is_mining is True
    assert len(reading.pools or ()) == 3
    assert reading.mac is None, "the recording holds 3M, which is no hexadecimal"
    assert reading.rejected == ()


def test_the_recorded_s21() -> None:
    capture = Capture("antminer-stock-s21-2024")
    expected = capture.expected
    reading = merge(
        "10.0.0.1",
        [
            stats(capture.rpc("stats")),
            decode_page(capture.page("get_system_info.cgi"), "get_system_info.cgi"),
            decode_pools(decode_answers(capture.rpc("pools"), ["pools"], AT)[0]),
            decode_page(capture.page("summary.cgi"), "summary.cgi"),
            decode_page(capture.page("get_miner_conf.cgi"), "get_miner_conf.cgi"),
        ],
    )
    assert reading.hashrate_ths == expected["hashrate_ths"]
    assert reading.power_w == expected["power_w"]
    assert list(reading.fans_rpm or ()) == expected["fans_rpm"]
    assert (reading.mac, reading.serial) == (expected["mac"], expected["serial"])
    assert reading.error_codes == ()
    assert reading.configured_mode is WorkMode.NORMAL
    assert reading.pools is not None
    assert [(pool.user, pool.is_alive) for pool in reading.pools] == [
        (expected["pool0_user"], True)
    ]


@pytest.mark.parametrize("asked", ["page", "new_api"])
def test_the_recorded_s21_pro_plus_in_the_new_style(asked: str) -> None:
    capture = Capture("antminer-stock-s21proplus-2026")
    expected = capture.expected
    part = (
        decode_page(capture.page("stats.cgi"), "stats.cgi")
        if asked == "page"
        else stats(capture.rpc("stats"))
    )
    assert part.hashrate_ths == expected["hashrate_ths"]
    assert part.expected_hashrate_ths == expected["expected_hashrate_ths"]
    assert part.power_w == expected["power_w"]
    assert part.uptime_s == expected["uptime_s"]
    assert list(part.fans_rpm or ()) == expected["fans_rpm"]
    assert (part.board_count, part.chips_total) == (3, expected["chips_total"])
    assert part.chip_temp_c_max == 73.0
    assert part.model == "Antminer S21 Pro+"


def test_the_contract_data_of_the_s19() -> None:
    capture = Capture("antminer-stock-s19-contract")
    part = decode_page(capture.page("stats.cgi"), "stats.cgi")
    assert part.hashrate_ths == capture.expected["hashrate_ths"]
    assert list(part.fans_rpm or ()) == capture.expected["fans_rpm"]
    assert part.uptime_s == capture.expected["uptime_s"]


@pytest.mark.parametrize(
    ("name", "rate_ths", "power_w"),
    [
        ("hiveon-s19x88-2025", 6.751, 1345.0),
        ("vnish-s21pro-127", 173.87094, None),
        ("luxos-s19kpro", 59.75606, None),
    ],
)
def test_other_firmwares_of_the_family_keep_their_rate(
    name: str, rate_ths: float, power_w: float | None
) -> None:
    part = stats(Capture(name).rpc("stats"))
    assert part.hashrate_ths == pytest.approx(rate_ths)
    if power_w is not None:
        assert part.power_w == power_w


@pytest.mark.parametrize(
    ("name", "rate_ths", "power_w"),
    [
        ("whatsminer-m20s-v1", 67.39480097, 3417.0),
        ("whatsminer-m50s-v2", 124.5, 3200.0),
        ("vnish-s21pro-127", 173.87094, None),
        ("hammer-d10", 4885.0813 / 1e6, None),
    ],
)
def test_summaries_of_the_cgminer_family(name: str, rate_ths: float, power_w: float | None) -> None:
    body = Capture(name).rpc("summary")
    part = decode_summary(decode_answers(body, ["summary"], AT)[0])
    assert part.hashrate_ths == pytest.approx(rate_ths, rel=1e-6)
    assert part.power_w == power_w


# --- defects and sleep ---------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[], [{"Type": "Antminer S21"}]])
def test_stats_without_a_second_element_is_sleep(rows: list[object]) -> None:
    part = stats({"STATUS": [{"STATUS": "S"}], "STATS": rows})
    assert part.state is MinerState.ASLEEP
    assert merge("10.0.0.1", [part]).is_mining is False


def test_a_cut_answer_is_no_sleep() -> None:
    part = stats(b'{"STATUS":[{"STATUS":"S"}],"STATS":[{"Type":"Antminer S21"},{"Ela')
    assert part.state is None
    assert stats(b'{"STATUS":[{"STATUS":"S"}],"STATS":[').state is None


def test_an_error_is_no_sleep() -> None:
    assert stats({"STATUS": [{"STATUS": "E", "Code": 1}], "STATS": []}).state is None


def test_an_empty_summary_is_sleep() -> None:
    body = b'{"STATUS":[{"STATUS":"S","Code":11}],"SUMMARY":[],"id":1}\0'
    (answer,) = decode_answers(body, ["summary"], AT)
    assert decode_summary(answer).state is MinerState.ASLEEP
    assert decode_web_summary(answer).state is MinerState.ASLEEP


def test_old_builds_send_rates_as_texts() -> None:
    assert old_stats(**{"GHS 5s": "13500.21"}).hashrate_ths == pytest.approx(13.50021)


def test_missing_comma_between_the_elements_of_stats() -> None:
    part = stats(b'{"STATS":[{"Type":"Antminer S9"}{"Elapsed":5,"GHS 5s":"13500.0"}],"id":1}\0')
    assert part.hashrate_ths == 13.5


def test_the_fans_of_an_s9_are_those_that_exist() -> None:
    fans = {f"fan{number}": 0 for number in range(1, 9)} | {"fan3": 4000, "fan6": 4100}
    assert old_stats(fan_num=2, **fans).fans_rpm == (4000, 4100)


def test_a_stopped_fan_is_shown() -> None:
    assert old_stats(fan_num=2, fan1=0, fan2=4100).fans_rpm == (0, 4100)


@pytest.mark.parametrize("text", ["0-0-0-0", "m-m-m-m", ""])
def test_an_absent_board_has_no_temperature(text: str) -> None:
    part = old_stats(temp_chip1=text, temp_pcb1=text)
    assert (part.chip_temp_c_max, part.board_temp_c_max) == (None, None)


@pytest.mark.parametrize(
    ("row", "power_w"),
    [
        ({"watt": 3499}, 3499.0),
        ({"watt": 0, "chain_power": "3250 W"}, 3250.0),
        ({"watt": 0}, None),
        ({"power": -1}, None),
        ({"chain_power": "W"}, None),
        ({}, None),
    ],
)
def test_zero_watt_means_unknown(row: Mapping[str, object], power_w: float | None) -> None:
    assert old_stats(**row).power_w == power_w


@pytest.mark.parametrize("value", [float("1e300"), -1, "abc", True, [1], {"a": 1}, 10**400])
def test_implausible_values_are_named_and_not_taken(value: object) -> None:
    part = old_stats(**{"GHS 5s": value})
    assert part.hashrate_ths is None
    assert part.rejected == ("GHS 5s",)


@pytest.mark.parametrize(
    ("unit", "expected_ths"),
    [("GH", 0.11), ("GH/s", 0.11), ("MH/s", 0.00011), ("TH/s", 110.0), ("furlong", None)],
)
def test_the_unit_beside_a_rate_is_honoured(unit: str, expected_ths: float | None) -> None:
    part = old_stats(total_rateideal=110.0, rate_unit=unit)
    assert part.expected_hashrate_ths == (
        None if expected_ths is None else pytest.approx(expected_ths)
    )


def test_alarms_of_the_web_summary() -> None:
    status = [{"type": "rate", "status": "s", "code": 0}, {"type": "fans", "status": "e"}]
    row = {"rate_5s": 1000.0, "rate_unit": "GH/s", "status": status}
    part = decode_page(json.dumps({"SUMMARY": [row]}).encode(), "summary.cgi")
    assert part.error_codes == ("fans:e",)
    assert part.hashrate_ths == 1.0


NASTY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        "Elapsed", "GHS 5s", "GHS av", "rate_5s", "rate_unit", "total_rateideal", "watt", "power",
        "chain_power", "fan", "fan_num", "fan1", "fan2", "temp_chip1", "temp_pcb1", "chain_acn1",
        "chain", "Type", "elapsed", "rate_avg", "status", "URL", "User", "Accepted",
    ]
)  # fmt: skip


@given(st.lists(st.dictionaries(KEYS, NASTY), max_size=3), st.sampled_from(["STATS", "SUMMARY"]))
def test_any_row_decodes_to_plausible_values(rows: list[dict[str, object]], name: str) -> None:
    body = json.dumps({"STATUS": [{"STATUS": "S"}], name: rows, "POOLS": rows, "VERSION": rows})
    try:
        (answer,) = decode_answers(body.encode(), ["x"], AT)
    except BridgeGarbledError:
        return
    parts = [
        decode(answer)
        for decode in (decode_stats, decode_web_summary, decode_pools, decode_version)
    ]
    reading = merge("10.0.0.1", parts)
    assert reading.hashrate_ths is None or 0 <= reading.hashrate_ths <= 10_000
    assert reading.power_w is None or 0 < reading.power_w <= 100_000
    assert reading.chip_temp_c_max is None or 0 < reading.chip_temp_c_max <= TEMP_C_MAX
    counted = any(part.state is MinerState.MINING for part in parts)
    rates = [part.hashrate_ths for part in parts if part.hashrate_ths is not None]
    assert (reading.is_mining is True) == (any(rates) or (counted and not rates))


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configuration", "mode"),
    [
        ({"bitmain-work-mode": "1"}, WorkMode.SLEEP),
        ({"bitmain-work-mode": 1}, WorkMode.SLEEP),
        ({"bitmain-work-mode": "0"}, WorkMode.NORMAL),
        ({"miner-mode": 3}, WorkMode.LOW),
        ({"bitmain-work-mode": "254"}, WorkMode.SLEEP),
        ({"fc-work-mode": 1}, WorkMode.SLEEP),
        ({"bitmain-work-mode": "7"}, None),
        ({"bitmain-work-mode": ""}, None),
        ({}, None),
    ],
)
def test_the_mode_is_read_as_number_or_text(
    configuration: Mapping[str, object], mode: WorkMode | None
) -> None:
    assert mode_of(configuration) is mode


@pytest.mark.parametrize("mode", list(WorkMode))
def test_only_the_mode_changes_in_what_is_written_back(mode: WorkMode) -> None:
    before = {
        "pools": [{"url": "stratum+tcp://a:1", "user": "u", "pass": "p"}],
        "bitmain-fan-ctrl": False,
        "bitmain-work-mode": "0",
        "something-new": {"kept": [1, 2.5, None]},
    }
    after = json.loads(with_mode(json.dumps(before).encode(), mode, AT))
    assert after.pop("miner-mode") == after.pop("bitmain-work-mode") == MODE_NUMBERS[mode]
    before.pop("bitmain-work-mode")
    assert after == before


@pytest.mark.parametrize("body", [b'{"pools":[{"url":"x"}', b"[]", b"{}", b'{"pools":{}}', b"\xff"])
def test_a_configuration_that_is_not_whole_is_never_written_back(body: bytes) -> None:
    with pytest.raises(BridgeGarbledError):
        with_mode(body, WorkMode.SLEEP, AT)


@pytest.mark.parametrize(
    ("text", "hottest"),
    [
        ("60-61-70-71", 71.0),
        # Below zero a sign stands beside the dash.
        ("-5--4-0-3", 3.0),
        ("-12--10", None),
        ("52-75", 75.0),
        ("61.5-60.25", 61.5),
        (78, 78.0),
        ("m-m", None),
        (None, None),
        (["60", 61], 61.0),
        ({"60": 60}, None),
    ],
)
def test_the_hottest_of_a_board(text: object, hottest: float | None) -> None:
    assert old_stats(temp_chip1=text).chip_temp_c_max == hottest
    assert old_stats(temp_pcb1=text).board_temp_c_max == hottest

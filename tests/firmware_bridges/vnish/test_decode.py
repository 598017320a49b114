"""VNish of several versions, in answers of their shape with made-up values."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridges.base import STATES_MINING, MinerState, WorkMode
from firmware_bridges.errors import BridgeError
from firmware_bridges.query import Exchange, Query, cgminer, page
from firmware_bridges.recognise import Decoded, decode_exchanges, decode_query
from firmware_bridges.vnish.decode import STATES
from firmware_bridges.vnish.family import V1, VNISH
from tests.firmware_bridges.jsonish import assert_plausible, values_under

Row = dict[str, object]


def decoded(*answers: tuple[Query, object], cut: int | None = None) -> Decoded:
    rows = [Exchange(query=query, body=json.dumps(body).encode()[:cut]) for query, body in answers]
    return decode_exchanges(rows, "10.0.0.1")


def chain(place: int, **row: object) -> Row:
    statuses = {"red": 0, "orange": 1, "grey": 125}
    own = {
        "id": place,
        "chip_statuses": statuses,
        "chip_temp": {"min": 51, "max": 60 + place},
        "pcb_temp": {"min": 36, "max": 45 + place},
        "status": {"state": "mining"},
    }
    return own | row


def summary(model: str = "Antminer S19j Pro (Vnish 1.2.0-rc3)", **row: object) -> Row:
    fans = [{"id": place, "rpm": 5_800 + place} for place in range(4)]
    miner: Row = {
        "miner_status": {"miner_state": "mining", "miner_state_time": 3_500},
        "miner_type": model,
        "average_hashrate": 54.5,
        "instant_hashrate": 54.4,
        "hr_realtime": 54_400.5,
        "hr_average": 54_600.5,
        "chip_temp": {"min": 51, "max": 63},
        "pcb_temp": {"min": 36, "max": 48},
        "power_usage": 2_600,
        "pools": [
            {"id": 0, "url": "p:3333", "user": "u", "pool_type": "UserPool", "status": "active"},
            {
                "id": 1,
                "url": "DevFee",
                "user": "DevFee",
                "pool_type": "DevFee",
                "status": "offline",
            },
        ],
        "cooling": {"fan_num": 4, "fans": fans},
        "chains": [chain(1), chain(2), chain(3)],
    }
    return {"miner": miner | row}


SUMMARY = page(V1 + "summary")


def test_a_summary_of_an_old_build_names_the_machine_too() -> None:
    network = {"mac": "02:00:00:00:00:03", "hostname": "Antminer"}
    body = {"system": {"network_status": network, "uptime": " 1:00"}} | summary()
    found = decoded((SUMMARY, body))
    reading = found.reading
    assert found.family is VNISH
    assert (reading.model, reading.fw_version) == ("Antminer S19j Pro", "1.2.0-rc3")
    assert (reading.mac, reading.hostname) == ("02:00:00:00:00:03", "Antminer")
    assert reading.hashrate_ths == pytest.approx(54.4005)
    assert reading.hashrate_avg_ths == pytest.approx(54.6005)
    assert reading.power_w == 2_600.0, "power_usage of versions without power_consumption"
    assert (reading.board_count, reading.chips_total) == (3, 378)
    assert (reading.chip_temp_c_max, reading.board_temp_c_max) == (63.0, 48.0)
    assert [pool.url for pool in reading.pools or ()] == ["p:3333"]
    assert (reading.state, reading.error_codes) == (MinerState.MINING, ())


def test_the_older_members_serve_where_the_newer_are_missing() -> None:
    body = summary(hr_realtime=None, hr_average=None)
    reading = decoded((SUMMARY, body)).reading
    assert (reading.hashrate_ths, reading.hashrate_avg_ths) == (54.4, 54.5)


def test_scrypt_is_a_thousandth_of_it() -> None:
    model = "Antminer L7 (Vnish 1.2.6)"
    body = summary(model, hr_realtime=9_414.0, hr_average=9_500.0, hr_nominal=9_300.0)
    reading = decoded((SUMMARY, body)).reading
    assert reading.hashrate_ths == pytest.approx(9_414e-6)
    assert reading.expected_hashrate_ths == pytest.approx(9_300e-6)
    older = summary(model, hr_realtime=None, hr_average=None, instant_hashrate=9.414)
    assert decoded((SUMMARY, older)).reading.hashrate_ths == pytest.approx(9_414e-6)


def test_a_cut_summary_without_its_model_gives_no_rate() -> None:
    miner = {"hr_realtime": 9_414.0, "miner_type": "Antminer L7 (Vnish 1.2.6)"}
    body = json.dumps({"miner": miner}).encode()
    cut = Exchange(query=SUMMARY, body=body[: body.index(b"miner_type")])
    assert decode_exchanges([cut], "a").reading.hashrate_ths is None


def test_a_machine_whose_mining_program_is_down_is_still_known() -> None:
    network = {"mac": "aa:bb:cc:dd:ee:ff", "hostname": "r1"}
    system = {"miner_name": "r1", "network_status": network, "uptime": "1 day, 2:03"}
    found = decoded((page(V1 + "summary"), {"system": system, "miner": None}))
    assert found.family is VNISH
    assert found.reading.mac == "AA:BB:CC:DD:EE:FF"
    assert (found.reading.state, found.reading.hashrate_ths) == (None, None)


def test_a_failure_is_told_with_its_code() -> None:
    status = {"miner_state": "failure", "description": "no config", "failure_code": 1002}
    body = summary(
        miner_status=status, hr_realtime=0.0, instant_hashrate=0.0, chains=[], power_usage=0,
        cooling={"fan_num": 0, "fans": []}, chip_temp={"min": 0, "max": 0},
    )  # fmt: skip
    for answers in [(SUMMARY, body)], [(page(V1 + "status"), {**status, "find_miner": False})]:
        reading = decoded(*answers).reading
        assert (reading.state, reading.is_mining) == (MinerState.FAULT, False)
        assert reading.error_codes == (1002,)
        assert (reading.power_w, reading.chip_temp_c_max, reading.fans_rpm) == (None, None, None)


def test_failed_boards_and_lost_fans_are_told() -> None:
    broken = chain(2, status={"state": "failure", "description": "eeprom"})
    fans = [{"id": 0, "rpm": 5_800, "status": "ok"}, {"id": 1, "rpm": 0, "status": "lost"}]
    reading = decoded((SUMMARY, summary(chains=[chain(1), broken], cooling={"fans": fans}))).reading
    assert reading.error_codes == ("board 2: failure", "fan 1: lost")
    assert reading.fans_rpm == (5_800, 0)
    assert reading.is_mining is True


@pytest.mark.parametrize("word", sorted(STATES))
def test_every_state_without_a_rate_is_what_it_says_and_no_mining(word: str) -> None:
    body = summary(miner_status={"miner_state": word}, hr_realtime=0.0)
    reading = decoded((SUMMARY, body)).reading
    assert reading.is_mining is False
    if STATES[word] not in STATES_MINING:
        assert reading.state is STATES[word]


def test_what_it_was_told_follows_from_its_state() -> None:
    def mode(word: str) -> WorkMode | None:
        body = summary(miner_status={"miner_state": word}, hr_realtime=0.0)
        return decoded((SUMMARY, body)).reading.configured_mode

    assert (mode("stopped"), mode("starting"), mode("failure")) == (
        WorkMode.SLEEP,
        WorkMode.NORMAL,
        None,
    )


def test_the_cgminer_api_alone_is_enough() -> None:
    ok = [{"STATUS": "S", "Code": 70, "Msg": "m", "Description": "cgminer 4.11.1"}]
    kind = "Antminer S9 (vnish 3.8.6)"
    row = {"Elapsed": 300_000, "GHS 5s": "13258.58", "GHS av": 13_562.4, "state": "mining",
           "fan_num": 2, "fan1": 2_790, "fan2": 2_850, "temp_chip1": "52-75", "temp_pcb1": "37-60",
           "chain_acn1": 63, "chain_consumption1": 450, "chain_consumption2": 460}  # fmt: skip
    version = {"CGMiner": "4.11.1", "API": "3.7", "CompileTime": "Fri May 8", "Type": kind}
    found = decoded(
        (cgminer("stats"), {"STATUS": ok, "STATS": [{"Type": kind}, row]}),
        (cgminer("version"), {"STATUS": ok, "VERSION": [version]}),
    )
    reading = found.reading
    assert found.family is VNISH
    assert (reading.model, reading.fw_version, reading.api_version) == (
        "Antminer S9",
        "3.8.6",
        "3.7",
    )
    assert reading.hashrate_ths == pytest.approx(13.25858)
    assert reading.power_w == 910.0
    assert (reading.chip_temp_c_max, reading.board_temp_c_max) == (75.0, 60.0)


def test_boards_that_name_no_power_leave_it_unknown() -> None:
    kind = "Antminer S19 XP (Vnish 1.2.0-rc1)"
    row = {"Elapsed": 5, "GHS 5s": "140258.58", "chain_consumption1": 0, "chain_consumption2": 0}
    body = {"STATUS": [{"STATUS": "S"}], "STATS": [{"Type": kind}, row]}
    assert decoded((cgminer("stats"), body)).reading.power_w is None


def test_the_preset_is_the_limit_where_its_name_is_watts() -> None:
    perf = page(V1 + "perf-summary")
    assert decoded((perf, {"current_preset": {"name": "2800"}})).reading.power_limit_w == 2_800.0
    assert decoded((perf, {"current_preset": {"name": "disabled"}})).reading.power_limit_w is None


NAMES = (
    "miner", "miner_status", "miner_state", "failure_code", "description", "miner_type", "chains",
    "hr_realtime", "hr_average", "hr_nominal", "instant_hashrate", "power_consumption", "cooling",
    "fans", "rpm", "status", "state", "id", "chip_temp", "max", "chip_statuses", "grey", "pools",
    "url", "system", "network_status", "mac", "current_preset", "name", "STATS", "Elapsed", "Type",
    "GHS 5s", "chain_consumption1", "chips",
)  # fmt: skip


@settings(max_examples=80)
@given(values_under(NAMES))
def test_any_answer_gives_plausible_values_or_a_bridge_error(value: object) -> None:
    body = json.dumps(value).encode()
    queries = [page(key) for _, key in VNISH.documents]
    queries += [cgminer(command) for command in VNISH.answers]
    for query in queries:
        for _, outcome in decode_query(VNISH, query, body, "a"):
            if not isinstance(outcome, BridgeError):
                assert_plausible(outcome)


@settings(max_examples=80)
@given(st.integers(0, 1_200))
def test_a_cut_summary_says_nothing_that_the_whole_one_does_not(cut: int) -> None:
    whole = decoded((SUMMARY, summary())).reading
    found = decoded((SUMMARY, summary()), cut=cut).reading
    for name in ("hashrate_ths", "hashrate_avg_ths", "power_w", "model", "state", "pools"):
        assert getattr(found, name) in (None, getattr(whole, name)), name

"""Decoders of Braiins OS on made-up answers of the documented shapes, of several releases."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridges.base import MinerState, Partial, Reading, WorkMode
from firmware_bridges.braiins.family import BRAIINS_API, BRAIINS_GRAPHQL, BRAIINS_REST
from firmware_bridges.errors import BridgeError
from firmware_bridges.family import Family
from firmware_bridges.query import Exchange, cgminer, graphql, page
from firmware_bridges.recognise import decode_exchanges, decode_query
from tests.firmware_bridges.jsonish import assert_plausible, values_under
from tests.firmware_bridges.scripted import status

V1 = "/api/v1/"


def rest(path: str, body: object) -> Partial:
    query = page(V1 + path)
    return _partial(BRAIINS_REST, decode_query(BRAIINS_REST, query, json.dumps(body).encode(), "a"))


def api(command: str, body: object) -> Partial:
    query = cgminer(command)
    return _partial(BRAIINS_API, decode_query(BRAIINS_API, query, json.dumps(body).encode(), "a"))


def gql(data: object) -> Partial:
    body = json.dumps({"data": data}).encode()
    return _partial(BRAIINS_GRAPHQL, decode_query(BRAIINS_GRAPHQL, graphql("{}"), body, "a"))


def _partial(family: Family, parts: list[tuple[str, Partial | BridgeError]]) -> Partial:
    ((_, outcome),) = parts
    assert isinstance(outcome, Partial), family.name
    return outcome


def reading(*answers: tuple[str, object]) -> Reading:
    exchanges = [
        Exchange(query=page(V1 + path), body=json.dumps(body).encode()) for path, body in answers
    ]
    return decode_exchanges(exchanges, "10.0.0.1").reading


@pytest.mark.parametrize(
    ("said", "state", "mode"),
    [
        (0, None, None),
        (1, MinerState.STOPPED, WorkMode.SLEEP),
        (2, MinerState.MINING, WorkMode.NORMAL),
        (3, MinerState.ASLEEP, WorkMode.SLEEP),
        (4, MinerState.STOPPED, None),
        (5, MinerState.MINING, WorkMode.NORMAL),
        ("MINER_STATUS_PAUSED", MinerState.ASLEEP, WorkMode.SLEEP),
        ("normal", MinerState.MINING, WorkMode.NORMAL),
        ("brand new", None, None),
        (None, None, None),
    ],
)
@pytest.mark.parametrize("path", ["miner/details", "miner/status"])
def test_the_status_is_a_number_or_its_name(
    path: str, said: object, state: MinerState | None, mode: WorkMode | None
) -> None:
    partial = rest(path, {"status": said})
    assert (partial.state, partial.configured_mode) == (state, mode)


def rate(ghs: float) -> dict[str, float]:
    return {"gigahash_per_second": ghs}


def test_a_paused_machine_is_asleep_although_its_program_runs() -> None:
    seen = reading(
        ("miner/details", {"status": 3, "bosminer_uptime_s": 500, "bos_version": {}}),
        ("miner/stats", {"miner_stats": {"real_hashrate": {"last_5s": rate(0.0)}}}),
    )
    assert seen.state is MinerState.ASLEEP
    assert seen.is_mining is False
    assert seen.uptime_s == 500
    assert seen.hashrate_ths == 0.0


def test_a_status_that_still_says_normal_does_not_make_a_machine_mine() -> None:
    seen = reading(
        ("miner/details", {"status": 2, "bos_version": {}}),
        ("miner/stats", {"miner_stats": {"real_hashrate": {"last_5s": rate(0.0)}}}),
    )
    assert seen.is_mining is False


def test_a_machine_that_hashes_while_it_tunes_is_tuning() -> None:
    seen = reading(
        ("miner/stats", {"miner_stats": {"real_hashrate": {"last_15s": rate(90_000.0)}}}),
        ("performance/tuner-state", {"overall_tuner_state": 3, "mode_state": None}),
    )
    assert (seen.state, seen.is_mining) == (MinerState.TUNING, True)
    assert seen.hashrate_ths == 90.0


@pytest.mark.parametrize("said", [3, "TUNER_STATE_TUNING", "tuning"])
def test_the_tuner_s_state_is_a_number_or_its_name(said: object) -> None:
    assert rest("performance/tuner-state", {"overall_tuner_state": said}).state is MinerState.TUNING


def test_a_stopped_machine_tells_no_power_and_no_rate() -> None:
    partial = rest(
        "miner/stats",
        {
            "miner_stats": {"real_hashrate": None, "nominal_hashrate": None},
            "power_stats": {"approximated_consumption": None},
        },
    )
    assert partial.hashrate_ths is None
    assert partial.power_w is None
    assert rest("miner/stats", {"miner_stats": None, "power_stats": None}).rejected == ()


def test_boards_without_readings_are_counted_and_give_nothing() -> None:
    empty = {"id": "3", "enabled": False, "chips_count": None, "highest_chip_temp": None}
    full = {
        "id": "1",
        "enabled": True,
        "chips_count": 110,
        "board_temp": {"degree_c": 50.5},
        "highest_chip_temp": {"location": 1, "temperature": {"degree_c": 66.0}},
        "lowest_inlet_temp": {"degree_c": 31.0},
    }
    partial = rest("miner/hw/hashboards", {"hashboards": [full, empty]})
    assert (partial.board_count, partial.chips_total) == (2, 110)
    assert (partial.chip_temp_c_max, partial.board_temp_c_max) == (66.0, 50.5)
    assert partial.inlet_temp_c == 31.0


def test_a_hash_rate_target_is_no_power_limit() -> None:
    state = {"hashratetargetmodestate": {"current_target": {"terahash_per_second": 120.0}}}
    assert rest("performance/tuner-state", {"overall_tuner_state": 2, "mode_state": state}) == (
        Partial(source=V1 + "performance/tuner-state")
    )


def test_errors_are_their_codes_or_else_their_texts_each_once() -> None:
    rows = [
        {"message": "fan", "error_codes": [{"code": "17", "reason": "r", "hint": "h"}]},
        {"message": "no route", "error_codes": []},
        {"message": "no route", "error_codes": []},
        {"message": "psu", "error_codes": [{"code": "E-PSU", "reason": "r", "hint": "h"}]},
    ]
    assert rest("miner/errors", {"errors": rows}).error_codes == (17, "no route", "E-PSU")
    assert rest("miner/errors", {"errors": []}).error_codes == ()
    assert rest("miner/errors", {}).error_codes is None


def test_an_error_page_in_place_of_the_pools_says_nothing_of_them() -> None:
    assert rest("pools", {"error": "unauthorized"}).pools is None
    assert rest("pools", []).pools == ()


@pytest.mark.parametrize(("body", "lit"), [(True, True), (False, False), ({}, None), (1, None)])
def test_the_light(body: object, lit: bool | None) -> None:  # noqa: FBT001 - a table's column
    assert rest("actions/locate", body).fault_light is lit


def test_bosminer_s_api_of_a_machine_with_two_fans_of_four_and_a_missing_board() -> None:
    temps = status("S", 201, "", TEMPS=[{"ID": 6, "Board": 71.0, "Chip": 81.5}, {"ID": 7}])
    assert api("temps", temps).chip_temp_c_max == 81.5
    fans = status("S", 202, "", FANS=[{"RPM": 4080}, {"RPM": 5580}, {"RPM": 0}, {"RPM": 0}])
    assert api("fans", fans).fans_rpm == (4080, 5580)
    rows = [{"Model": "Antminer S9", "Chips": 63}, {"Model": "Antminer S9", "Chips": 0}]
    details = api("devdetails", status("S", 69, "Device Details", DEVDETAILS=rows))
    assert (details.model, details.board_count, details.chips_total) == ("Antminer S9", 2, 63)
    devs = api("devs", status("S", 9, "", DEVS=[{"Nominal MHS": 3e6}, {"Nominal MHS": "3000000"}]))
    assert devs.expected_hashrate_ths == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("words", "state", "mode"),
    [
        (("Stable", "Stable"), None, None),
        (("Stable", "Tuning individual chips"), MinerState.TUNING, None),
        (("Testing performance profile",), MinerState.TUNING, None),
        (("Mining is paused", "Mining is paused"), MinerState.ASLEEP, WorkMode.SLEEP),
        (("Mining is paused", "Stable"), None, None),
        ((), None, None),
    ],
)
def test_the_tuner_s_words_tell_what_the_machine_does(
    words: tuple[str, ...], state: MinerState | None, mode: WorkMode | None
) -> None:
    chains = [{"HashchainIndex": n, "Status": word} for n, word in enumerate(words)]
    row = {
        "PowerLimit": 900,
        "ApproximateMinerPowerConsumption": "735",
        "TunerChainStatus": chains,
    }
    partial = api("tunerstatus", status("S", 200, "Tuner Status", TUNERSTATUS=[row]))
    assert (partial.power_limit_w, partial.power_w) == (900.0, 735.0)
    assert (partial.state, partial.configured_mode) == (state, mode)


@pytest.mark.parametrize("command", ["devdetails", "tunerstatus"])
def test_a_program_that_is_unavailable_is_stopped(command: str) -> None:
    assert api(command, status("W", 302, "Unavailable")).state is MinerState.STOPPED
    assert api(command, status("S", 69, "Device Details")).state is None


@pytest.mark.parametrize("place", ["workSolver", "summary"])
def test_graphql_gives_rate_and_power_at_one_place_or_the_other(place: str) -> None:
    values = {
        "realHashrate": {"mhs5S": 7.2e6, "mhsAv": 7e6},
        "power": {"approxConsumptionW": 735, "limitW": 900},
    }
    partial = gql({"bosminer": {"info": {place: values}}})
    assert partial.hashrate_ths == pytest.approx(7.2)
    assert partial.hashrate_avg_ths == pytest.approx(7.0)
    assert (partial.power_w, partial.power_limit_w) == (735.0, 900.0)


@pytest.mark.parametrize(
    ("word", "state"),
    [("PAUSED", MinerState.ASLEEP), ("TUNING", MinerState.TUNING), ("STABLE", None), (None, None)],
)
def test_graphql_s_word_of_the_tuner(word: str | None, state: MinerState | None) -> None:
    assert gql({"bosminer": {"info": {"summary": {"tunerStatus": word}}}}).state is state


def test_a_graphql_error_says_nothing() -> None:
    body = b'{"data": null, "errors": [{"message": "Unknown field"}]}'
    parts = decode_query(BRAIINS_GRAPHQL, graphql("{}"), body, "a")
    assert _partial(BRAIINS_GRAPHQL, parts) == Partial(source="graphql")


NAMES = [
    "status",
    "bos_version",
    "miner_identity",
    "bosminer_uptime_s",
    "miner_stats",
    "real_hashrate",
    "last_5s",
    "gigahash_per_second",
    "watt",
    "power_stats",
    "approximated_consumption",
    "hashboards",
    "chips_count",
    "board_temp",
    "degree_c",
    "highest_chip_temp",
    "temperature",
    "fans",
    "rpm",
    "mode_state",
    "current_target",
    "overall_tuner_state",
    "errors",
    "error_codes",
    "code",
    "message",
    "pools",
    "url",
    "user",
    "stats",
    "enabled",
    "data",
    "bos",
    "bosminer",
    "info",
    "workSolver",
    "realHashrate",
    "mhs5S",
    "childSolvers",
    "temperatures",
    "degreesC",
    "name",
    "summary",
    "power",
    "limitW",
    "STATUS",
    "TUNERSTATUS",
    "PowerLimit",
    "TunerChainStatus",
    "Status",
    "TEMPS",
    "Chip",
    "Board",
    "FANS",
    "RPM",
    "DEVS",
    "DEVDETAILS",
    "Chips",
    "Model",
]
DOCUMENTS = [(BRAIINS_REST, key) for _, key in BRAIINS_REST.documents]


@settings(max_examples=60, deadline=None)
@given(value=values_under(NAMES), which=st.integers(0, len(DOCUMENTS) - 1))
def test_no_value_breaks_a_page_or_comes_out_implausible(value: object, which: int) -> None:
    family, key = DOCUMENTS[which]
    for _, outcome in decode_query(family, page(key), json.dumps(value).encode(), "a"):
        if isinstance(outcome, Partial):
            assert_plausible(outcome)


@settings(max_examples=60, deadline=None)
@given(value=values_under(NAMES), command=st.sampled_from(sorted(BRAIINS_API.answers)))
def test_no_value_breaks_an_answer_or_comes_out_implausible(value: object, command: str) -> None:
    body = json.dumps({command.upper(): value, "TUNERSTATUS": value}).encode()
    for query in (cgminer(command), graphql("{}")):
        for _, outcome in decode_query(BRAIINS_GRAPHQL, query, body, "a"):
            if isinstance(outcome, Partial):
                assert_plausible(outcome)


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=200))
def test_no_bytes_break_a_decoder(body: bytes) -> None:
    for query in (page(V1 + "miner/details"), graphql("{}"), cgminer("tunerstatus")):
        for _, outcome in decode_query(BRAIINS_REST, query, body, "a"):
            assert isinstance(outcome, Partial | BridgeError)

"""WhatsMiner answers of documented shapes; every value is made up."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridges.base import MinerState, Partial, Reading, WorkMode
from firmware_bridges.errors import BridgeAuthError, BridgeError, BridgeRefusedError
from firmware_bridges.families import FAMILY_OF
from firmware_bridges.query import Exchange, Query, btminer_v3, cgminer
from firmware_bridges.recognise import decode_exchanges, decode_query, recognise
from firmware_bridges.whatsminer.facts import error_codes_of, model_of

V2 = FAMILY_OF["whatsminer-v2"]
V3 = FAMILY_OF["whatsminer-v3"]


def told(query: Query, body: object) -> Partial:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    family = V3 if query.wire == "tcp-btminer-v3" else V2
    outcome = decode_query(family, query, raw, "m:1")[0][1]
    if isinstance(outcome, BridgeError):
        raise outcome
    return outcome


def summary(**fields: object) -> Partial:
    return told(cgminer("summary"), {"STATUS": [{"STATUS": "S", "Msg": "Summary"}],
                                     "SUMMARY": [fields], "id": 1})  # fmt: skip


def own(command: str, message: object) -> Partial:
    return told(cgminer(command), {"STATUS": "S", "When": 1, "Code": 131, "Msg": message})


def v3(command: str, message: object, code: int = 0) -> Partial:
    return told(btminer_v3(command), {"code": code, "when": 1, "msg": message, "desc": command})


def reading(*answers: tuple[Query, object]) -> Reading:
    exchanges = [Exchange(query=q, body=json.dumps(body).encode()) for q, body in answers]
    return decode_exchanges(exchanges, "m").reading


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("M21SV20", "WhatsMiner M21S V20"),
        ("M30S++_VH40", "WhatsMiner M30S++ VH40"),
        ("M30S+VE40", "WhatsMiner M30S+ VE40"),
        ("M53HVH10", "WhatsMiner M53H VH10"),
        ("M63S_VK30", "WhatsMiner M63S VK30"),
        ("M66S++VL20", "WhatsMiner M66S++ VL20"),
        ("WhatsMiner M50", "WhatsMiner M50"),
        ("odd thing", "WhatsMiner odd thing"),
    ],
)
def test_models_are_named_in_full(raw: str, name: str) -> None:
    assert model_of(raw) == name


@pytest.mark.parametrize(
    ("sent", "codes"),
    [
        ([], ()),
        ("", ()),
        ([206, 0, 530], (206, 530)),
        (["530"], (530,)),
        (["329", "2022-01-17 11:28:11"], (329,)),
        ([{"206": "2021-06-01 10:00:00"}, {"541": "1970-01-01", "reason": "slot 1"}], (206, 541)),
        ({"110": "2023-01-01 00:00:00"}, (110,)),
        ([{"code": "2010", "time": 5}], (2010,)),
        ("btminer process is down err", ("btminer process is down err",)),
        ([None, True, 1.5, ["x"]], ()),
    ],
)
def test_error_codes_come_in_many_shapes(sent: object, codes: tuple[int | str, ...]) -> None:
    assert error_codes_of(sent) == codes
    assert own("get_error_code", {"error_code": sent}).error_codes == codes


def test_a_list_shaped_like_an_object_is_read() -> None:
    body = b'{"STATUS":"S","When":1,"Code":131,"Msg":{"error_code":["110":"2022-01-01 00:00:00",'
    body += b'"111":"2022-01-01 00:00:01"]},"Description":""}'
    found = told(cgminer("get_error_code"), body)
    assert (found.error_codes, found.repairs) == ((110, 111), ("list_of_pairs",))


def test_the_rate_of_a_settled_miner_is_hs_rt_and_not_the_noisy_5_s() -> None:
    rates = {"MHS 5s": 99e6, "MHS 1m": 86e6, "MHS av": 85e6}
    settled = summary(**rates, **{"HS RT": 84.5e6, "Hash Stable": True, "Elapsed": 900})
    assert (settled.hashrate_ths, settled.hashrate_avg_ths, settled.state) == (84.5, 85.0, None)
    assert summary(**rates).hashrate_ths == 86.0
    assert summary(**{"MHS 5s": 99e6}).hashrate_ths == 99.0


def test_a_miner_that_runs_up_gives_its_last_minute() -> None:
    fields = {"HS RT": 20e6, "MHS 1m": 50e6, "Hash Stable": False, "Elapsed": 90, "Uptime": 700}
    found = summary(**fields)
    assert (found.hashrate_ths, found.state, found.uptime_s) == (50.0, MinerState.TUNING, 90)
    del fields["HS RT"]
    assert summary(**fields).uptime_s == 700
    silent = summary(**{**fields, "HS RT": 0, "MHS 1m": 0})
    assert (silent.hashrate_ths, silent.state) == (0.0, MinerState.STARTING)
    tuned = summary(**{"HS RT": 20e6, "Upfreq Complete": 0})
    assert tuned.state is MinerState.TUNING


@pytest.mark.parametrize("unknown", [-1, 0, "", None])
def test_unknown_power_is_none(unknown: object) -> None:
    found = summary(**{"Power": unknown, "HS RT": 1e6})
    assert (found.power_w, found.rejected) == (None, ())


def test_a_machine_in_a_liquid_has_no_fans() -> None:
    fields = {"Fan Speed In": 0, "Fan Speed Out": 0}
    assert summary(**fields, **{"Liquid Cooling": True}).fans_rpm == ()
    assert summary(**fields).fans_rpm == (0, 0)
    # Hydro builds without the flag: nothing that hashes stands without a fan, or none is there.
    hashing = {**fields, "HS RT": 390e6, "Hash Stable": True}
    assert summary(**hashing).fans_rpm is None
    assert summary(**hashing, **{"Liquid Cooling": False}).fans_rpm == (0, 0)


def test_new_builds_put_the_summary_into_msg() -> None:
    found = own("summary", {"Elapsed": 3000, "HS RT": 0, "Power Limit": 3300})
    assert (found.hashrate_ths, found.power_limit_w, found.uptime_s) == (0.0, 3300.0, 3000)


def test_the_off_flag_is_the_evidence_of_sleep() -> None:
    for key in ("mineroff", "btmineroff"):
        found = own("status", {key: "true", "power_mode": "low"})
        assert (found.state, found.configured_mode) == (MinerState.ASLEEP, WorkMode.SLEEP)
        assert own("status", {key: "false"}).state is None
    hot = own("status", {"mineroff": True, "mineroff_reason": "env temp too high"})
    assert (hot.state, hot.configured_mode) == (MinerState.OVERHEATED, None)


def test_a_rate_outweighs_an_old_off_flag_and_the_mode_told_wins() -> None:
    status = (cgminer("status"), {"STATUS": "S", "Msg": {"mineroff": "true"}})
    rows = {"STATUS": [{"STATUS": "S"}], "SUMMARY": [{"HS RT": 0.0, "Power Mode": "High"}]}
    asleep = reading(status, (cgminer("summary"), rows))
    assert (asleep.state, asleep.is_mining) == (MinerState.ASLEEP, False)
    assert asleep.configured_mode is WorkMode.SLEEP
    rows["SUMMARY"] = [{"HS RT": 5e6}]
    assert reading(status, (cgminer("summary"), rows)).is_mining is True


def test_identity_comes_from_several_places() -> None:
    assert own("get_version", "whatsminer v1.1").api_version == "1.1"
    version = own("get_version", {"api_ver": "2.0.5", "fw_ver": "'20230101.11.REL'"})
    assert (version.api_version, version.fw_version) == ("2.0.5", "20230101.11.REL")
    info = own("get_miner_info", {"mac": "c0a80000a1b2", "ledstat": "manual", "minersn": "SN1"})
    assert (info.mac, info.fault_light, info.serial) == ("C0:A8:00:00:A1:B2", True, "SN1")
    details = {"STATUS": [{"STATUS": "S"}], "DEVDETAILS": [{"Model": ""}, {"Model": "M31S+V30"}]}
    assert told(cgminer("devdetails"), details).model == "WhatsMiner M31S+ V30"


def test_dead_boards_are_boards_without_chips() -> None:
    rows = [
        {"Effective Chips": 0, "Chip Temp Max": 0, "Temperature": 18.5},
        {"Effective Chips": 66, "Chip Temp Max": 81.5, "Temperature": 70},
    ]
    found = told(cgminer("edevs"), {"STATUS": [{"STATUS": "S"}], "DEVS": rows})
    assert (found.board_count, found.chips_total) == (2, 66)
    assert (found.chip_temp_c_max, found.board_temp_c_max) == (81.5, 70.0)


def test_v3_joined_parts_are_one_answer() -> None:
    found = v3(
        "get.miner.status",
        {
            "summary": {"hash-realtime": 170.5, "hash-average": 171.0, "factory-hash": -0.003,
                        "power-realtime": -1, "power-5min": 3100.0, "elapsed": 60,
                        "board-temperature": [40.5, 0, 41.5], "up-freq-finish": 0},
            "pools": [{"url": "stratum+tcp://p:1", "account": "w", "status": "alive",
                       "stratum-active": True, "pool-priority": 0}, {"url": ""}],
            "edevs": [{"effective-chips": 75, "chip-temp-max": 80.0}, {"effective-chips": 74}],
        },
    )  # fmt: skip
    assert (found.hashrate_ths, found.expected_hashrate_ths, found.power_w) == (170.5, None, 3100.0)
    assert (found.board_count, found.chips_total, found.board_temp_c_max) == (2, 149, 41.5)
    assert found.state is MinerState.TUNING
    assert found.rejected == ()
    assert found.pools is not None
    assert [(p.accepted, p.rejected, p.is_active) for p in found.pools] == [(None, None, True)]


def test_v3_pools_alone_are_refused_on_an_idle_miner() -> None:
    with pytest.raises(BridgeRefusedError):
        v3("get.miner.status", "fail", code=-1)
    with pytest.raises(BridgeAuthError):
        v3("get.device.info", "no permission", code=-4)


@pytest.mark.parametrize("code", [0, -1])
def test_v3_says_in_words_that_its_program_is_down(code: int) -> None:
    found = v3("get.miner.status", "btminer process is down err", code=code)
    assert (found.state, found.hashrate_ths) == (MinerState.STOPPED, None)
    info = v3("get.device.info", {"error-code": "btminer process is down err"})
    assert (info.state, info.error_codes) == (
        MinerState.STOPPED, ("btminer process is down err",),
    )  # fmt: skip


def test_v3_service_that_does_not_work_is_asleep() -> None:
    found = v3("get.device.info", {"miner": {"working": "false", "type": "M63S_VK30"}})
    assert (found.state, found.configured_mode) == (MinerState.ASLEEP, WorkMode.SLEEP)
    assert found.model == "WhatsMiner M63S VK30"
    assert v3("get.device.info", {"miner": {"working": "true"}}).state is None


def test_v3_sections_may_come_without_their_name() -> None:
    assert v3("get.device.info", {"mac": "c0:a8:00:00:a1:b2"}).mac == "C0:A8:00:00:A1:B2"
    assert v3("get.device.info", {"api": "3.0.5", "fwversion": "2026.1"}).api_version == "3.0.5"
    assert v3("get.device.info", {"type": "P221B", "vendor": "1"}).model is None


def test_each_generation_is_recognised_by_any_of_its_answers() -> None:
    v3_body = b'{"code":0,"when":1,"msg":{"summary":{}},"desc":"get.miner.status"}'
    v2_body = b'{"STATUS":"S","When":1,"Code":131,"Msg":{"mineroff":"false"},"Description":""}'
    new = Exchange(query=btminer_v3("get.miner.status", "summary"), body=v3_body)
    old = Exchange(query=cgminer("status"), body=v2_body)
    assert (recognise([new]), recognise([old]), recognise([old, new])) == (V3, V2, V3)


NAMES = ["SUMMARY", "DEVS", "POOLS", "DEVDETAILS", "Msg", "msg", "code", "STATUS", "summary",
         "edevs", "pools", "miner", "error_code", "error-code", "HS RT", "Hash Stable", "Power",
         "Factory GHS", "Error Code 0", "hash-realtime", "elapsed", "Elapsed", "type"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
COMMANDS = [*map(cgminer, V2.answers), *(btminer_v3(key) for _, key in V3.documents)]


@settings(max_examples=150, deadline=None)
@given(query=st.sampled_from(COMMANDS), value=VALUES, cut=st.integers(0, 40))
def test_whatever_comes_is_decoded_or_refused(query: Query, value: object, cut: int) -> None:
    body = json.dumps(value).encode()
    family = V3 if query.wire == "tcp-btminer-v3" else V2
    for _, outcome in decode_query(family, query, body[: len(body) - cut], "m"):
        if isinstance(outcome, Partial):
            numbers = [getattr(outcome, name) for name in Partial.__struct_fields__]
            assert all(0 <= n < 1e9 for n in numbers if isinstance(n, int | float))
        else:
            assert isinstance(outcome, BridgeError)

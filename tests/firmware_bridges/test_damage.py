"""Answers of every firmware, cut at each byte or with bytes changed: no exception, no nonsense.

The answers have the shapes of real ones and figures of ours, so that these tests need no recording.
"""

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.base import Reading
from firmware_bridges.query import Exchange, Query, btminer_v3, cgminer, graphql, page
from firmware_bridges.recognise import decode_exchanges

OK = [{"STATUS": "S", "When": 1, "Code": 70, "Msg": "stats", "Description": "miner 1.0.0"}]


def api(command: str, **sections: object) -> Exchange:
    return told(cgminer(command), {"STATUS": OK, **sections, "id": 1})


def told(query: Query, body: object) -> Exchange:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return Exchange(query=query, body=raw)


S9_BROKEN = (
    '{"STATUS":[{"STATUS":"S","Msg":"BMMiner stats","Description":"bmminer 1.0.0"}],"STATS":['
    '{"BMMiner":"2.0.0","Type":"Antminer S9"}{"STATS":0,"Elapsed":9120,"GHS 5s":"13594.61",'
    '"GHS av":nan,"fan_num":2,"fan3":4320,"fan6":5880,"temp6":62,"temp2_6":77,"chain_acn6":63,'
    '"chain_acn7":63,"chain_rate6":"4531.54",}],"id":1}\0'
)
AVALON = (
    "Ver[1346-110-24041001_aa_bb] SYSTEMSTATU[Work: In Work, Hash Board: 3 ] Elapsed[900] "
    "ITemp[24] TMax[91] Fan1[4800] Fan2[4790] PS[0 1209 1187 297 3300 1188 3520] "
    "GHSspd[110100.5] GHSmm[111000.0] GHSavg[109900.5] MGHS[36600 36700 36600] TA[360] "
    "SoftOFF[0] ECHU[0 512 0] MPO[3400]"
)
M30S = {
    "Elapsed": 2_648, "MHS av": 84_983_730.62, "MHS 1m": 86_361_423.46, "HS RT": 84_941_366.2,
    "Temperature": 76.08, "Fan Speed In": 4_530, "Fan Speed Out": 4_560, "Power": 3_593,
    "Hash Stable": True, "Env Temp": 32.0, "Power Mode": "Normal", "Factory GHS": 84_773,
    "Power Limit": 3_600, "Chip Temp Max": 101.25, "Error Code Count": 1, "Error Code 0": 531,
}  # fmt: skip
M63S = {
    "summary": {
        "elapsed": 100_000, "hash-average": 388.1, "hash-realtime": 391.5, "factory-hash": 390.1,
        "power-realtime": 7_210, "power-limit": 10_500, "up-freq-finish": 1, "power-mode": "normal",
        "board-temperature": [60, 61.5, 62], "chip-temp-max": 70.5, "environment-temperature": 25.3,
    }
}  # fmt: skip
VNISH = {
    "system": {"miner_name": "r1", "network_status": {"mac": "aa:bb:cc:dd:ee:ff"}},
    "miner": {
        "miner_status": {"miner_state": "mining"}, "miner_type": "Antminer S19j Pro (Vnish 1.2.0)",
        "hr_realtime": 94_478.5, "hr_average": 94_508.2, "power_consumption": 2_631,
        "cooling": {"fans": [{"id": 0, "rpm": 5_820}]}, "pools": [{"id": 0, "url": "p:1"}],
        "chains": [{"id": 1, "chip_temp": {"max": 65}, "status": {"state": "mining"}}],
    },
}  # fmt: skip
S21 = {
    "STATUS": {"STATUS": "S", "Msg": "stats"},
    "INFO": {"type": "Antminer S21", "miner_version": "uart_trans.1.3"},
    "STATS": [
        {
            "elapsed": 5_000, "rate_5s": 203_007.1, "rate_avg": 202_000.5, "rate_unit": "GH/s",
            "watt": 3_510, "fan_num": 4, "fan": [5_000, 5_010, 4_990, 5_020],
            "chain": [{"asic_num": 108, "temp_chip": [60, 61, 75, 76], "temp_pcb": [50, 62]}],
        }
    ],
}  # fmt: skip
BOSER = {
    "data": {
        "bos": {"hostname": "r1", "info": {"version": {"full": "2024-10-17-24.09-plus"}}},
        "bosminer": {
            "info": {
                "fans": [{"name": "0", "rpm": 6_414}],
                "summary": {"power": {"approxConsumptionW": 3_572, "limitW": 3_500}},
                "workSolver": {"realHashrate": {"mhs5S": 2.3e8}, "nominalMhs": 2.39e8},
            }
        },
    }
}
AXE = {
    "ASICModel": "BM1370", "boardVersion": "601", "hashRate": 1_200.5, "power": 17.5, "temp": 58.5,
    "fanrpm": 4_000, "fan2rpm": 0, "uptimeSeconds": 99, "stratumURL": "p", "stratumPort": 3333,
}  # fmt: skip
SHAPES = {
    "s9": told(cgminer("stats"), S9_BROKEN),
    "s21": told(page("/cgi-bin/stats.cgi"), S21),
    "hiveon": api("stats", STATS=[{"Type": "Antminer S9 Hiveon"},
                                  {"Elapsed": 9, "GHS 5s": "5904.6", "chain_power6": 234.8,
                                   "chain_power": "456.78 (AB)", "temp_chip1": "-5--4-0-3"}]),
    "whatsminer-v2": api("summary", SUMMARY=[M30S]),
    "whatsminer-v3": told(btminer_v3("get.miner.status"), {"code": 0, "msg": M63S}),
    "vnish": told(page("/api/v1/summary"), VNISH),
    "avalon": api("estats", STATS=[{"STATS": 0, "ID": "AVA0", "Elapsed": 900, "MM ID0": AVALON}]),
    "avalon-text": told(cgminer("estats"),
                        f"STATUS=S,Code=70,Msg=CGMiner stats|STATS=0,ID=AVA0,MM ID0={AVALON}|\0"),
    "braiins": told(graphql("{ bos { hostname } }"), BOSER),
    "bitaxe": told(page("/api/system/info"), AXE),
    "unknown": api("summary", SUMMARY=[{"Elapsed": 100, "MHS 5s": 52e6, "MHS av": 50e6}]),
}  # fmt: skip
LIMITS = {
    "hashrate_ths": 1e4, "hashrate_avg_ths": 1e4, "expected_hashrate_ths": 1e4, "power_w": 1e5,
    "power_limit_w": 1e5, "uptime_s": 4e8, "chip_temp_c_max": 200, "board_temp_c_max": 200,
    "inlet_temp_c": 200, "board_count": 1e4, "chips_total": 1e7, "fan_count": 1e3,
}  # fmt: skip
# Names that follow from the family, which less of an answer may leave open.
_NAMES = ("make", "firmware", "model")


def read(query: Query, body: bytes) -> Reading:
    return decode_exchanges([Exchange(query=query, body=body)], "10.0.0.1").reading


def implausible(reading: Reading) -> Sequence[str]:
    known = ((name, getattr(reading, name), high) for name, high in LIMITS.items())
    return [
        f"{name} {value}"
        for name, value, high in known
        if value is not None and not (math.isfinite(value) and 0 <= value <= high)
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_read_at_all(name: str) -> None:
    whole = read(SHAPES[name].query, SHAPES[name].body)
    assert whole.is_mining is True
    assert implausible(whole) == []


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_cut_anywhere_says_nothing_that_the_whole_does_not(name: str) -> None:
    query, body = SHAPES[name].query, SHAPES[name].body
    whole = read(query, body)
    for end in range(len(body)):
        part = read(query, body[:end])
        for field in (*LIMITS, "is_mining", "mac", "fans_rpm", "pools", "error_codes", *_NAMES):
            value = getattr(part, field)
            assert value is None or value == getattr(whole, field), f"{field} at byte {end}"


@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_changed_bytes_give_a_partial_reading_or_a_clear_failure(
    name: str, data: st.DataObject
) -> None:
    body = bytearray(SHAPES[name].body)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        piece = data.draw(
            st.sampled_from([b"", b"\0", b"}", b'"', b"-", b"9", b",", b"\xff", b"e"])
        )
        body[place : place + data.draw(st.integers(0, 3))] = piece
        if not body:
            return
    reading = read(SHAPES[name].query, bytes(body))
    assert implausible(reading) == []
    assert reading.answered or reading.failed


@pytest.mark.parametrize("command", ["summary", "version", "stats", "devdetails"])
def test_an_unknown_firmware_is_told_as_such_and_cannot_be_written_to(command: str) -> None:
    foreign = api(command, SUMMARY=[{"MHS 5s": 52e6}], DEVDETAILS=[{"Driver": "C3012"}])
    found = decode_exchanges([foreign], "10.0.0.1")
    assert (found.family.name, found.family.control) == ("cgminer", None)
    assert (found.reading.make, found.reading.firmware) == (None, None)

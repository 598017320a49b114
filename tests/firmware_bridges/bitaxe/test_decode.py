"""Decoding AxeOS: figures of ours in the shape of its newer pages."""

import json

import pytest

from firmware_bridges.base import MinerState, Reading
from firmware_bridges.query import Exchange, page
from firmware_bridges.recognise import decode_exchanges


def read(**members: object) -> Reading:
    body = json.dumps({"ASICModel": "BM1370", "boardVersion": "601", **members}).encode()
    return decode_exchanges(
        [Exchange(query=page("/api/system/info"), body=body)], "10.0.0.1"
    ).reading


@pytest.mark.parametrize(
    ("first", "second", "fans"),
    [
        (4_000, 0, (4_000,)),
        (4_000, 3_900, (4_000, 3_900)),
        (0, 0, (0,)),
        (-1, -1, None),
        (4_000, None, (4_000,)),
    ],
)
def test_a_second_fan_that_never_turned_is_none(
    first: int, second: int | None, fans: tuple[int, ...] | None
) -> None:
    assert read(hashRate=1_200.0, fanrpm=first, fan2rpm=second).fans_rpm == fans


def test_a_paused_one_is_asleep() -> None:
    reading = read(hashRate=0, miningPaused=True, power=2.1)
    assert (reading.state, reading.is_mining, reading.power_w) == (MinerState.ASLEEP, False, 2.1)


@pytest.mark.parametrize(
    ("told", "make", "model"),
    [
        ({"deviceModel": "NerdQAxe++"}, "NerdAxe", "NerdQAxe++"),
        ({}, "Bitaxe", "Bitaxe Gamma 601"),
    ],
)
def test_a_relative_keeps_its_own_make(told: dict[str, str], make: str, model: str) -> None:
    reading = read(hashRate=4_756.3, **told)
    assert (reading.make, reading.model) == (make, model)


def test_a_byte_order_mark_in_front_is_passed_over() -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"hashRate": 1_200.0, "smallCoreCount": 1}).encode()
    exchange = Exchange(query=page("/api/system/info"), body=body)
    assert decode_exchanges([exchange], "10.0.0.1").reading.hashrate_ths == pytest.approx(1.2)

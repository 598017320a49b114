"""The web page of old Antminers: figures of ours in the shape of public answers."""

import json

import pytest

from firmware_bridges.base import MinerState, Reading
from firmware_bridges.query import Exchange, page
from firmware_bridges.recognise import decode_exchanges

BOARD = {"chain_acn": "63", "freq": "637", "temp": "62", "temp2": "77", "rate": "4531.54"}
POOL = {"index": "0", "url": "p:3333", "user": "u", "status": "Alive", "accepted": "12"}


def read(rate: object, *boards: object) -> Reading:
    status = {
        "summary": {"elapsed": "9120", "ghs5s": rate, "ghsav": "13,487.77"},
        "pools": [POOL, {"index": "1", "url": "", "status": "Dead"}],
        "devs": list(boards),
    }
    answers = {
        "get_system_info.cgi": {"minertype": "Antminer S9", "macaddr": "aa:bb:cc:dd:ee:ff"},
        "get_miner_status.cgi": status,
    }
    return decode_exchanges(
        [
            Exchange(query=page(f"/cgi-bin/{name}"), body=json.dumps(body).encode())
            for name, body in answers.items()
        ],
        "10.0.0.1",
    ).reading


def test_an_s9_tells_its_boards_fans_and_pools() -> None:
    reading = read("13,594.61", {**BOARD, "fan3": "4,320", "fan5": "5520"}, {**BOARD, "fan6": "0"})
    assert (reading.model, reading.make, reading.uptime_s) == ("Antminer S9", "Bitmain", 9_120)
    assert (reading.board_count, reading.chips_total) == (2, 126)
    assert (reading.board_temp_c_max, reading.chip_temp_c_max) == (62.0, 77.0)
    assert reading.fans_rpm == (5_520,)
    assert [pool.url for pool in reading.pools or ()] == ["p:3333"]
    assert reading.state is MinerState.MINING


@pytest.mark.parametrize("rate", ["0.00", "", None, "nan", "n/a", 0])
def test_without_a_rate_nothing_is_said_of_its_state(rate: object) -> None:
    assert read(rate, BOARD).state is None


def test_what_a_rate_counts_is_not_guessed() -> None:
    assert read("504.2", BOARD).hashrate_ths is None


def test_a_row_of_another_shape_costs_its_own_fields() -> None:
    reading = read("9697.69", {"index": "1", "temp": "44", "freq": "fan_num=0,temp1=44,temp2=45"})
    assert (reading.board_temp_c_max, reading.chip_temp_c_max) == (44.0, None)
    assert (reading.board_count, reading.fans_rpm) == (None, None)

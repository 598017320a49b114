"""Firmwares of others on Antminers: told by their names, and not taken for stock."""

import json

import pytest

from firmware_bridges.query import Exchange, cgminer
from firmware_bridges.recognise import Decoded, decode_exchanges

OK = [{"STATUS": "S", "Code": 70, "Msg": "BMMiner stats", "Description": "bmminer 1.0.0"}]


def decoded(command: str, **sections: object) -> Decoded:
    body = json.dumps({"STATUS": OK, **sections, "id": 1}).encode()
    return decode_exchanges([Exchange(query=cgminer(command), body=body)], "10.0.0.1")


@pytest.mark.parametrize(
    ("miner", "written", "firmware", "model", "rate_ths"),
    [
        ("2.4.0-asicseer-1.1.9-aaaa", "Antminer S9", "asicseer", "Antminer S9", 13.4),
        # The D3 counts MH/s and calls them GHS.
        ("4.10.0", "Antminer D3 Blissz v2.06 beta", "blissz", "Antminer D3", 0.0134),
    ],
)
def test_a_fork_is_read_and_never_steered(
    miner: str, written: str, firmware: str, model: str, rate_ths: float
) -> None:
    head = {"BMMiner": miner, "Miner": "30.0.1.3", "Type": written}
    found = decoded("stats", STATS=[head, {"Elapsed": 700, "GHS 5s": "13400.0", "fan5": 2880}])
    assert found.family.control is None
    reading = found.reading
    assert (reading.make, reading.model, reading.firmware) == ("Bitmain", model, firmware)
    assert reading.hashrate_ths == pytest.approx(rate_ths)
    version = decoded("version", VERSION=[{**head, "API": "3.1"}])
    assert (version.reading.firmware, version.reading.model) == (firmware, model)


def test_the_first_braiins_os_is_not_stock_though_its_miner_is_called_bmminer() -> None:
    build = "bOS_am1-s9-20181127-0_aaaa"
    head = {"BMMiner": build, "Miner": build, "CompileTime": "", "Type": "braiins-am1-s9"}
    found = decoded("stats", STATS=[head, {"Elapsed": 700, "GHS 5s": "13700.0", "fan5": 5040}])
    assert found.family.name == "braiins-api"
    assert (found.reading.make, found.reading.firmware) == ("Bitmain", "braiins")
    assert found.reading.hashrate_ths == pytest.approx(13.7)
    assert decoded("version", VERSION=[head]).family.name == "braiins-api"

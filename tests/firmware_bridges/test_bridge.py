"""One bridge over a scripted asker: what of a full reading stands in the fast ones that follow."""

import json

import pytest

from firmware_bridges.antminer.family import ANTMINER_STOCK
from firmware_bridges.base import MinerState, ReadDetail
from firmware_bridges.bridge import MinerBridge
from firmware_bridges.errors import BridgeError, BridgeTimeoutError
from firmware_bridges.query import Query
from firmware_bridges.transport import Deadlines

OK = {"STATUS": [{"STATUS": "S", "Code": 70}]}
AWAKE = {
    "stats": OK
    | {
        "STATS": [
            {"Type": "Antminer S21"},
            {"Elapsed": 900, "GHS 5s": 200_000.0, "GHS av": 199_000.0},
        ]
    },
    "version": OK | {"VERSION": [{"Type": "Antminer S21"}]},
    "pools": OK | {"POOLS": [{"URL": "stratum+tcp://p.example:1", "Status": "Alive"}]},
    "/cgi-bin/get_system_info.cgi": {"minertype": "Antminer S21", "serinum": "SN1"},
}
ASLEEP = {"stats": OK | {"STATS": [{"Type": "Antminer S21"}]}}


class Script:
    """Answers from a table; the rest is silent."""

    def __init__(self, answers: dict[str, dict[str, object]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def ask(self, query: Query, deadlines: Deadlines | None = None) -> bytes:
        self.asked.append(query.key)
        if query.key not in self.answers:
            raise BridgeTimeoutError("10.0.0.1:4028", f"{query.key}: no answer", sent=True)
        return json.dumps(self.answers[query.key]).encode()


async def test_a_sleeping_miner_keeps_its_identity_and_no_old_rate() -> None:
    script = Script(dict(AWAKE))  # type: ignore[arg-type]
    bridge = MinerBridge(ANTMINER_STOCK, script, "10.0.0.1")
    full = await bridge.read(ReadDetail.FULL)
    assert (full.hashrate_avg_ths, full.serial) == (199.0, "SN1")
    script.answers = dict(ASLEEP)  # type: ignore[arg-type]
    fast = await bridge.read(ReadDetail.FAST)
    assert fast.state is MinerState.ASLEEP
    assert (fast.hashrate_ths, fast.hashrate_avg_ths, fast.uptime_s) == (None, None, None)
    assert fast.serial == "SN1"
    assert fast.pools is not None


async def test_a_hung_miner_costs_one_deadline_of_each_wire() -> None:
    script = Script({})
    bridge = MinerBridge(ANTMINER_STOCK, script, "10.0.0.1")
    with pytest.raises(BridgeError):
        await bridge.read(ReadDetail.FULL)
    assert script.asked == ["stats", "/cgi-bin/get_system_info.cgi"]

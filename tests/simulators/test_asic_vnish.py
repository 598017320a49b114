"""The simulated VNish: its mixed units, the pool of the fee, the token, presets and throttle."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simulators.asic_faults import Action
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import MODELS
from simulators.http_wire import HttpRequest

MODEL = MODELS["s21-vnish"]
V1 = "/api/v1/"


class Site:
    """One miner and its clock."""

    def __init__(self) -> None:
        self.now_ns = 10**12
        spec = FleetSpec(count=1, models=(MODEL,), seed=5)
        self.fleet = Fleet(spec, now_ns=lambda: self.now_ns, wall_s=lambda: 1_800_000_000.0)
        self.token = ""

    def turn(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def rpc(self, command: str) -> Any:  # noqa: ANN401 - JSON
        outcome = self.fleet.cgminer(0, json.dumps({"command": command}).encode())
        assert outcome.action is Action.ANSWER
        return json.loads(outcome.payload.removesuffix(b"\0"))

    def web(self, name: str, body: object = None) -> tuple[int, Any]:
        request = HttpRequest(
            method="GET" if body is None else "POST",
            path=V1 + name,
            body=b"" if body is None else json.dumps(body).encode(),
            authorization=f"Bearer {self.token}" if self.token else "",
            keep_alive=False,
        )
        head, _, said = self.fleet.web(0, request).payload.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(said) if said else None

    def log_on(self) -> None:
        _, said = self.web("unlock", {"pw": "admin"})
        self.token = said["token"]

    def summary(self) -> Any:  # noqa: ANN401 - JSON
        return self.web("summary")[1]["miner"]

    def truth_w(self) -> float:
        return self.fleet.truth()[0].power_w


@pytest.fixture
def site() -> Site:
    made = Site()
    made.log_on()
    return made


def test_only_info_and_status_are_open_without_the_token(site: Site) -> None:
    site.token = ""
    assert [site.web(name)[0] for name in ("info", "status")] == [200, 200]
    assert [site.web(name)[0] for name in ("summary", "perf-summary")] == [401, 401]
    assert site.web("unlock", {"pw": "wrong"})[0] == 401
    assert site.web("mining/stop", {})[0] == 401
    assert site.truth_w() > 0.9 * MODEL.power_w


def test_its_rates_are_in_the_units_that_it_mixes(site: Site) -> None:
    seen = site.summary()
    assert seen["hr_realtime"] == pytest.approx(seen["instant_hashrate"] * 1000)
    assert seen["hr_average"] == pytest.approx(seen["average_hashrate"] * 1000)
    assert seen["instant_hashrate"] == pytest.approx(MODEL.hashrate_ths, rel=0.08)


def test_on_4028_there_is_no_version_and_a_pool_of_the_fee(site: Site) -> None:
    assert site.rpc("version")["STATUS"][0]["STATUS"] == "E"
    assert [row["URL"] for row in site.rpc("pools")["POOLS"]][-1] == "DevFee"
    assert site.summary()["pools"][-1]["pool_type"] == "DevFee"


def test_stop_takes_its_time_and_start_comes_back(site: Site) -> None:
    assert site.web("mining/stop", {}) == (200, {"success": True})
    assert site.truth_w() > 0.5 * MODEL.power_w, "an answer is no effect"
    site.turn(30)
    stopped = site.summary()
    assert (stopped["miner_status"]["miner_state"], stopped["hr_realtime"]) == ("stopped", 0)
    site.web("mining/start", {})
    site.turn(5)
    assert site.summary()["miner_status"]["miner_state"] == "starting"
    site.turn(600)
    assert site.summary()["miner_status"]["miner_state"] == "mining"
    assert site.truth_w() > 0.9 * MODEL.power_w


def test_throttle_takes_20_to_100_percent_and_preset_only_known_names(site: Site) -> None:
    assert site.web("mining/throttle", {"percent": 19})[0] == 400
    assert site.web("settings", {"miner": {"overclock": {"preset": "1"}}})[0] == 400
    assert site.web("mining/throttle", {"percent": 50})[0] == 200
    site.turn(120)
    assert site.truth_w() == pytest.approx(0.5 * MODEL.power_w, rel=0.08)
    names = [row["name"] for row in site.web("autotune/presets")[1]]
    assert names[0] == "disabled"
    site.web("mining/throttle", {"percent": 100})
    site.web("settings", {"miner": {"overclock": {"preset": names[1]}}})
    site.turn(900)
    assert site.truth_w() <= 1.05 * int(names[1])
    assert site.web("perf-summary")[1]["current_preset"]["name"] == names[1]


def test_the_light_shows_in_its_status(site: Site) -> None:
    assert site.web("find-miner", {"on": True}) == (200, {"on": True})
    assert site.web("status")[1]["find_miner"] is True

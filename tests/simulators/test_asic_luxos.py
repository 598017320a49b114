"""The simulated LuxOS: its one session, its profiles, and how its changes unfold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simulators.asic_faults import Action, FaultKind
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import MODELS, S21, WorkMode


class Site:
    """One miner and its clock."""

    def __init__(self, *, cold: bool = False) -> None:
        self.now_ns = 10**12
        spec = FleetSpec(count=1, models=(MODELS["s21-luxos"],), seed=5, cold=cold)
        self.fleet = Fleet(spec, now_ns=lambda: self.now_ns, wall_s=lambda: 1_800_000_000.0)

    def turn(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def ask(self, command: str, parameter: str | None = None) -> Any:  # noqa: ANN401 - JSON
        body = {"command": command} | ({} if parameter is None else {"parameter": parameter})
        outcome = self.fleet.cgminer(0, json.dumps(body).encode())
        assert outcome.action is Action.ANSWER
        return json.loads(outcome.payload.removesuffix(b"\0"))

    def code(self, command: str, parameter: str | None = None) -> tuple[str, int]:
        row = self.ask(command, parameter)["STATUS"][0]
        return row["STATUS"], row["Code"]

    def log_on(self) -> str:
        return str(self.ask("logon")["SESSION"][0]["SessionID"])

    def truth_ths(self) -> float:
        return self.fleet.truth()[0].hashrate_ths


@pytest.fixture
def site() -> Site:
    return Site()


def test_there_is_one_session_at_a_time_and_it_ends_a_minute_after_its_last_use(site: Site) -> None:
    assert site.ask("session")["SESSION"] == [{"SessionID": ""}]
    session = site.log_on()
    assert site.ask("session")["SESSION"] == [{"SessionID": session}]
    assert site.code("logon")[0] == "E"
    site.turn(50)
    assert site.code("ledset", f"{session},red,blink")[0] == "S"
    site.turn(50)
    assert site.code("ledset", f"{session},red,auto")[0] == "S", "each use renews it"
    site.turn(61)
    assert site.code("ledset", f"{session},red,auto")[0] == "E"
    assert site.log_on() != session


@pytest.mark.parametrize(
    "command", ["curtail", "profileset", "atmset", "ledset", "rebootdevice", "resetminer", "logoff"]
)
def test_every_change_of_the_machine_needs_the_session(site: Site, command: str) -> None:
    site.log_on()
    for parameter in (None, "", "wrong", "wrong,sleep"):
        assert site.code(command, parameter)[0] == "E"
    assert site.truth_ths() > 100


def test_sleep_takes_tens_of_seconds_and_outlives_a_reboot(site: Site) -> None:
    session = site.log_on()
    said = site.ask("curtail", f"{session},sleep")
    assert said["CURTAIL"] == [{"Action": "sleep mode"}]
    site.turn(30)
    assert site.truth_ths() == 0
    config = site.ask("config")["CONFIG"][0]
    assert (config["CurtailMode"], config["IsPowerSupplyOn"]) == ("Sleep", False)
    assert site.ask("summary")["SUMMARY"][0]["GHS 5s"] == 0
    assert site.ask("pools")["POOLS"][0]["Status"] == "Disabled"
    assert site.code("rebootdevice", site.ask("session")["SESSION"][0]["SessionID"])[0] == "S"
    assert site.fleet.cgminer(0, b"summary").action is Action.RESET
    site.turn(600)
    assert site.ask("config")["CONFIG"][0]["CurtailMode"] == "Sleep"
    assert site.truth_ths() == 0
    site.code("curtail", f"{site.log_on()},wakeup")
    site.turn(30)
    assert site.truth_ths() == 0, "waking ramps as a reboot does"
    site.turn(500)
    assert site.truth_ths() > 0.9 * S21.hashrate_ths


def test_a_profile_is_refused_while_the_thermal_management_is_on(site: Site) -> None:
    session = site.log_on()
    low = site.ask("profiles")["PROFILES"][4]
    assert site.code("profileset", f"{session},{low['Profile Name']}")[0] == "E"
    assert site.code("atmset", f"{session},enabled=maybe")[0] == "E"
    assert site.code("atmset", f"{session},enabled=false")[0] == "S"
    assert site.code("profileset", f"{session},nonsense")[0] == "E"
    assert site.code("profileset", f"{session},0,{low['Profile Name']}")[0] == "S", "legacy form"
    site.turn(600)
    assert site.fleet.truth()[0].power_w == pytest.approx(low["Watts"], rel=0.03)
    assert site.ask("config")["CONFIG"][0]["ProfileStep"] == low["Step"]


def test_a_profile_chosen_asleep_counts_from_the_waking_on(site: Site) -> None:
    session = site.log_on()
    site.ask("curtail", f"{session},sleep")
    site.ask("atmset", f"{session},enabled=false")
    low = site.ask("profiles")["PROFILES"][0]
    site.ask("profileset", f"{session},{low['Profile Name']}")
    site.turn(50)
    assert site.truth_ths() == 0
    site.ask("curtail", f"{session},wakeup")
    site.turn(600)
    assert site.fleet.truth()[0].power_w == pytest.approx(low["Watts"], rel=0.03)


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        ("curtail", "nap"),
        ("curtail", ""),
        ("ledset", "red"),
        ("ledset", "red,disco"),
        ("ledset", "blue,on"),
        ("profileset", ""),
        ("atmset", ""),
    ],
)
def test_parameters_that_mean_nothing_are_refused(site: Site, command: str, rest: str) -> None:
    assert site.code(command, f"{site.log_on()},{rest}") == ("E", 324)


def test_it_poses_as_stock_firmware_and_names_itself(site: Site) -> None:
    row = site.ask("version")["VERSION"][0]
    assert (row["BMMiner"], row["Miner"]) == ("1.0.0", "uart_trans.1.3")
    assert row["LUXminer"].startswith("2025.")


def test_a_restart_of_the_miner_ends_the_session_and_starts_the_uptime_anew(site: Site) -> None:
    assert site.code("resetminer", site.log_on())[0] == "S"
    site.turn(20)
    assert site.ask("session")["SESSION"] == [{"SessionID": ""}]
    assert site.ask("summary")["SUMMARY"][0]["Elapsed"] == 20
    assert site.ask("config")["CONFIG"][0]["SystemStatus"] == "Initializing"


def test_a_lying_miner_says_sleep_and_hashes_on(site: Site) -> None:
    site.fleet.inject(FaultKind.LYING, [0])
    site.ask("curtail", f"{site.log_on()},sleep")
    site.turn(60)
    assert site.ask("config")["CONFIG"][0]["CurtailMode"] == "Sleep"
    assert site.ask("summary")["SUMMARY"][0]["GHS 5s"] > 100_000


def test_a_cold_miner_is_curtailed_and_stays_so_when_the_mains_come_back() -> None:
    place = Site(cold=True)
    assert place.ask("config")["CONFIG"][0]["CurtailMode"] == "Sleep"
    place.fleet.inject(FaultKind.DEAD, [0])
    place.fleet.clear([0])
    place.turn(600)
    assert place.fleet.truth()[0].mode is WorkMode.SLEEP
    assert place.truth_ths() == 0

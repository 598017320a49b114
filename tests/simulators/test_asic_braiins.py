"""The simulated Braiins OS: its two wires, its token, and how its changes unfold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simulators.asic_faults import Action, FaultKind
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import MODELS, S19_XP, WorkMode
from simulators.http_wire import HttpRequest

V1 = "/api/v1/"
LOGIN = {"username": "root", "password": "root"}


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    def turn(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class Site:
    """One miner and a client that has logged on."""

    def __init__(self, model: str = "s19xp-braiins", *, cold: bool = False) -> None:
        self.clock = Hands()
        spec = FleetSpec(count=1, models=(MODELS[model],), seed=5, cold=cold)
        self.fleet = Fleet(spec, now_ns=self.clock, wall_s=lambda: 1_800_000_000.0)
        self.token = ""

    def log_on(self) -> None:
        status, body = self.ask("POST", "auth/login", LOGIN)
        assert status == 200
        assert body["timeout_s"] == 3600
        self.token = body["token"]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Ask one page: (status, what was said)."""
        payload = b"" if body is None else json.dumps(body).encode()
        return self.raw(method, path if path.startswith("/") else V1 + path, payload)

    def raw(self, method: str, path: str, payload: bytes) -> tuple[int, Any]:
        request = HttpRequest(
            method=method, path=path, authorization=self.token, keep_alive=False, body=payload
        )
        outcome = self.fleet.web(0, request)
        assert outcome.action is Action.ANSWER
        head, _, said = outcome.payload.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), json.loads(said) if said else None

    def rpc(self, command: str, parameter: str | None = None) -> Any:  # noqa: ANN401 - JSON
        body = {"command": command} | ({} if parameter is None else {"parameter": parameter})
        outcome = self.fleet.cgminer(0, json.dumps(body).encode())
        assert outcome.action is Action.ANSWER
        assert outcome.payload.endswith(b"\0")
        return json.loads(outcome.payload[:-1])

    def truth_ths(self) -> float:
        return self.fleet.truth()[0].hashrate_ths

    def truth_w(self) -> float:
        return self.fleet.truth()[0].power_w


@pytest.fixture
def site() -> Site:
    place = Site()
    place.log_on()
    return place


def test_nothing_is_told_without_a_token_and_a_wrong_password_gives_none() -> None:
    place = Site()
    assert place.ask("GET", "miner/details")[0] == 401
    assert place.ask("POST", "auth/login", {"username": "root", "password": "no"})[0] == 401
    assert place.ask("POST", "auth/login", {"username": "root"})[0] == 400
    place.token = "made up"
    assert place.ask("PUT", "actions/pause")[0] == 401
    assert place.truth_ths() > 100


def test_a_token_lives_as_long_as_it_is_used(site: Site) -> None:
    for _ in range(3):
        site.clock.turn(3000)
        assert site.ask("GET", "miner/details")[0] == 200
    site.clock.turn(3601)
    assert site.ask("GET", "miner/details")[0] == 401


@pytest.mark.parametrize("path", ["version", "pools", "network", "miner/none", "/other"])
def test_paths_are_found_as_they_are_spelled(site: Site, path: str) -> None:
    assert site.ask("GET", path)[0] == 404


def test_a_pause_takes_the_boards_off_in_seconds_and_lets_the_program_run(site: Site) -> None:
    before = site.ask("GET", "miner/details")[1]["bosminer_uptime_s"]
    assert site.ask("PUT", "actions/pause") == (200, False)
    assert site.ask("PUT", "actions/pause") == (200, True), "it was so already"
    site.clock.turn(10)
    details = site.ask("GET", "miner/details")[1]
    assert details["status"] == 3
    assert details["bosminer_uptime_s"] == before + 10
    stats = site.ask("GET", "miner/stats")[1]
    assert stats["miner_stats"]["real_hashrate"]["last_5s"]["gigahash_per_second"] == 0
    assert site.truth_w() == S19_XP.power_w_asleep
    assert "paused" in site.rpc("tunerstatus")["TUNERSTATUS"][0]["TunerChainStatus"][0]["Status"]


def test_a_stopped_program_is_started_and_not_resumed(site: Site) -> None:
    assert site.ask("PUT", "actions/stop") == (200, False)
    site.clock.turn(10)
    assert site.ask("GET", "miner/details")[1]["bosminer_uptime_s"] == 0
    assert site.rpc("summary")["STATUS"][0]["Msg"] == "Unavailable"
    assert site.ask("PUT", "actions/resume")[0] == 400
    assert site.rpc("resume")["STATUS"][0]["STATUS"] == "E"
    assert site.ask("PUT", "actions/start") == (200, False)
    site.clock.turn(400)
    assert site.truth_ths() > 0.9 * S19_XP.hashrate_ths


def test_a_power_target_is_tuned_to_in_minutes_and_bounded(site: Site) -> None:
    limits = site.ask("GET", "configuration/constraints")[1]["tuner_constraints"]["power_target"]
    assert limits["default"]["watt"] == S19_XP.power_w
    target_w = round(S19_XP.power_w * 0.7)
    assert site.ask("PUT", "performance/power-target", {"watt": target_w}) == (
        200,
        {"watt": target_w},
    )
    assert site.ask("GET", "performance/tuner-state")[1]["overall_tuner_state"] == 3
    site.clock.turn(300)
    assert site.ask("GET", "performance/tuner-state")[1]["overall_tuner_state"] == 2
    assert site.truth_w() == pytest.approx(target_w, rel=0.03)
    for wrong in (1, 100_000):
        assert site.ask("PUT", "performance/power-target", {"watt": wrong})[0] == 400
    assert site.ask("GET", "configuration/miner")[1]["tuner"]["power_target"]["watt"] == target_w


def test_a_reboot_takes_tokens_and_pages_away_and_a_pause_does_not_outlive_it(site: Site) -> None:
    site.ask("PUT", "actions/pause")
    assert site.ask("PUT", "actions/reboot") == (204, None)
    request = HttpRequest(
        method="GET", path=V1 + "miner/details", authorization="", keep_alive=False, body=b""
    )
    assert site.fleet.web(0, request).action is Action.RESET
    assert site.fleet.cgminer(0, b'{"command":"summary"}').action is Action.RESET
    site.clock.turn(400)
    assert site.ask("GET", "miner/details")[0] == 401
    assert site.truth_ths() > 0.9 * S19_XP.hashrate_ths


def test_pools_are_replaced_as_a_whole(site: Site) -> None:
    pool = {"url": "stratum+tcp://a:1", "user": "u", "password": "s"}
    groups = [{"name": "g", "pools": [pool, {**pool, "url": "stratum+tcp://b:2"}]}]
    status, said = site.ask("PUT", "pools/batch", groups)
    assert status == 200
    assert [row["url"] for row in said[0]["pools"]] == ["stratum+tcp://a:1", "stratum+tcp://b:2"]
    assert "password" not in said[0]["pools"][0]
    rows = site.ask("GET", "pools/")[1][0]["pools"]
    assert [row["active"] for row in rows] == [True, False]


def test_pools_of_the_cgminer_api_are_renumbered_and_the_active_one_stays() -> None:
    place = Site("s19xp-braiins-old")
    assert place.rpc("addpool", "stratum+tcp://b:2,u\\,v,x")["STATUS"][0]["Code"] == 55
    assert place.rpc("removepool", "0")["STATUS"][0]["Code"] == 67
    assert place.rpc("switchpool", "1")["STATUS"][0]["Code"] == 27
    assert place.rpc("removepool", "0")["STATUS"][0]["Code"] == 68
    rows = place.rpc("pools")["POOLS"]
    assert [(row["POOL"], row["User"]) for row in rows] == [(0, "u,v")]
    assert place.rpc("removepool", "0")["STATUS"][0]["Code"] == 66
    assert place.rpc("removepool", "9")["STATUS"][0]["Code"] == 8
    assert place.rpc("removepool", "x")["STATUS"][0]["STATUS"] == "E"


def test_joined_commands_stand_side_by_side() -> None:
    said = Site("s19xp-braiins-old").rpc("summary+temps+nonsense")
    assert set(said) == {"summary", "temps", "nonsense", "id"}
    assert said["temps"][0]["TEMPS"][0]["ID"] == 6
    assert said["nonsense"][0]["STATUS"][0]["Code"] == 14


@pytest.mark.parametrize(("data", "code"), [(b"{", 23), (b"{}", 24), (b"nonsense|1", 14)])
def test_what_is_no_request_is_refused(data: bytes, code: int) -> None:
    outcome = Site().fleet.cgminer(0, data)
    assert json.loads(outcome.payload[:-1])["STATUS"][0]["Code"] == code


def test_a_lying_miner_says_that_it_is_paused_and_hashes_on(site: Site) -> None:
    site.fleet.inject(FaultKind.LYING, [0])
    assert site.ask("PUT", "actions/pause") == (200, False)
    site.clock.turn(60)
    assert site.ask("GET", "miner/details")[1]["status"] == 3
    assert site.truth_ths() > 100
    stats = site.ask("GET", "miner/stats")[1]
    assert stats["miner_stats"]["real_hashrate"]["last_5s"]["gigahash_per_second"] > 100_000


def test_a_cold_miner_is_paused_and_one_without_mains_starts_again() -> None:
    place = Site(cold=True)
    place.log_on()
    assert place.ask("GET", "miner/details")[1]["status"] == 3
    place.fleet.inject(FaultKind.DEAD, [0])
    assert place.fleet.cgminer(0, b"summary").action is Action.RESET
    place.fleet.clear([0])
    place.clock.turn(600)
    assert place.fleet.truth()[0].mode is WorkMode.NORMAL


GRAPHQL = "/graphql"


def test_graphql_answers_what_is_named_and_fails_over_an_unknown_name() -> None:
    place = Site("s19xp-braiins-graphql")
    query = {"query": "query x { bos { hostname } bosminer { info { fans { rpm } } } }"}
    status, said = place.ask("POST", GRAPHQL, query)
    assert status == 200
    assert said["data"]["bos"] == {"hostname": "Antminer"}
    assert [set(row) for row in said["data"]["bosminer"]["info"]["fans"]] == [{"rpm"}] * 4
    _, said = place.ask("POST", GRAPHQL, {"query": "{ bos { nonsense } }"})
    assert said["data"] is None
    assert "nonsense" in said["errors"][0]["message"]


@pytest.mark.parametrize("text", ["", "{", "}", "{ bos } }", "{" * 50, "no braces"])
def test_a_broken_graphql_query_is_an_error_in_the_answer(text: str) -> None:
    status, said = Site("s19xp-braiins-graphql").ask("POST", GRAPHQL, {"query": text})
    assert (status, said["data"]) == (200, None)


def test_luci_and_other_pages_want_a_login_of_their_own() -> None:
    assert Site("s19xp-braiins-graphql").ask("GET", "/cgi-bin/luci/x")[0] == 403

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest

from edge_agent.__main__ import main
from edge_agent.cli import commands, render

SITE = {
    "site_id": "lubbock",
    "market": [
        {"name": "price_usd_per_mwh", "value": -3.5, "age_s": 4.0, "feed": "csv"},
        {"name": "btc_price_usd", "value": None, "age_s": None, "feed": None},
    ],
    "power_w": None,
    "power_counted_w": 52.5e6,
    "power_cap_w": 1e8,
    "earning_usd_per_h": None,
    "switches": {"count": 3, "open": 0, "p50_ms": 12.0, "p99_ms": 25.0, "rolled_back": 0},
    "classes": [
        {"device_class": "S21", "kind": "asic", "total": 3, "by_activity": {"mine": 2, "fault": 1}}
    ],
    "problems": [
        {"code": "device_fault", "detail": "1 device", "next_command": "hcp-agent why s21-0003"}
    ],
}
STATUS = {
    "version": "0.1.0",
    "up_s": 3_700.0,
    "hub": {"online": False, "heard_age_s": None, "backlog": 12},
    "site": SITE,
}
DEVICE = {
    "device_id": "s21-0001",
    "device_class": "S21",
    "activity": "mine",
    "reachable": True,
    "since_s": 70.0,
    "power_w": 3500.0,
    "temp_c": None,
    "hashrate_ths": 200.0,
    "lease_id": None,
    "reason": "keep_best",
}
MINER = {
    "device_id": "s21-0001",
    "device_class": "S21",
    "address": "10.0.0.1",
    "kind": "auto",
    "rack": "r7",
    "row": "",
    "customer": "acme",
    "age_s": 4.0,
    "error": "",
    "reading": {"model": "Antminer S21", "firmware": "luxos", "state": "mining", "power_w": 3500.0},
}
ACT: dict[str, Any] = {
    "act_id": "act-1",
    "verb": "limit",
    "ended": True,
    "items": [{"device_id": "s21-0001", "outcome": "unsafe", "detail": "9000 W is over 3,500 W"}],
}
MARKET = {
    "price_usd_per_mwh": 31.0,
    "price_feed": "a",
    "price_age_s": 4.0,
    "usual_low_usd_per_mwh": -75.0,
    "usual_high_usd_per_mwh": 125.0,
    "floor_usd_per_mwh": -251.0,
    "ceiling_usd_per_mwh": 5_000.0,
    "at_risk_usd_per_h": 12.5,
    "disagreement": "a: feeds disagree (a 31, b 3100)",
    "feeds": [
        {
            "input": "price_usd_per_mwh", "feed": "b", "value": 3_100.0, "age_s": 5.0,
            "verdict": "outvoted", "reason": "feeds disagree", "taken": False,
        },
    ],
}  # fmt: skip
POWER = {
    "cap_mw": 60.0,
    "drawn_mw": 54.1,
    "confirmed_mw": 55.0,
    "counted_mw": 56.0,
    "promised_mw": None,
    "headroom_mw": 4.0,
    "leases_mw": 0.5,
    "curtailable_mw_5s": 12.25,
    "curtailable_mw_10min": 51.75,
    "basis": [
        {
            "device_class": "S21", "firmware": "luxos", "devices": 15_000, "draw_mw": 54.8,
            "samples": 900, "p50_s": 20.0, "p99_s": 45.0, "curtailable_mw_5s": 12.25,
            "curtailable_mw_10min": 51.75,
        }
    ],
}  # fmt: skip
ORDER = {
    "order_id": "o1",
    "status": "missed",
    "limit_mw": 20.0,
    "promised_mw": 20.25,
    "due_at": "2026-01-01T16:00:00Z",
    "until_at": "2026-01-01T18:00:00Z",
    "achieved": [{"at": "2026-01-01T16:00:00Z", "load_mw": 20.4}],
    "worst_mw": 0.4,
    "over_s": 75.0,
    "why": "3 devices told to go off are not confirmed down",
}
Answer = tuple[int, dict[str, Any]]
ANSWERS: dict[str, Answer | Callable[[], Answer]] = {
    "/v1/status": (200, STATUS),
    "/v1/devices": (
        200,
        {"items": [{"device": DEVICE}, {"device": DEVICE | {"device_id": "h100-1"}}]},
    ),
    "/v1/why": (404, {"error": "unknown_device", "detail": "no device x"}),
    "/v1/market": (200, MARKET),
    "/v1/power": (200, {"at": "2026-01-01T00:00:00Z", "power": POWER}),
    "/v1/orders": (200, {"items": [ORDER]}),
    "/v1/orders/add": (200, {"order": ORDER | {"status": "waiting", "achieved": []}}),
    "/v1/orders/cancel": (404, {"error": "no_order", "detail": "no open order 'x'"}),
    "/v1/drain": (200, {"devices": ["s21-0001"]}),
    "/v1/undrain": (409, {"error": "gate", "detail": "the device is too hot"}),
    "/v1/miners": (200, {"items": [MINER]}),
    "/v1/acts": (200, ACT),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = ANSWERS[self.path.split("?")[0]]
        status, value = found() if callable(found) else found
        body = json.dumps(value).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the base class names it

    def address_string(self) -> str:
        return "local"

    def log_message(self, *args: object) -> None:
        del args


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    servers = [Server(str(tmp_path / name), Handler) for name in ("view.sock", "ctl.sock")]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path
    for server in servers:
        server.shutdown()
        server.server_close()


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    told = capsys.readouterr()
    return code, told.out, told.err


def test_status_tells_the_site_with_unknowns_as_question_marks(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "status", "--run-dir", str(agent))
    assert code == 0
    assert "lubbock  DEGRADED  up 1 h 1 min" in out
    assert "OFFLINE, heard never" in out
    assert "-3.50 USD/MWh (4 s ago), BTC ? USD" in out
    assert "? measured, 52.50 MW counted of 100.00 MW" in out
    assert re.search(r"S21 +3 +2 +1", out)
    assert "! device_fault       1 device  -> hcp-agent why s21-0003" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_json_carries_a_schema_version(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "status", "--json", "--run-dir", str(agent))
    assert json.loads(out) == {"v": 1} | STATUS


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["status", "--exit-code"], 1),
        (["why", "x"], 1),
        (["drain", "s21-0001", "--for", "2h"], 0),
        (["drain", "s21-0001", "--for", "soon"], 2),
        (["undrain", "s21-0001"], 5),
        (["order", "add", "--mw", "20", "--by", "10m", "--for", "2h"], 0),
        (["order", "add", "--mw", "20", "--by", "10m"], 2),
        (["order", "add", "--mw", "20", "--by", "2026-01-01T16:00:00Z", "--for", "soon"], 2),
        (["order", "cancel", "x"], 1),
    ],
)
def test_exit_codes(
    agent: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int
) -> None:
    assert run(capsys, *argv, "--run-dir", str(agent))[0] == code


def row(outcome: str, detail: str) -> dict[str, Any]:
    return {"device_id": "g0", "outcome": outcome, "detail": detail}


@pytest.mark.parametrize(
    ("rows", "code", "line"),
    [
        ([], 0, "g0  no longer held"),
        (
            [row("refused", "still seen: 2 uncorrected ECC errors")],
            1,
            "g0  no longer held; fence NOT released: still seen: 2 uncorrected ECC errors",
        ),
        (
            [row("away", "its node n1 is away: nothing was done there")],
            1,
            "g0  no longer held; fence NOT released: its node n1 is away: nothing was done there",
        ),
        (
            [row("asked", ""), row("asked", ""), row("done", "xid-48 is released")],
            0,
            "g0  no longer held; fence released: xid-48 is released",
        ),
        (
            [row("asked", ""), row("refused", "log_failed: no space")],
            1,
            "g0  no longer held; fence NOT released: log_failed: no space",
        ),
        (
            [row("asked", ""), row("unknown", "its node tells nothing")],
            1,
            "g0  no longer held; fence perhaps released: its node tells nothing",
        ),
    ],
)
def test_undrain_waits_for_what_becomes_of_a_fence_and_says_it_plainly(
    agent: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]],
    code: int,
    line: str,
) -> None:
    monkeypatch.setattr(commands, "_POLL_S", 0.0)
    left = list(rows)

    def answer() -> tuple[int, dict[str, Any]]:
        return 200, {"devices": ["g0"], "releases": [left.pop(0)] if left else []}

    monkeypatch.setitem(ANSWERS, "/v1/undrain", answer)
    monkeypatch.setitem(ANSWERS, "/v1/releases", answer)
    assert run(capsys, "undrain", "g0", "--run-dir", str(agent))[:2] == (code, f"{line}\n")
    assert left == []


def test_undrain_gives_up_on_an_answer_that_does_not_come(
    agent: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "RELEASE_WAIT_S", 0.0)
    asked = {"devices": ["g0"], "releases": [row("asked", "its node n1 is asked")]}
    monkeypatch.setitem(ANSWERS, "/v1/undrain", (200, asked))
    code, out, _ = run(capsys, "undrain", "g0", "--run-dir", str(agent))
    assert (code, out) == (6, "g0  no longer held; no answer yet: its node n1 is asked\n")


def test_devices_are_chosen_by_glob(agent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "devices", "h100-*", "--run-dir", str(agent), "--json")
    assert [row["device"]["device_id"] for row in json.loads(out)["items"]] == ["h100-1"]


def test_a_dead_agent_is_answered_from_its_snapshot_with_the_age(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "snapshot.json").write_text(json.dumps({"v": 1, "status": STATUS}))
    code, out, err = run(capsys, "status", "--run-dir", str(tmp_path))
    assert (code, "lubbock" in out) == (0, True)
    assert re.search(r"agent down, \d+ s old", err)


def test_without_agent_and_snapshot_the_exit_code_is_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dirs = ["--run-dir", str(tmp_path), "--data-dir", str(tmp_path)]
    code, out, err = run(capsys, "status", "--json", *dirs)
    assert (code, json.loads(out)["exit_code"]) == (3, 3)
    assert "systemctl status hcp-agent" in err


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = {"asyncio", "msgspec", "numpy", "duckdb", "litestar", "sqlite3", "aiomqtt"}
    code = (
        "import sys; from edge_agent.__main__ import main; main(['version']); "
        "import edge_agent.cli.commands; print(','.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=20
    )
    assert heavy.isdisjoint(done.stdout.splitlines()[1].split(","))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0, "0 s"), (61, "1 min 1 s"), (90_000, "1 d 1 h"), (7_260, "2 h 1 min")],
)
def test_durations_are_told_in_two_units(seconds: float | None, text: str) -> None:
    assert render.duration(seconds) == text


def test_miners_are_listed_with_what_they_are_and_how_old_that_is(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "miners", "--run-dir", str(agent))
    assert code == 0
    header, row = out.splitlines()[0].split(), out.splitlines()[-1]
    assert header[:5] == ["device", "address", "rack", "row", "customer"]
    for text in ("s21-0001", "10.0.0.1", "r7", "acme", "Antminer S21", "luxos", "3,500", "4 s ago"):
        assert text in row


def test_an_act_that_the_power_cap_forbids_exits_with_5(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "limit", "s21-0001", "9000", "--run-dir", str(agent))
    assert code == 5
    assert "unsafe" in out
    assert "over 3,500 W" in out


def test_an_act_whose_effect_is_not_seen_in_time_exits_with_6(
    agent: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = ACT | {"ended": False, "items": [ACT["items"][0] | {"outcome": "running"}]}
    monkeypatch.setitem(ANSWERS, "/v1/acts", (200, waits))
    code, out, _ = run(capsys, "reboot", "s21-*", "--wait", "0", "--run-dir", str(agent))
    assert code == 6
    assert "act-1" in out


def test_market_shows_every_feed_and_what_they_disagree_about(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "market", "--run-dir", str(agent))
    assert code == 0
    assert "31.00 USD/MWh of a (4 s ago)" in out
    assert "usual   -75 .. 125, legal -251 .. 5,000 USD/MWh" in out
    assert "! a: feeds disagree (a 31, b 3100)" in out
    assert re.search(r"price_usd_per_mwh +b +3,100 +5 s ago +outvoted", out)


def test_power_tells_what_can_go_with_its_basis(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "power", "--run-dir", str(agent))
    assert code == 0
    assert "cap         60.000 MW, ordered ? MW, free 4.000 MW" in out
    assert "curtailable 12.250 MW in 5 s, 51.750 MW in 10 min, each with 99 %" in out
    assert re.search(r"S21 +luxos +15,000 +54.800 +900 +20 +45 +12.250 +51.750", out)
    _, out, _ = run(capsys, "power", "--json", "--run-dir", str(agent))
    assert json.loads(out) == {"v": 1, "at": "2026-01-01T00:00:00Z"} | POWER


def test_orders_tell_asked_achieved_and_by_how_much_missed(
    agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "order", "list", "--run-dir", str(agent))
    assert code == 0
    row = out.splitlines()[1]
    for text in (
        "o1",
        "missed",
        "20.000",
        "20.250",
        "20.400",
        "0.400",
        "1 min 15 s",
        "3 devices told",
    ):
        assert text in row


def test_status_shows_each_feeder() -> None:
    feeder = {"name": "north", "measured_w": None, "counted_w": 4.2e6, "cap_w": 5e6}
    text = render.status(STATUS | {"site": SITE | {"feeders": [feeder]}})
    assert "feeder  north: ? measured, 4.20 MW counted of 5.00 MW" in text
    assert "feeder" not in render.status(STATUS)


def test_what_is_ready_ahead_of_a_switch_has_a_line_where_there_is_any() -> None:
    counts = {"asked": 2, "ready": 1, "used": 7, "late": 3, "wasted": 5, "failed": 4}
    text = render.status(STATUS | {"site": SITE | {"prewarm": counts}})
    assert "ahead   1 of 2 ready; used 7, late 3, wasted 5, failed 4" in text
    for nothing in (None, dict.fromkeys(counts, 0)):
        assert "ahead" not in render.status(STATUS | {"site": SITE | {"prewarm": nothing}})

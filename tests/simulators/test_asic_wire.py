"""The fleet over real sockets: the cgminer wire, the web pages, faults, and who may connect."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators import http_wire
from simulators.asic_control import obey
from simulators.asic_faults import Action, FaultKind, parse_shares
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import S19_XP, S21, Timing, WorkMode, models_by_name
from simulators.asic_server import Counts, _Api, serve
from simulators.errors import SettingError
from simulators.main import main

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from simulators.asic_models import MinerModel
    from simulators.asic_server import Ports

ROOT = Path(__file__).resolve().parents[2]
SECOND = 10**9


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Site:
    """A fleet being served, its clock, and a client."""

    def __init__(self, fleet: Fleet, clock: Hands, ports: Ports) -> None:
        self.fleet = fleet
        self.clock = clock
        self.ports = ports

    async def raw(self, request: bytes, address: str = "127.64.0.1") -> bytes:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(address, self.ports.port)
            writer.write(request)
            try:
                return await reader.read()
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def ask(self, command: str, address: str = "127.64.0.1") -> dict[str, Any]:
        data = await self.raw(json.dumps({"command": command}).encode(), address)
        assert data.endswith(b"\0")
        answer: dict[str, Any] = json.loads(data[:-1])
        return answer

    async def web(
        self, method: str, page: str, body: object = None, address: str = "127.64.0.1"
    ) -> httpx.Response:
        auth = httpx.DigestAuth("root", "root")
        async with httpx.AsyncClient(auth=auth, trust_env=False, timeout=5) as client:
            url = f"http://{address}:{self.ports.web_port}/cgi-bin/{page}.cgi"
            return await client.request(method, url, json=body)


@contextlib.asynccontextmanager
async def site(
    count: int = 4,
    models: tuple[MinerModel, ...] = (S21, S19_XP),
    faults: str = "",
    *,
    cold: bool = False,
) -> AsyncIterator[Site]:
    clock = Hands()
    spec = FleetSpec(
        count=count,
        models=models,
        seed=11,
        timing=Timing(conf_answer_s=0.05),
        faults=parse_shares(faults),
        cold=cold,
    )
    fleet = Fleet(spec, now_ns=clock, wall_s=lambda: 1_800_000_000 + clock() / 1e9)
    async with serve(fleet, port=0, web_port=0) as ports:
        yield Site(fleet, clock, ports)


async def test_summary_is_that_of_a_hashing_s21() -> None:
    async with site() as s:
        answer = await s.ask("summary")
        (row,) = answer["SUMMARY"]
        assert row["GHS 5s"] == pytest.approx(200_000, rel=0.08)
        assert row["GHS av"] == pytest.approx(200_000, rel=0.04)
        assert row["Elapsed"] > 3600
        assert answer["STATUS"][0]["STATUS"] == "S"
        assert answer["STATUS"][0]["When"] == 1_800_000_000


async def test_each_address_is_its_own_miner() -> None:
    async with site() as s:
        types = [(await s.ask("version", f"127.64.0.{n}"))["VERSION"][0]["Type"] for n in (1, 2, 3)]
        assert types == ["Antminer S21", "Antminer S19 XP", "Antminer S21"]
        rates = [(await s.ask("summary", f"127.64.0.{n}"))["SUMMARY"][0]["GHS av"] for n in (1, 3)]
        assert rates[0] != rates[1]


async def test_an_address_without_a_miner_is_reset() -> None:
    async with site(count=4) as s:
        for address in ("127.64.0.5", "127.0.0.1"):
            with contextlib.suppress(ConnectionError):
                assert await s.raw(b'{"command":"version"}', address) == b""


class ForeignTransport(asyncio.Transport):
    """A connection from outside loopback."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.64.0.1", 4028), "peername": ("192.0.2.7", 40_000)})
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


async def test_a_peer_outside_loopback_is_reset() -> None:
    counts, transport = Counts(), ForeignTransport()
    connection = _Api(fleet_of(1), counts)
    connection.connection_made(transport)
    assert transport.aborted
    assert counts.refused == 1


async def test_stats_carry_boards_fans_and_the_power_that_the_model_tells() -> None:
    async with site() as s:
        s21, s19 = await s.ask("stats"), await s.ask("stats", "127.64.0.2")
        power = s21["STATS"][1]["chain_power"]
        assert power.endswith(" W")
        assert float(power[:-2]) == pytest.approx(3500, rel=0.08)
        assert "chain_power" not in s19["STATS"][1]
        assert s21["STATS"][1]["chain_acn3"] == 108
        boards = [float(s21["STATS"][1][f"chain_rate{n}"]) for n in (1, 2, 3)]
        assert sum(boards) == pytest.approx(s21["STATS"][1]["GHS 5s"], abs=0.1)
        assert s21["STATS"][1]["temp_chip1"].count("-") == 3


async def test_joined_commands_are_refused_by_new_and_served_by_old_firmware() -> None:
    async with site(models=models_by_name("s21,s21-old")) as s:
        new = await s.ask("summary+pools")
        assert (new["STATUS"][0]["STATUS"], new["STATUS"][0]["Code"]) == ("E", 14)
        old = await s.ask("summary+nonsense", "127.64.0.2")
        assert isinstance(old["summary"][0]["SUMMARY"][0]["GHS 5s"], str)
        assert old["nonsense"][0]["STATUS"][0]["Code"] == 14


async def test_old_firmware_loses_a_comma_in_stats() -> None:
    async with site(models=models_by_name("s21-old")) as s:
        data = await s.raw(b'{"command":"stats"}')
        assert b"}{" in data
        with pytest.raises(json.JSONDecodeError):
            json.loads(data.rstrip(b"\0"))
        assert len(json.loads(data.rstrip(b"\0").replace(b"}{", b"},{"))["STATS"]) == 2


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [(b"{broken", 23), (b'{"parameter":"0"}', 24), (b'{"command":"quit"}', 14), (b"{}", 24)],
)
async def test_what_is_refused_has_its_code(request_bytes: bytes, code: int) -> None:
    async with site() as s:
        answer = json.loads((await s.raw(request_bytes)).rstrip(b"\0"))
        assert answer["STATUS"][0]["Code"] == code


async def test_a_text_request_gets_a_text_answer() -> None:
    async with site() as s:
        data = (await s.raw(b"summary|0")).decode()
        assert data.startswith("STATUS=S,When=1800000000,Code=11,Msg=Summary,")
        assert "|SUMMARY,Elapsed=" in data
        assert data.endswith("|\0")


async def test_a_request_above_one_receive_is_cut() -> None:
    async with site() as s:
        padded = b'{"command":"version","pad":"' + b"x" * 5000 + b'"}'
        answer = json.loads((await s.raw(padded)).rstrip(b"\0"))
        assert answer["STATUS"][0]["Code"] == 23


async def test_the_web_asks_for_a_digest_and_knows_the_password() -> None:
    async with site() as s:
        url = f"http://127.64.0.1:{s.ports.web_port}/cgi-bin/get_system_info.cgi"
        async with httpx.AsyncClient(trust_env=False) as client:
            bare = await client.get(url)
            wrong = await client.get(url, auth=httpx.DigestAuth("root", "toor"))
            right = await client.get(url, auth=httpx.DigestAuth("root", "root"))
        assert bare.status_code == wrong.status_code == 401
        assert 'realm="antMiner Configuration"' in bare.headers["www-authenticate"]
        assert right.json()["minertype"] == "Antminer S21"
        assert (await s.web("GET", "no_such_page")).status_code == 404


async def test_sleep_and_wake_by_the_web() -> None:
    async with site() as s:
        conf = (await s.web("GET", "get_miner_conf")).json()
        assert conf["bitmain-work-mode"] == "0"
        begun = time.monotonic()
        slept = await s.web("POST", "set_miner_conf", {**conf, "miner-mode": 1})
        assert slept.json() == {"stats": "success", "code": "M000", "msg": "OK!"}
        assert time.monotonic() - begun >= 0.05
        with contextlib.suppress(ConnectionError):
            assert await s.raw(b'{"command":"summary"}') == b""  # the API is away
        s.clock.now_ns += 60 * SECOND
        assert (await s.ask("summary"))["SUMMARY"] == []
        assert len((await s.ask("stats"))["STATS"]) == 1
        assert (await s.web("GET", "get_miner_conf")).json()["bitmain-work-mode"] == "1"
        assert s.fleet.truth()[0].power_w == 20.0
        await s.web("POST", "set_miner_conf", {**conf, "miner-mode": 0})
        s.clock.now_ns += 60 * SECOND
        assert (await s.ask("summary"))["SUMMARY"][0]["GHS 5s"] < 50_000
        s.clock.now_ns += 900 * SECOND
        assert (await s.ask("summary"))["SUMMARY"][0]["GHS 5s"] > 180_000


async def test_a_configuration_without_pools_leaves_the_miner_without_work() -> None:
    async with site() as s:
        await s.web("POST", "set_miner_conf", {"miner-mode": 0})
        s.clock.now_ns += 3600 * SECOND
        assert (await s.ask("summary"))["SUMMARY"][0]["GHS 5s"] == 0
        assert (await s.ask("pools"))["POOLS"][0]["Status"] == "Deed"


@pytest.mark.parametrize("body", [{"miner-mode": 9}, {"miner-mode": "1"}, [1]])
async def test_a_wrong_mode_is_refused_and_changes_nothing(body: object) -> None:
    async with site() as s:
        refused = await s.web("POST", "set_miner_conf", body)
        assert refused.json()["stats"] == "error"
        assert (await s.web("GET", "get_miner_conf")).json()["bitmain-work-mode"] == "0"


async def test_web_summary_stats_and_new_api_agree() -> None:
    async with site(models=(S21,)) as s:
        stats = (await s.web("GET", "stats")).json()["STATS"][0]
        new_api = json.loads((await s.raw(b'{"command":"stats","new_api":true}')).rstrip(b"\0"))
        assert new_api["STATS"][0] == stats
        assert stats["rate_unit"] == "GH/s"
        summary = (await s.web("GET", "summary")).json()["SUMMARY"][0]
        assert summary["rate_5s"] == stats["rate_5s"]


async def test_blink_and_reboot() -> None:
    async with site() as s:
        assert (await s.web("POST", "blink", {"blink": "true"})).json() == {"code": "B000"}
        assert (await s.web("GET", "get_blink_status")).json() == {"blink": True}
        assert (await s.web("POST", "blink", {"blink": "false"})).json() == {"code": "B100"}
        with pytest.raises(httpx.TransportError):
            await s.web("GET", "reboot")
        with pytest.raises(httpx.TransportError):
            await s.web("GET", "get_miner_conf")
        s.clock.now_ns += 50 * SECOND
        assert (await s.web("GET", "get_miner_conf")).status_code == 200


async def test_hung_hangs_dead_resets_and_heals() -> None:
    async with site() as s:
        s.fleet.inject(FaultKind.HUNG, [0], for_s=10)
        s.fleet.inject(FaultKind.DEAD, [1])
        reader, writer = await asyncio.open_connection("127.64.0.1", s.ports.port)
        writer.write(b'{"command":"version"}')
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            assert await s.raw(b'{"command":"version"}', "127.64.0.2") == b""
        before_j = s.fleet.truth()[1].energy_j
        s.clock.now_ns += 10 * SECOND
        assert s.fleet.truth()[1].energy_j == before_j
        assert (await s.ask("version"))["VERSION"]
        s.fleet.clear([1])
        s.clock.now_ns += 60 * SECOND
        assert (await s.ask("version", "127.64.0.2"))["VERSION"]


async def test_a_lying_miner_reports_sleep_and_hashes_on() -> None:
    async with site() as s:
        s.fleet.inject(FaultKind.LYING, [0])
        conf = (await s.web("GET", "get_miner_conf")).json()
        slept = await s.web("POST", "set_miner_conf", {**conf, "miner-mode": 1})
        assert slept.json()["stats"] == "success"
        s.clock.now_ns += 600 * SECOND
        assert (await s.web("GET", "get_miner_conf")).json()["bitmain-work-mode"] == "1"
        assert (await s.ask("summary"))["SUMMARY"][0]["GHS 5s"] > 180_000
        assert s.fleet.truth()[0].power_w > 3000


def fleet_of(count: int, faults: str = "", seed: int = 0) -> Fleet:
    spec = FleetSpec(count=count, models=(S21,), seed=seed, faults=parse_shares(faults))
    return Fleet(spec, now_ns=lambda: 0, wall_s=lambda: 0.0)


def test_garbage_is_never_a_whole_answer_and_slow_is_late() -> None:
    fleet = fleet_of(8)
    whole = fleet.cgminer(0, b'{"command":"summary"}').payload
    fleet.inject(FaultKind.GARBAGE, range(4))
    fleet.inject(FaultKind.SLOW, [4])
    for index in range(4):
        with pytest.raises(ValueError, match=r"."):
            json.loads(fleet.cgminer(index, b'{"command":"summary"}').payload.rstrip(b"\0"))
    slow = fleet.cgminer(4, b'{"command":"summary"}')
    assert slow.delay_s == 5.0
    assert len(slow.payload) == pytest.approx(len(whole), abs=60)


def test_shares_of_faults_are_dealt_by_the_seed() -> None:
    def ill(seed: int) -> list[int]:
        fleet = fleet_of(200, "hung=0.05,dead=0.1", seed)
        return [n for n, row in enumerate(fleet.truth()) if row.fault is not None]

    assert len(ill(1)) == 30
    assert ill(1) == ill(1) != ill(2)


@pytest.mark.parametrize("text", ["hung", "hung=2", "sick=0.1", "hung=0.6,dead=0.6", "hung=nan"])
def test_wrong_shares_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="faults"):
        parse_shares(text)


@pytest.mark.parametrize("base", ["10.0.0.0", "nonsense", "127.255.255.254", "128.0.0.1"])
def test_addresses_outside_loopback_are_refused(base: str) -> None:
    with pytest.raises(SettingError, match="base"):
        Fleet(FleetSpec(count=4, models=(S21,), base=base), now_ns=lambda: 0, wall_s=lambda: 0.0)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_get_an_answer(data: bytes) -> None:
    outcome = fleet_of(1).cgminer(0, data)
    assert outcome.action is Action.ANSWER
    assert outcome.payload.endswith(b"\0")


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=10))
def test_arbitrary_bytes_never_break_the_http_reader(data: bytes, cuts: list[int]) -> None:
    buffer = bytearray()
    for cut in [*cuts, 10_000]:
        buffer += data[:cut]
        data = data[cut:]
        before = len(buffer)
        taken = http_wire.take_request(buffer)
        assert len(buffer) < before or not isinstance(taken, http_wire.HttpRequest)


@given(
    method=st.sampled_from(["GET", "POST"]),
    body=st.binary(max_size=200),
    path=st.from_regex(r"/[a-z_]{1,20}\.cgi", fullmatch=True),
)
def test_whole_requests_are_read_whatever_the_cut(method: str, body: bytes, path: str) -> None:
    head = f"{method} {path}?x=1 HTTP/1.1\r\nHost: m\r\nContent-Length: {len(body)}\r\n\r\n"
    data = head.encode() + body
    buffer = bytearray(data[:-1])
    if body or len(data) > len(head):
        assert http_wire.take_request(buffer) is None
    buffer = bytearray(data + b"GET")
    request = http_wire.take_request(buffer)
    assert isinstance(request, http_wire.HttpRequest)
    assert (request.method, request.path, request.body) == (method, path, body)
    assert buffer == b"GET"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"x" * 9000, 431),
    ],
)
def test_refused_requests_have_their_status(head: bytes, status: int) -> None:
    refused = http_wire.take_request(bytearray(head))
    assert refused == http_wire.HttpRefused(status)


def test_control_sets_and_clears_faults_and_tells_the_truth() -> None:
    fleet = fleet_of(3)
    assert obey(fleet, b'{"do":"fault","kind":"hung","miners":[1]}').ok
    answer = obey(fleet, b'{"do":"truth"}')
    assert answer.truth is not None
    assert [row.fault for row in answer.truth] == [None, FaultKind.HUNG, None]
    assert answer.truth[0].mode is WorkMode.NORMAL
    assert obey(fleet, b'{"do":"clear","miners":[1]}').ok
    assert fleet.truth()[1].fault is None


@pytest.mark.parametrize(
    "line", [b"", b"{", b'{"do":"dance"}', b'{"do":"clear","miners":[99]}', b'{"do":"fault"}']
)
def test_wrong_control_messages_are_refused(line: bytes) -> None:
    answer = obey(fleet_of(3), line)
    assert not answer.ok
    assert answer.error


def test_the_program_serves_at_once_and_leaves_the_truth(tmp_path: Path) -> None:
    truth, control = tmp_path / "truth.jsonl", tmp_path / "control"
    command = [sys.executable, "-m", "simulators", "asic", "--count", "300", "--port", "0"]
    options = ["--web-port", "0", "--json", "--truth", str(truth), "--control", str(control)]
    with subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["count"] == 300
        assert ready["port"] != ready["web_port"]
        process.send_signal(signal.SIGTERM)
        totals = json.loads(process.stdout.readline())
        assert process.wait(5) == 0
    rows = [json.loads(line) for line in truth.read_text().splitlines()]
    assert len(rows) == 300
    assert sum(row["energy_j"] for row in rows) == pytest.approx(totals["energy_j"], abs=1)


def test_a_wrong_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["asic", "--model", "s22"]) == 2
    assert "model" in capsys.readouterr().err

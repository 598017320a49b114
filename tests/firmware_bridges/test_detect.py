"""Probing machines without configuration: known, silent and hostile ones, and the recorder."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from firmware_bridges.targets import TARGETS_MAX, TargetError, addresses_of
from firmware_bridges.tool import main
from simulators.asic_faults import FaultKind
from simulators.asic_fleet import Fleet, FleetSpec
from simulators.asic_models import models_by_name
from simulators.asic_server import Ports, serve


@asynccontextmanager
async def fleet_of(models: str, count: int, **ill: FaultKind) -> AsyncIterator[Ports]:
    spec = FleetSpec(count=count, models=models_by_name(models), seed=5)
    fleet = Fleet(spec, now_ns=lambda: 10**15, wall_s=lambda: 1_800_000_000.0)
    for place, kind in ill.items():
        fleet.inject(kind, [int(place.removeprefix("n"))])
    async with serve(fleet, port=0, web_port=0, v3_port=0) as ports:
        yield ports


def options(ports: Ports) -> list[str]:
    given = {"--port": ports.port, "--web-port": ports.web_port, "--v3-port": ports.v3_port}
    return [word for name, port in given.items() for word in (name, str(port))]


async def test_a_range_of_different_machines_is_named_and_the_silent_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with fleet_of("s21,a1566,s19xp-epic,s21-mara", 5, n4=FaultKind.DEAD) as ports:
        words = ["test", "127.64.0.1-6", "--json", *options(ports)]
        assert await asyncio.to_thread(main, words) == 0
    rows = json.loads(capsys.readouterr().out)["miners"]
    families = [None if row["miner"] is None else row["miner"]["family"] for row in rows]
    assert families == ["antminer-stock", "avalon", "epic", "marafw", None, None]
    assert all(row["miner"]["is_mining"] for row in rows[:4])
    assert rows[0]["miner"]["mac"] == "02:00:05:00:00:00"


async def test_hostile_machines_cost_their_own_deadlines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with fleet_of("s21", 3, n0=FaultKind.FLOOD, n1=FaultKind.DEEP) as ports:
        words = ["test", "127.64.0.1-3", *options(ports)]
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(main, words) == 0
    said = capsys.readouterr().out
    assert "Antminer S21" in said
    assert "2 of 3 addresses do not answer as a miner" in said


async def test_a_recording_is_decoded_as_the_machine_was_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rec.json"
    async with fleet_of("s21-mara", 1) as ports:
        words = ["record", "127.64.0.1", str(path), *options(ports)]
        assert await asyncio.to_thread(main, words) == 0
    recorded = json.loads(path.read_text())
    assert recorded["schema"] == "asic-fixture/1"
    assert "pass" not in json.dumps(recorded["exchanges"]) or "redacted" in path.read_text()
    capsys.readouterr()
    assert main(["decode", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["family"], found["is_mining"], found["parts_missing"]) == ("marafw", True, [])


async def test_nothing_there_is_a_problem_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    async with fleet_of("s21", 1) as ports:
        words = ["test", "127.64.0.9", *options(ports)]
        assert await asyncio.to_thread(main, words) == 1
    assert "1 of 1 addresses" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["10.0.0.5"], ["10.0.0.5"]),
        (["10.0.0.5-7"], ["10.0.0.5", "10.0.0.6", "10.0.0.7"]),
        (["10.0.0.254-10.0.1.1"], ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1"]),
        (["10.0.0.0/30", "10.0.0.1"], ["10.0.0.1", "10.0.0.2"]),
    ],
)
def test_targets(words: list[str], found: list[str]) -> None:
    assert list(addresses_of(words)) == found


@pytest.mark.parametrize("word", ["x", "10.0.0.9-3", "10.0.0.0/99", "10.0.0.0/8", "1.2.3.4-"])
def test_bad_targets_are_refused_by_name(word: str) -> None:
    with pytest.raises(TargetError, match=word.partition("/")[0].partition("-")[0]):
        addresses_of([word])
    assert TARGETS_MAX == 65_536

"""`hcp-agent regret` and `report`: text, JSON, picture, and what cannot be done."""

import json
from pathlib import Path

import pytest

from edge_agent.__main__ import main
from tests.edge_agent.history.day_world import DayWorld
from tests.edge_agent.services.brain_world import build_site
from tests.edge_agent.services.replay_world import HOUR_S


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six hours of two miners, one of them silent for two."""
    path = tmp_path_factory.mktemp("day")

    async def script(world: DayWorld) -> None:
        world.miners.silent.add("a1")

    DayWorld(path / "core.sqlite", build_site(asics=2, gpus=0)).live(script, 6 * HOUR_S)
    return path


def run(folder: Path, *words: str) -> int:
    return main([words[0], "--data-dir", str(folder), "--day", "2026-03-01", *words[1:]])


def test_regret_is_told_to_people_and_machines(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "regret") == 0
    text = capsys.readouterr().out
    assert "s1  2026-03-01  2 devices" in text
    for word in ("realised", "clairvoyant", "information", "switching", "faults", "holds"):
        assert word in text
    assert "06:00 .. 00:00" in text
    assert run(folder, "regret", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["v"] == 1
    cents = [round(100 * number) for number in value["parts"].values()]
    assert sum(cents) == round(100 * value["regret_usd"]) > 0
    assert value["parts"]["faults"] == pytest.approx(value["regret_usd"], abs=0.1)


def test_the_report_holds_the_regret_and_more(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "regret", "--json") == 0
    money = json.loads(capsys.readouterr().out)
    assert run(folder, "report", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["v"], value["regret"]) == (1, money)
    assert value["top_devices"][0]["device_id"] == "a1"
    assert run(folder, "report") == 0
    text = capsys.readouterr().out
    for word in ("energy", "switches", "curtailed", "hours S21", "most regret", "cap"):
        assert word in text


def test_the_linear_programme_is_asked_and_stdout_stays_json(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highspy", reason="the extra `hindsight` is not installed")
    assert run(folder, "regret", "--check-lp", "--json") == 0
    value = json.loads(capfd.readouterr().out)
    assert value["lp"]["equal"] is True
    assert value["lp"]["devices"] == 2


def test_the_day_is_drawn(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    for name in ("a.svg", "b.svg"):
        assert run(folder, "report", "--plot", str(tmp_path / name)) == 0
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert 'id="realised"' in text
    assert 'id="clairvoyant"' in text


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--day", "yesterday"], 2, "YYYY-MM-DD"),
        (["--day", "2026-03-05"], 1, "no row of 2026-03-05"),
        (["--plot", "a.gif"], 2, ".svg or .png"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], code: int, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "regret", *words) == code
    assert told in capsys.readouterr().err

"""Pictures: what is drawn, read back from the SVG; the same bytes again; a missing library."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from edge_agent.__main__ import main
from edge_agent.backtest import plot
from edge_agent.backtest.plot import Picture, PlotError, check_plot, draw
from tests.edge_agent.backtest.market_files import write_market

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "docs" / "sites" / "reference.toml"
SVG = "{http://www.w3.org/2000/svg}"
LABELS = {"price, USD/MWh", "miners on, %", "power, MW", "profit above S1, USD"}


def picture(points: int) -> Picture:
    rng = np.random.default_rng(2)
    price = rng.normal(40.0, 10.0, points)
    price[points // 2] = 4_900.0
    return Picture(
        title="t",
        at_s=1_700_000_000 + 900 * np.arange(points),
        price=price,
        break_even=np.full(points, 120.0),
        mining=np.where(price > 120.0, 0.0, 1.0),
        load_mw=np.full(points, 50.0),
        cap_mw=np.full(points, 60.0),
        above_s1_usd={"ours": rng.normal(1.0, 1.0, points), "clairvoyant": np.ones(points)},
    )


def lines_of(path: Path) -> dict[str, int]:
    """Give the number of vertices of each named line."""
    out: dict[str, int] = {}
    for group in ET.parse(path).iter(f"{SVG}g"):
        line = group.find(f"{SVG}path")
        if line is not None and group.get("id"):
            out[group.get("id") or ""] = len(re.findall(r"[ML]", line.get("d") or ""))
    return out


def texts_of(path: Path) -> set[str]:
    return {"".join(row.itertext()).strip() for row in ET.parse(path).iter(f"{SVG}text")}


def test_every_line_has_its_points_and_every_axis_its_label(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    draw(picture(96), path)
    lines = lines_of(path)
    # A step has two vertices per interval, but for the last one; a plain line has one.
    for name in ("price", "break-even", "miners-on", "load", "cap"):
        assert lines[name] == 2 * 96 - 1, name
    assert (lines["ours"], lines["clairvoyant"]) == (96, 96)
    assert texts_of(path) >= LABELS | {"time, UTC", "t", "price", "break-even", "S1"}


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw(picture(50), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    draw(picture(51), tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_bytes() != (tmp_path / "a.svg").read_bytes()


def test_a_long_span_is_drawn_as_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "POINTS_MAX", 40)
    path = tmp_path / "a.svg"
    draw(picture(96), path)
    assert lines_of(path)["ours"] == 32
    assert "time, UTC; means of 3 intervals" in texts_of(path)


def test_unknown_time_is_a_hole(tmp_path: Path) -> None:
    made = picture(20)
    made.load_mw[5:8] = np.nan
    draw(made, tmp_path / "a.svg")
    assert lines_of(tmp_path / "a.svg")["load"] < 2 * 20 - 1
    assert lines_of(tmp_path / "a.svg")["cap"] == 2 * 20 - 1


def test_a_back_test_is_drawn_and_a_wrong_name_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_market(tmp_path / "m", ["20", "3000", "20", "20"], gpu=True)
    options = ["backtest", "--market", str(folder), "--site", str(REFERENCE), "--policy", "hcp"]
    path = tmp_path / "a.svg"
    assert main([*options, "--plot", str(path)]) == 0
    assert lines_of(path)["hcp"] == lines_of(path)["clairvoyant"] == 4
    assert main([*options, "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main([*options, "--plot", str(tmp_path / "a.gif")]) == 2
    assert ".svg or .png" in capsys.readouterr().err
    assert main([*options, "--plot", str(tmp_path / "none" / "a.svg")]) == 1
    assert "none" in capsys.readouterr().err


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotError, match="install the extra `plots`"):
        check_plot(tmp_path / "a.svg")
    folder = write_market(tmp_path / "m", ["20", "20"])
    options = ["backtest", "--market", str(folder), "--site", str(REFERENCE)]
    assert main([*options, "--plot", str(tmp_path / "a.svg")]) == 1
    assert "extra `plots`" in capsys.readouterr().err

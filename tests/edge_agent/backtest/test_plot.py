"""Pictures: what is drawn, read back from the SVG; the same bytes again; a missing library."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from msgspec import structs

from edge_agent.__main__ import main
from edge_agent.backtest import plot
from edge_agent.backtest.frame import Wish, load_frame
from edge_agent.backtest.picture import backtest_picture
from edge_agent.backtest.plot import Picture, PlotError, check_plot, draw
from edge_agent.backtest.policies_fleet import build_ground, has_fleet, settle_policy
from edge_agent.backtest.rows import Demand, build_rows
from edge_agent.core.site import Limits, Site
from protocol.market import GpuRate
from tests.edge_agent.backtest.market_files import write_market
from tests.edge_agent.backtest.test_fleet import DUTIES, site_of, spiky

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


def heights_of(path: Path, name: str) -> list[float]:
    """Give the vertical places of all vertices of a named line or area, in units of the picture."""
    (group,) = [row for row in ET.parse(path).iter(f"{SVG}g") if row.get("id") == name]
    drawn = " ".join(row.get("d") or "" for row in group.iter(f"{SVG}path"))
    # An area is defined once and used at a place of its own.
    use = next(group.iter(f"{SVG}use"), None)
    down = 0.0 if use is None else float(use.get("y") or 0.0)
    return [down + float(y) for y in re.findall(r"[ML] ?[-\d.]+ ([-\d.]+)", drawn)]


def test_the_shares_of_modes_are_stacked_up_to_the_line_of_what_is_on(tmp_path: Path) -> None:
    made = structs.replace(
        picture(30),
        mining=np.full(30, 0.75),
        modes={"low": np.full(30, 0.25), "normal": np.full(30, 0.5)},
    )
    path = tmp_path / "a.svg"
    draw(made, path)
    low, normal = heights_of(path, "mode-low"), heights_of(path, "mode-normal")
    (on,) = set(heights_of(path, "miners-on"))
    # Downwards is larger: normal begins where low ends, and is twice as high.
    assert min(normal) == pytest.approx(on, abs=0.01)
    assert max(normal) == pytest.approx(min(low), abs=0.01)
    assert max(normal) - min(normal) == pytest.approx(2.0 * (max(low) - min(low)), abs=0.01)
    assert {"mode low", "mode normal"} <= texts_of(path)
    draw(picture(30), path)
    assert not any(name.startswith("mode-") for name in lines_of(path))


def test_modes_of_several_classes_have_a_colour_each(tmp_path: Path) -> None:
    modes = {f"m{number}": np.full(30, 0.1) for number in range(9)}
    path = tmp_path / "a.svg"
    draw(structs.replace(picture(30), mining=np.full(30, 0.9), modes=modes), path)
    groups = [row for row in ET.parse(path).iter(f"{SVG}g") if "mode-m" in row.get("id", "")]
    drawn = "".join(ET.tostring(row, encoding="unicode") for row in groups)
    assert len(set(re.findall(r"fill: (#[0-9a-f]{6})", drawn))) == len(modes)


def test_gpus_without_miners_are_drawn_under_a_cap_that_binds(tmp_path: Path) -> None:
    plain = site_of(asics=0, gpus=4)
    tight = Site("t", plain.classes, plain.devices, Limits(power_cap_w=4_500.0))
    frame = load_frame(write_market(tmp_path / "m", ["20"] * 40, gpu=True), Wish())
    rows = build_rows(
        tight,
        frame,
        (GpuRate(device_class="H100", serve_usd_per_h=2.0, mine_usd_per_h=0.2),),
        Demand(slices=2),
    )
    assert has_fleet(tight, None)
    made = backtest_picture(tight, rows, frame, "s0-always-mine", "nowcast")
    assert made.mining.tolist() == [1.0] * 40
    assert (made.load_mw <= 0.0045).all()


def test_a_site_with_modes_and_duties_is_drawn_by_its_steps_under_its_cap(tmp_path: Path) -> None:
    site = site_of()
    frame = load_frame(write_market(tmp_path / "m", spiky(200), gpu=True), Wish())
    rows = build_rows(site, frame, (), Demand(slices=2))
    made = backtest_picture(site, rows, frame, "hcp", "nowcast", DUTIES)
    settled = settle_policy("hcp", build_ground(site, rows, frame, DUTIES, "nowcast"))
    assert list(made.modes) == ["low", "normal", "high"]
    first = settled.counts[0] / 200.0
    assert made.mining == pytest.approx(first)
    assert made.modes["high"] == pytest.approx(settled.counts[2] / 200.0)
    assert made.load_mw == pytest.approx(settled.account.load_w / 1e6)
    assert (made.load_mw <= made.cap_mw + 1e-6).all()
    path = tmp_path / "a.svg"
    draw(made, path)
    # On one axis: nowhere does the load's line lie above the cap's.
    pairs = zip(heights_of(path, "load"), heights_of(path, "cap"), strict=True)
    assert all(load >= cap - 0.01 for load, cap in pairs)
    assert len(set(made.cap_mw.tolist())) > 1


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

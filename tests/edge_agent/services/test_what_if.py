"""What if: equal values decide equally, caps hold there too, money is what the sheet says."""

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.__main__ import main
from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.site import CURTAILED, MINE, SERVE, DeviceClass, Feeder, Limits, Site
from edge_agent.core.snapshot import state_hash
from edge_agent.services.journal_walk import Walk
from edge_agent.services.override_keys import (
    OverrideError,
    Overrides,
    keys_of,
    parse_overrides,
)
from edge_agent.services.overrides import other_site
from edge_agent.services.what_if import Pair, WhatIfReport, pairs, what_if
from edge_agent.storage.journal_reader import JournalReader
from protocol.resource import DeviceKind
from tests.edge_agent.backtest.test_fleet import CURVE
from tests.edge_agent.core.plant import make_site
from tests.edge_agent.services.brain_world import START, build_site
from tests.edge_agent.services.replay_world import (
    DAY_S,
    HOUR_S,
    JournalWorld,
    live,
    spiky,
)

TURN_S = 300.0
# Facts of the world that make a device count for more: nobody decided them.
OUTSIDE = (f.NodeLost, f.NodeSaid, f.Booted, f.ReadingsSeen)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of a small site with leases, spikes, faults and restarts."""
    path = tmp_path_factory.mktemp("days") / "core.sqlite"
    site = build_site(asics=6, gpus=4)
    live(JournalWorld(path, site=site, turn_s=TURN_S, price_at=spiky(1)), days=2)
    return path


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day of two miners at one price: nothing happens but mining."""
    path = tmp_path_factory.mktemp("calm") / "core.sqlite"
    world = JournalWorld(path, site=build_site(asics=2, gpus=0), turn_s=TURN_S)
    world.quiet(DAY_S)
    return path


def ask(path: Path, *texts: str) -> WhatIfReport:
    reader = JournalReader(path)
    overrides = parse_overrides(list(texts), Walk(reader).first_site())
    report = what_if(reader, texts, overrides)
    reader.close()
    return report


def both(path: Path, *texts: str) -> list[Pair]:
    reader = JournalReader(path)
    overrides = parse_overrides(list(texts), Walk(reader).first_site())
    return list(pairs(reader, overrides))


@pytest.mark.parametrize(
    "texts",
    [
        (),
        ("market.price_usd_per_mwh=+0",),
        ("limits.power_cap_w=50000", "class.S21.dwell_s=30"),
        ("class.S21.count=6", "market.H100.serve_usd_per_h=x1"),
    ],
)
def test_unchanged_values_give_no_difference(days: Path, texts: tuple[str, ...]) -> None:
    report = ask(days, *texts)
    assert (report.changed, report.changes, report.difference_usd) == (0, (), 0.0)
    assert report.profit_was_usd == report.profit_would_usd
    for pair in both(days, *texts):
        assert state_hash(pair.site, pair.state) == state_hash(pair.step.site, pair.step.state)


@pytest.mark.parametrize("cap_w", [6_000.0, 10_000.0, 17_000.0, 22_000.0])
def test_a_lower_cap_is_never_violated(days: Path, cap_w: float) -> None:
    """Above the cap only at the start, and when something outside counts for more than before."""
    reached = False
    above = 0
    for pair in both(days, f"limits.power_cap_w={cap_w:.0f}"):
        assert pw.cap_w(pair.site, pair.state) <= cap_w
        counted, before = (
            pw.total(pw.counted_w(pair.site, state)) for state in (pair.state, pair.before)
        )
        if not reached:
            reached = counted <= cap_w
            continue
        above += counted > cap_w
        if counted > cap_w and before <= cap_w:
            assert any(isinstance(fact, OUTSIDE) for fact in pair.step.row.facts), pair.step.seq
        # What devices say they draw stands below it always.
        assert pw.read_w(pair.site, pair.state) <= cap_w
    assert reached
    report = ask(days, f"limits.power_cap_w={cap_w:.0f}")
    assert report.over_cap_would_s <= 0.01 * 2 * DAY_S
    assert report.changed > 0
    assert report.difference_usd < 0.0
    assert report.by_conditions_usd == pytest.approx(0.0, abs=1e-9)


def test_a_dearer_price_costs_what_the_meter_says(calm: Path) -> None:
    """Two miners at 3,450 W behind a PUE of 1.05 for a day, at 20 USD/MWh more."""
    report = ask(calm, "market.price_usd_per_mwh=+20")
    mwh = 2 * 3_450.0 * 1.05 * (DAY_S / HOUR_S) / 1e6
    assert report.changed == 0
    # The first minutes, before the miners were first read, are the two per cent.
    assert report.difference_usd == pytest.approx(-20.0 * mwh, rel=0.02)
    assert report.by_decisions_usd == 0.0


def test_a_pool_fee_moves_the_revenue_by_its_share(calm: Path) -> None:
    report = ask(calm, "class.S21.pool_fee=0.01")
    per_ths_day = (3.125 + 0.1) * 65_000.0 * 86_400.0 / (83.1e12 * 2**32) * 1e12
    assert report.difference_usd == pytest.approx(2 * 200.0 * per_ths_day * 0.01, rel=0.02)


def test_twice_the_fleet_earns_twice(calm: Path) -> None:
    report = ask(calm, "class.S21.count=x2")
    assert report.profit_would_usd == pytest.approx(2.0 * report.profit_was_usd, rel=1e-9)
    assert report.by_conditions_usd is None
    fewer = ask(calm, "class.S21.count=1")
    assert fewer.profit_would_usd == pytest.approx(0.5 * fewer.profit_was_usd, rel=1e-9)


def test_a_spike_that_was_not_there_curtails_all_and_a_cheap_day_none(days: Path) -> None:
    dear = both(days, "market.price_usd_per_mwh==20000")[-1]
    assert set(dear.state.activity[dear.site.is_asic]) == {CURTAILED}
    cheap = both(days, "market.price_usd_per_mwh==1")
    late = [pair for pair in cheap if pair.step.seq > 50]
    reasons = {
        fact.reason for pair in late for fact in pair.acts if isinstance(fact, f.SwitchOpened)
    }
    assert "gain" in reasons  # miners come back from the order of the grid
    assert not any(
        isinstance(fact, f.SwitchOpened) and fact.to_activity.value == "curtailed"
        and fact.reason in ("gain", "ski_rental")
        for pair in late
        for fact in pair.acts
    )  # fmt: skip


def test_an_order_to_curtail_all_along_leaves_nothing_mining(days: Path) -> None:
    found = both(days, "policy.curtail=true")
    assert not (found[-1].state.activity == MINE).any()
    assert (found[-1].step.state.activity == MINE).any()


def test_leases_are_served_in_the_other_world_too(days: Path) -> None:
    """Other devices may serve, as many as were asked for; leases end when the hub ends them."""
    served = closed = 0
    for pair in both(days, "market.H100.mine_usd_per_h=x9", "class.H100.dwell_s=60"):
        served = max(served, int(np.count_nonzero(pair.state.activity == SERVE)))
        closed += sum(isinstance(fact, f.LeaseClosed) for fact in pair.acts)
    assert served >= 2
    was = sum(isinstance(fact, f.LeaseClosed) for pair in both(days) for fact in pair.step.row.acts)
    assert closed == was > 0


def test_a_span_starts_where_it_is_asked_to(days: Path) -> None:
    reader = JournalReader(days)
    site = Walk(reader).first_site()
    from_at, to_at = START + timedelta(hours=20), START + timedelta(hours=30)
    report = what_if(
        reader,
        ("limits.power_cap_w=10000",),
        parse_overrides(["limits.power_cap_w=10000"], site),
        from_at=from_at,
        to_at=to_at,
    )
    assert report.from_at is not None
    assert report.to_at is not None
    assert from_at <= report.from_at < report.to_at <= to_at
    assert all(change.at >= from_at for change in report.changes)
    assert report.changed > 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("limits.power_capw=1", "did you mean limits.power_cap_w?"),
        ("class.S21.pool_fees=0.01", "did you mean class.S21.pool_fee?"),
        ("class.S21.ski_rental=much", "want a number"),
        ("class.S21.ski_rental=nan", "want a number"),
        ("limits.power_cap_w=0", "power_cap_w"),
        ("limits.power_cap_w", "KEY=VALUE"),
        ("limits.quarantine_after=2.5", "int"),
        ("limits.safe_policy=dance", "safe_policy"),
        ("policy.curtail=maybe", "true or false"),
        ("class.S21.count=1.5", "class.S21.count"),
        ("market.btc_price_usd==-5", "btc_price_usd"),
        ("market.difficulty=x0", "difficulty"),
        ("market.H100.mine_usd_per_h=-1", "mine_usd_per_h"),
        ("feeder.north.power_cap_w=1", "no key feeder.north.power_cap_w"),
        ("class.S21.pue_by_ambient_c=10", "TEMPERATURE:PUE"),
        ("class.S21.pue_by_ambient_c=30:1.1,10:1.2", "must ascend"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, word: str, days: Path) -> None:
    reader = JournalReader(days)
    site = Walk(reader).first_site()
    with pytest.raises(OverrideError) as caught:
        list(pairs(reader, parse_overrides([text], site)))
    assert word in str(caught.value)


def test_a_key_twice_or_without_a_value_to_start_from_is_refused() -> None:
    site = make_site(ramp_w_per_min=None)
    with pytest.raises(OverrideError):
        parse_overrides(["limits.power_cap_w=1e6", "limits.power_cap_w=2e6"], site)
    with pytest.raises(OverrideError):
        other_site(site, parse_overrides(["limits.ramp_w_per_min=x2"], site))
    other, _ = other_site(site, parse_overrides(["limits.ramp_w_per_min=7"], site))
    assert other.limits.ramp_w_per_min == 7.0


def fed_site() -> Site:
    """Two kinds of devices on feeders, modes that the agent sets, and a table of PUE."""
    plain = build_site(asics=2, gpus=2)
    classes = tuple(
        structs.replace(row, modes=CURVE, set_modes=True, pue_by_ambient_c=((0.0, 1.1),))
        if row.model.kind is DeviceKind.ASIC
        else row
        for row in plain.classes
    )
    names = ("north", "south")
    devices = tuple(
        structs.replace(row, feeder=names[at % 2]) for at, row in enumerate(plain.devices)
    )
    feeders = tuple(Feeder(name=name, power_cap_w=50e3) for name in names)
    return Site(plain.site_id, classes, devices, plain.limits, feeders)


def test_every_key_can_be_set_and_reaches_its_field() -> None:
    site = fed_site()
    # A field of words takes one of the words of its type.
    words = {
        f"limits.{name}": get_args(hint)[-1]
        for name, hint in get_type_hints(Limits).items()
        if get_origin(hint) is Literal
    } | {"policy.curtail": "true"}
    keys = keys_of(site)
    assert len({key.text for key in keys}) == len(keys)
    for key in keys:
        value = words.get(key.text, "3")
        if key.field == "set_modes":
            value = "true"
        elif key.field == "pue_by_ambient_c":
            value = "5:1.2,30:1.3"
        elif key.family == "mode":
            value = "x1.001"  # one that keeps the curve
        made = parse_overrides([f"{key.text}={value}"], site)
        assert made != Overrides()
        other, source = other_site(site, made)
        at = other.class_index(key.owner)
        row = None if at is None else other.classes[at]
        if key.family == "limits":
            assert getattr(other.limits, key.field) in (3, words.get(key.text))
        elif key.family == "feeder":
            assert [one.power_cap_w for one in other.feeders if one.name == key.owner] == [3.0]
            assert sum(one.power_cap_w for one in other.feeders) == 50e3 + 3.0
        elif key.family == "mode":
            assert row is not None
            (point,) = [one for one in row.modes if one.mode == key.mode]
            (was,) = [one for one in CURVE if one.mode == key.mode]
            assert getattr(point, key.field) == pytest.approx(1.001 * getattr(was, key.field))
        elif key.field == "pue_by_ambient_c":
            assert row is not None
            assert row.pue_by_ambient_c == ((5.0, 1.2), (30.0, 1.3))
        elif key.family == "class":
            assert row is not None
            owner = row if key.field in set(DeviceClass.__struct_fields__) else row.model
            assert getattr(owner, key.field) == (True if key.field == "set_modes" else 3)
        elif key.family == "count":
            assert len(source) == len(other) == 5


def test_every_field_of_a_site_has_its_key_and_tells_its_value() -> None:
    site = fed_site()
    told = {key.text: key.value for key in keys_of(site)}
    for name in structs.asdict(site.limits):
        assert f"limits.{name}" in told
    for row in site.classes:
        # A class is told apart by its name and model; modes are named each.
        for name in set(DeviceClass.__struct_fields__) - {"model", "name", "modes"}:
            assert f"class.{row.class_name}.{name}" in told
    assert told["feeder.south.power_cap_w"] == "50000"
    assert told["class.S21.modes.low.power_w"] == "1950"
    assert told["class.S21.pue_by_ambient_c"] == "0:1.1"
    assert told["class.S21.set_modes"] == "true"
    # What is shown can be given back, and changes nothing.
    texts = [f"{key}={value}" for key, value in told.items() if value is not None]
    other, _ = other_site(site, parse_overrides(texts, site))
    assert (other.classes, other.limits, other.feeders) == (
        site.classes, site.limits, site.feeders,
    )  # fmt: skip


def test_a_curve_that_loses_a_mode_is_refused() -> None:
    """A journal names modes by their place on the curve."""
    site = fed_site()
    with pytest.raises(OverrideError, match="the curve would have the modes"):
        other_site(site, parse_overrides(["class.S21.modes.normal.power_w=4400"], site))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["", ","]), st.text(max_size=8))
def test_a_table_that_is_none_is_refused_by_name(head: str, text: str) -> None:
    site = fed_site()
    given = f"{head}{text}".strip()
    if not given or given.lower() == "none":
        return
    try:
        made = parse_overrides([f"class.S21.pue_by_ambient_c={given}"], site)
        other_site(site, made)
    except OverrideError as exc:
        assert "pue_by_ambient_c" in str(exc)


def test_a_smaller_feeder_holds_in_the_other_world_and_alone(tmp_path: Path) -> None:
    """Half of the miners hang on a feeder that would have had room for one of three."""
    path = tmp_path / "core.sqlite"
    plain = build_site(asics=6, gpus=0)
    devices = tuple(
        structs.replace(row, feeder="north" if at % 2 else "")
        for at, row in enumerate(plain.devices)
    )
    north = Feeder(name="north", power_cap_w=60e3)
    site = Site(plain.site_id, plain.classes, devices, plain.limits, (north,))
    world = JournalWorld(path, site=site, turn_s=TURN_S)
    world.quiet(DAY_S / 4)
    report = ask(path, "feeder.north.power_cap_w=5000")
    assert report.changed > 0
    assert report.difference_usd < 0.0
    assert (report.over_feeder_was_s, report.over_cap_would_s) == (0.0, 0.0)
    # Above it only at the start, until the load that was there has gone.
    assert 0.0 < report.over_feeder_would_s <= 3 * TURN_S
    last = both(path, "feeder.north.power_cap_w=5000")[-1]
    mining = last.state.activity == MINE
    fed = last.site.feeder_of >= 0
    assert (int(mining[fed].sum()), int(mining[~fed].sum())) == (1, 3)
    assert (last.step.state.activity == MINE).all()
    same = ask(path, "feeder.north.power_cap_w=x1")
    assert (same.changed, same.difference_usd) == (0, 0.0)


def test_hotter_air_costs_its_pue_in_the_other_world(tmp_path: Path) -> None:
    """The journal's air at 20 C, and 10 more; the table adds 0.01 a degree."""
    path = tmp_path / "core.sqlite"
    plain = build_site(asics=2, gpus=0)
    table = ((0.0, 1.0), (50.0, 1.5))
    classes = tuple(structs.replace(row, pue_by_ambient_c=table) for row in plain.classes)
    site = Site(plain.site_id, classes, plain.devices, plain.limits)
    world = JournalWorld(path, site=site, turn_s=TURN_S)
    world.ambient_c = 20.0
    world.quiet(DAY_S / 4)
    report = ask(path, "market.ambient_c=+10")
    first = both(path)[-1].state
    price = first.market.price_usd_per_mwh
    assert price is not None
    paid = price.value + site.classes[0].adder_usd_per_mwh
    mwh = 2 * 3_450.0 * (DAY_S / 4 / HOUR_S) / 1e6
    assert report.difference_usd == pytest.approx(-0.1 * paid * mwh, rel=0.03)
    assert ask(path, "market.grid_load_mw=+10").difference_usd == 0.0


@settings(max_examples=30, deadline=None)
@given(st.floats(1e3, 1e9), st.floats(1e3, 1e9))
def test_numbers_are_added_multiplied_or_taken(was: float, step: float) -> None:
    site = build_site(cap_w=was)
    for text, wanted in ((f"+{step!r}", was + step), (f"{step!r}", step), (f"x{1.5}", was * 1.5)):
        other, _ = other_site(site, parse_overrides([f"limits.power_cap_w={text}"], site))
        assert other.limits == Limits(power_cap_w=wanted, ramp_w_per_min=1e6)


def test_the_command_says_both_worlds(
    days: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(days, tmp_path / "core.sqlite")
    words = ["replay", "--data-dir", str(tmp_path), "--to", "2026-03-01T06:00Z"]
    assert main([*words, "--what-if", "limits.power_cap_w=10000"]) == 0
    told = capsys.readouterr().out
    assert "passes differ" in told
    assert "as it would have been" in told
    assert main([*words, "--what-if", "limits.power_cap_w=10000", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["v"] == 1
    assert value["changed"] == len(value["changes"]) > 0
    assert value["difference_usd"] == pytest.approx(
        value["profit_would_usd"] - value["profit_was_usd"]
    )
    assert main([*words, "--what-if", "limits.power_cap_w=50000"]) == 0
    assert "no decision differs" in capsys.readouterr().out
    assert main([*words, "--keys"]) == 0
    assert "class.S21.pool_fee=" in capsys.readouterr().out
    assert main([*words, "--keys", "--json"]) == 0
    keys = json.loads(capsys.readouterr().out)
    assert {"key": "market.ambient_c", "value": None} in keys["keys"]
    assert main([*words, "--what-if", "limit.power_cap_w=1"]) == 2
    assert "did you mean limits.power_cap_w?" in capsys.readouterr().err


def test_the_command_replays_and_explains(
    days: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(days, tmp_path / "core.sqlite")
    at = ["--data-dir", str(tmp_path)]
    assert main(["replay", *at, "--from", "2026-03-01T03:00", "--to", "2026-03-01T06:00Z"]) == 0
    assert "are equal" in capsys.readouterr().out
    assert main(["why", "a0", *at, "--at", "2026-03-01T04:30Z"]) == 0
    told = capsys.readouterr().out
    assert "decided at 2026-03-01T04:2" in told
    assert "a0  CURTAILED" in told
    assert main(["why", "a0", *at, "--at", "2026-03-01T04:30Z", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["v"], value["device_id"], value["activity"]) == (1, "a0", "curtailed")
    assert main(["why", "nope", *at, "--at", "2026-03-01T04:30Z"]) == 1
    for words in (
        ["why", "a0", *at, "--at", "yesterday"],
        ["replay", *at, "--from", "2026-03-02", "--to", "2026-03-01"],
    ):
        assert main(words) == 2
    assert main(["replay", "--data-dir", str(tmp_path / "none"), "--json"]) == 1
    capsys.readouterr()

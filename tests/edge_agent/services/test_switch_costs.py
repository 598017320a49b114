"""Learning what switches cost: facts when the number moves, over restarts, and exact in replay."""

from datetime import timedelta
from pathlib import Path

import pytest

from edge_agent.core import facts as f
from edge_agent.core.economics import COST_SAMPLES_MIN, learnt_cost
from edge_agent.core.switching import Stage, Status, Switch, SwitchDevice
from edge_agent.services.journal_walk import Walk
from edge_agent.services.override_keys import parse_overrides
from edge_agent.services.replay import replay
from edge_agent.services.switch_costs import CostLearner
from edge_agent.services.what_if import what_if
from edge_agent.storage.journal_reader import JournalReader
from protocol.node import Phase
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.core.plant import make_site
from tests.edge_agent.services.brain_world import build_site
from tests.edge_agent.services.replay_world import HOUR_S, JournalWorld

S = 1_000_000_000


def closed(
    number: int,
    *,
    status: Status = Status.COMMITTED,
    kind: DeviceKind = DeviceKind.GPU,
    resumed: bool = False,
    strategy: str = "",
) -> Switch:
    return Switch(
        switch_id=f"s{number}",
        kind=kind,
        device_class="H100",
        to_activity=Activity.MINE,
        reason="gain",
        lease_id=None,
        all_or_none=False,
        opened_ns=number * S,
        activate_s=0.0,
        gain_usd=None,
        cost_usd=None,
        devices=(SwitchDevice("g0", "n0", Activity.IDLE, status=status, strategy=strategy),),
        stage=Stage.CLOSED,
        phase=Phase.COMMIT,
        phase_ns=number * S,
        resumed=resumed,
    )


def facts_of(learner: CostLearner, count: int, took_s: float, first: int = 0) -> list[f.SwitchCost]:
    made = [
        learner.take(closed(at), at * S + int(took_s * S)) for at in range(first, first + count)
    ]
    return [fact for fact in made if fact is not None]


def test_the_first_fact_comes_when_enough_was_seen() -> None:
    learner = CostLearner(make_site(), ())
    facts = facts_of(learner, 25, 2.0)
    assert facts[0].samples >= COST_SAMPLES_MIN
    assert facts[0].seconds == pytest.approx(2.0)
    assert (facts[0].device_class, facts[0].from_activity) == ("H100", Activity.IDLE)
    # 900 W of mining are the dearer side
    assert facts[0].energy_wh == pytest.approx(900.0 * 2.0 / 3_600.0)


def test_facts_grow_rare_while_nothing_changes_and_come_when_it_does() -> None:
    learner = CostLearner(make_site(), ())
    assert len(facts_of(learner, 600, 2.0)) < 70
    assert len(facts_of(learner, 200, 2.0, first=600)) <= 5
    moved = facts_of(learner, 60, 20.0, first=800)
    assert moved[-1].seconds > 2.5


def test_a_restarted_learner_goes_on_from_the_facts() -> None:
    first = CostLearner(make_site(), ())
    told = facts_of(first, 40, 2.0)[-1]
    second = CostLearner(make_site(), (told,))
    again = facts_of(second, 20, 2.0, first=40)
    assert again[-1].samples > told.samples
    assert again[-1].seconds == pytest.approx(2.0)
    broken = f.SwitchCost("H100", Activity.IDLE, Activity.MINE, 2.0, 40.0, None, b"\x00")
    assert CostLearner(make_site(), (broken,)).book.cells == ()


def test_miners_restarts_and_undone_switches_teach_no_latency() -> None:
    silent = CostLearner(make_site(), ())
    silent.take(closed(1, kind=DeviceKind.ASIC), 9 * S)
    silent.take(closed(2, resumed=True), 9 * S)
    assert silent.book.cells == ()
    learner = CostLearner(make_site(), ())
    learner.take(closed(3, status=Status.ROLLED_BACK), 9 * S)
    cell = learner.book.cells[0][1]
    assert (cell.done, cell.failed, cell.buckets) == (0.0, 1.0, ())


def test_what_the_node_says_of_the_strategy_is_part_of_the_key() -> None:
    learner = CostLearner(make_site(), ())
    learner.take(closed(1, strategy="resident-gate"), 2 * S)
    assert [key.strategy for key, _ in learner.book.cells] == ["resident-gate"]


def restless(at_s: float) -> float:
    """Prices by the hour at which a GPU mines, and at which it does not."""
    return 4_500.0 if int(at_s // HOUR_S) % 2 else 20.0


def lived(path: Path, hours: float) -> Path:
    """A journal of a small site at restless prices."""
    site = build_site(asics=1, gpus=2)
    JournalWorld(path, site=site, turn_s=900.0, price_at=restless).quiet(hours * HOUR_S)
    return path


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One long enough that what switches cost was learnt; never written to."""
    return lived(tmp_path_factory.mktemp("learnt") / "core.sqlite", 50.0)


def replayed(path: Path) -> tuple[int, bool]:
    """Replay a journal; gives how many costs stand in it, and whether the last one counts."""
    reader = JournalReader(path)
    try:
        report = replay(reader)
        rows = list(Walk(reader).steps(None))
    finally:
        reader.close()
    assert report.decisions > 0
    assert (report.equal, report.differences) == (True, ())
    told = [row for step in rows for row in step.row.facts if isinstance(row, f.SwitchCost)]
    last = rows[-1]
    return len(told), learnt_cost(last.state, last.site.classes[1]) is not None


def test_a_journal_with_learnt_costs_is_replayed_exactly(learnt: Path) -> None:
    told, counts = replayed(learnt)
    assert told > 0
    assert counts


def test_a_journal_without_them_is_replayed_as_ever(tmp_path: Path) -> None:
    assert replayed(lived(tmp_path / "core.sqlite", 6.0)) == (0, False)


def test_a_what_if_of_the_constant_is_not_silenced_by_what_was_learnt(learnt: Path) -> None:
    site = build_site(asics=1, gpus=2)
    reader = JournalReader(learnt)
    try:
        last = list(Walk(reader).steps(None))[-1]
        from_at = last.row.instant.wall - timedelta(hours=12)
        changed = [
            what_if(reader, (text,), parse_overrides([text], site), from_at=from_at).changed
            for text in ("class.H100.mine_start_s=10", "class.H100.mine_start_s=36000")
        ]
    finally:
        reader.close()
    assert changed[0] == 0  # the same constant: the same world
    assert changed[1] > 0

"""The reserve that demand sets: decided by an agent that is killed at times, and replayed."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.site import Site
from edge_agent.services.override_keys import Change, Overrides
from edge_agent.services.what_if import what_if
from edge_agent.storage.journal_reader import JournalReader
from protocol.resource import Activity
from tests.edge_agent.services.brain_world import build_site
from tests.edge_agent.services.replay_world import JournalWorld, live, replay_file, spiky
from tests.edge_agent.services.test_replay import rows_of


def _site(most: int) -> Site:
    plain = build_site(gpus=6)
    # So slow a start that the few leases of a day are worth waiting for.
    classes = tuple(
        replace(row, warm_reserve_max=most, serve_start_s=3_600.0)
        if row.class_name == "H100"
        else row
        for row in plain.classes
    )
    return Site(plain.site_id, classes, plain.devices, plain.limits)


def _lived(path: Path, most: int) -> Path:
    live(JournalWorld(path, site=_site(most), turn_s=600.0, price_at=spiky(3)), 2)
    return path


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the journal of two days with restarts, of a site whose reserve demand sets."""
    return _lived(tmp_path_factory.mktemp("reserve") / "core.sqlite", 2)


def test_a_journal_with_it_is_replayed_exactly(days: Path) -> None:
    acts = [fact for _, row in rows_of(days) for fact in row.acts]
    moved = [fact for fact in acts if isinstance(fact, f.SwitchOpened) and fact.reason == "reserve"]
    assert moved
    assert {fact.to_activity for fact in moved} == {Activity.IDLE}
    report = replay_file(days)
    assert report.differences == ()
    assert report.equal
    assert report.states > 0


def test_the_same_values_keep_the_same_and_none_is_kept_where_none_is_asked_for(days: Path) -> None:
    found = []
    none = Change("class.H100.warm_reserve_max", "0")
    for changes in (Overrides(), Overrides(classes={("H100", "warm_reserve_max"): none})):
        reader = JournalReader(days)
        try:
            found.append(what_if(reader, (), changes))
        finally:
            reader.close()
    same, without = found
    assert same.changes == ()
    assert without.changes != ()

"""What several folders of tests read."""

from pathlib import Path

import pytest

from tests.edge_agent.services.brain_world import build_site
from tests.edge_agent.services.replay_world import JournalWorld, live, spiky


@pytest.fixture(scope="session")
def week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A week of a small site, compressed to a pass every five minutes; never written to."""
    path = tmp_path_factory.mktemp("week") / "core.sqlite"
    site = build_site(asics=6, gpus=4)
    live(JournalWorld(path, site=site, turn_s=300.0, price_at=spiky(1)), days=7)
    return path

"""The seeds begin with the first test of a run, if any test of them is in it."""

import pytest

from tests.simulation.seeds import Seeds

SEEDS = pytest.StashKey[Seeds]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin the seeds: most other tests leave a processor, or wait for the world."""
    wanted = any("running_seeds" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly:
        session.config.stash[SEEDS] = Seeds()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave out the seeds that nobody waits for any more."""
    seeds = session.config.stash.get(SEEDS, None)
    if seeds is not None:
        seeds.stop()


@pytest.fixture
def running_seeds(request: pytest.FixtureRequest) -> Seeds:
    """Give the seeds that are under way."""
    return request.config.stash[SEEDS]

"""Programs that a test starts are gone when it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge_agent.reference.programs import Programs


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    yield started
    started.end()

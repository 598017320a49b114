"""Runs a scenario of a whole node in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from simulators.virtual_loop import run
from tests.edge_agent.node.world import World

Scenario = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scenario], None]:
    """Give the function that runs a scenario."""

    def runner(scenario: Scenario) -> None:
        async def main() -> None:
            await scenario(World(tmp_path))

        run(main())

    return runner

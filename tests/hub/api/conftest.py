"""The fixture of a running front."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hub.api.deps import Limits
from tests.hub.api.harness import Hub, start_hub


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    running, server, store = await start_hub(tmp_path / "hub.sqlite", Limits())
    try:
        yield running
    finally:
        await running.client.aclose()
        await server.shutdown()
        running.long_reads.close()
        store.close()

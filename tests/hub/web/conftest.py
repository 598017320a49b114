"""A running hub front, and a browser that shows its page."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hub.api.deps import Limits
from tests.hub.api.harness import Hub, start_hub
from tests.hub.web.browser import NAMES, Tab, chromium, opened


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


@pytest.fixture
async def tab(hub: Hub, tmp_path: Path) -> AsyncIterator[Tab]:
    program = chromium()
    if program is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(NAMES)})")
    async with opened(program, tmp_path / "profile") as found:
        await found.ask("Emulation.setTimezoneOverride", timezoneId="America/Chicago")
        await found.ask("Page.navigate", url=f"http://127.0.0.1:{hub.port}/")
        await found.until("document.readyState === 'complete'")
        yield found
        assert found.complaints == []

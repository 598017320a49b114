"""`GET /metrics` on the local API: text for Prometheus, not JSON."""

import asyncio
from pathlib import Path
from typing import Any, cast

from edge_agent.local_api.api import Brain, LocalApi
from edge_agent.local_api.http import LocalServer
from tests.edge_agent.services.brain_world import LoopClock


class MetricsOnly:
    """A brain of which nothing but its metrics is asked."""

    def metrics(self) -> str:
        return 'hcp_switch_seconds_count{to="serve"} 1\n'


def nothing(*_: object) -> Any:  # noqa: ANN401 - sources that are never asked
    raise AssertionError("only the metrics were asked for")


async def test_metrics_are_plain_text_on_the_view_socket(tmp_path: Path) -> None:
    api = LocalApi(
        cast("Brain", MetricsOnly()), LoopClock(), hub=nothing, buffer=nothing, switches=nothing
    )
    view, ready = tmp_path / "view.sock", asyncio.Event()
    server = LocalServer(view, tmp_path / "ctl.sock", api.handle)
    task = asyncio.create_task(server.run(ready.set))
    async with asyncio.timeout(5):
        await ready.wait()
        reader, writer = await asyncio.open_unix_connection(str(view))
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        data = await reader.read()
    writer.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert body == b'hcp_switch_seconds_count{to="serve"} 1\n'

"""Listens to the hub's live channel, so that a wait ends when the hub says so, not at a poll."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

_HISTORY_MAX = 10_000


class LiveClient:
    """One subscription to the live channel; keeps what it heard with the time of hearing.

    Args:
        url: ``ws://HOST:PORT/api/v1/live``. token: bearer token.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._connection: ClientConnection | None = None
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[None] | None = None
        self._heard = asyncio.Condition()
        self.messages: list[tuple[float, dict[str, Any]]] = []

    async def __aenter__(self) -> Self:
        """Connect and listen."""
        self._connection = await connect(self._url, subprotocols=None, max_size=1 << 20)
        await self._connection.send(json.dumps({"token": self._token}))
        await self._group.__aenter__()
        self._task = self._group.create_task(self._listen(), name="live-client")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        if self._task is not None:
            self._task.cancel()
        await self._group.__aexit__(kind, error, trace)
        if self._connection is not None:
            await self._connection.close()

    async def wait_workload(self, workload_id: str, state: str, limit_s: float) -> float:
        """Wait until the channel told that a workload is in a state; return when it was heard.

        Raises:
            TimeoutError: it was not told in time.
        """

        def told() -> float | None:
            for at_s, message in self.messages:
                if message.get("workload_id") == workload_id and message.get("state") == state:
                    return at_s
            return None

        async with asyncio.timeout(limit_s), self._heard:
            while (at_s := told()) is None:
                await self._heard.wait()
            return at_s

    async def _listen(self) -> None:
        assert self._connection is not None
        loop = asyncio.get_running_loop()
        async for text in self._connection:
            message = json.loads(text)
            async with self._heard:
                self.messages.append((loop.time(), message))
                del self.messages[:-_HISTORY_MAX]
                self._heard.notify_all()

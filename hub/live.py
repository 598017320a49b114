"""Fan-out to the live channel: cheap for clients that keep up, bounded for those that do not.

Theory of operation. To send costs a task switch per client when it goes through a queue and a task.
So ``publish`` steps the client's ``send`` coroutine once by hand: nearly always it writes to the
socket's buffer and ends there. Only when it blocks (the buffer is full) does the client get its
bounded queue, and its own task finishes that coroutine and drains the queue. When the queue is full
the oldest message goes, and once drained the client is told ``resync``: read the state again.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any

from hub.core.live import TOPICS

QUEUE_MAX = 256
CLIENTS_MAX = 10_000
RESYNC = '{"topic":"resync"}'

Send = Callable[[str], Awaitable[None]]


class LiveClient:
    """One connection: what it may see, what it asked for, and what waits for it.

    Args:
        send: sends one text; must either end without waiting or wait before it sends anything.
        customer_id: whose messages it may see. staff: may see everything.
        topics: what it asked for.
    """

    def __init__(
        self, send: Send, *, customer_id: str | None, staff: bool, topics: frozenset[str]
    ) -> None:
        self._send = send
        self._customer_id = customer_id
        self.staff = staff
        self.topics = topics
        self.dropped = 0
        self.gone = False
        self._blocked: tuple[Coroutine[Any, Any, None], Any] | None = None
        self._waiting: deque[str] = deque()
        self._lost = False
        # True from a send that blocks until the queue is drained: nothing may overtake it.
        self._busy = False
        self._wake = asyncio.Event()

    def may_see(self, topic: str, customer_id: str | None) -> bool:
        """Tell whether a message of this owner is for this client (None: staff only)."""
        if self.gone or topic not in self.topics:
            return False
        return self.staff or (customer_id is not None and customer_id == self._customer_id)

    def offer(self, text: str) -> None:
        """Send now if that needs no waiting, else queue; never blocks and never raises."""
        if self.gone:
            return
        if self._busy:
            self._queue(text)
            return
        step = _as_coroutine(self._send(text))
        try:
            waits_for = step.send(None)
        except StopIteration:
            return
        except Exception:  # noqa: BLE001 - whatever it was, this client is gone and the others go on
            self._end()
            return
        self._blocked = (step, waits_for)
        self._busy = True
        self._wake.set()

    async def drain(self) -> None:
        """Finish blocked sends and empty the queue, until the client is gone or cancelled."""
        try:
            while not self.gone:
                await self._wake.wait()
                self._wake.clear()
                await self._drain_once()
        finally:
            self._end()

    def close(self) -> None:
        """Stop sending; the drain ends."""
        self._end()

    async def _drain_once(self) -> None:
        while not self.gone and (self._blocked is not None or self._waiting or self._lost):
            if self._blocked is not None:
                step, waits_for = self._blocked
                await _finish(step, waits_for)
                self._blocked = None
            elif self._lost:
                self._lost = False
                await self._send(RESYNC)
            else:
                await self._send(self._waiting.popleft())
        self._busy = False

    def _queue(self, text: str) -> None:
        if len(self._waiting) >= QUEUE_MAX:
            self._waiting.popleft()
            self.dropped += 1
            self._lost = True
        self._waiting.append(text)
        self._wake.set()

    def _end(self) -> None:
        self.gone = True
        self._waiting.clear()
        if self._blocked is not None:
            self._blocked[0].close()
            self._blocked = None
        self._wake.set()


class LiveChannel:
    """The ``Live`` port: all connected clients of this process.

    Args:
        clients_max: connections it takes; more are refused.
    """

    def __init__(self, clients_max: int = CLIENTS_MAX) -> None:
        self._clients: dict[int, LiveClient] = {}
        self._next = 0
        self._clients_max = clients_max
        self.published = 0

    @property
    def clients(self) -> int:
        """Number of connected clients."""
        return len(self._clients)

    def join(self, client: LiveClient) -> int | None:
        """Take a client; None when there are too many.

        Returns:
            The number to leave with.
        """
        if len(self._clients) >= self._clients_max:
            return None
        self._next += 1
        self._clients[self._next] = client
        return self._next

    def leave(self, number: int) -> None:
        """Forget a client."""
        client = self._clients.pop(number, None)
        if client is not None:
            client.close()

    def publish(
        self, topic: str, customer_id: str | None, body: bytes, owner_body: bytes | None = None
    ) -> None:
        """Send an encoded JSON object to the clients that may and want to see it."""
        assert topic in TOPICS, topic
        self.published += 1
        text = _with_topic(topic, body)
        owner_text = text if owner_body is None else _with_topic(topic, owner_body)
        for client in tuple(self._clients.values()):
            if client.may_see(topic, customer_id):
                client.offer(text if client.staff else owner_text)


class NullLive:
    """The fake of the ``Live`` port: keeps what was published."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str | None, bytes]] = []

    def publish(
        self, topic: str, customer_id: str | None, body: bytes, owner_body: bytes | None = None
    ) -> None:
        """Keep the message as its owner is sent it."""
        self.sent.append((topic, customer_id, body if owner_body is None else owner_body))


def _with_topic(topic: str, body: bytes) -> str:
    return f'{{"topic":"{topic}"' + ("," if body != b"{}" else "") + body[1:].decode()


def _as_coroutine(awaitable: Awaitable[None]) -> Coroutine[Any, Any, None]:
    if isinstance(awaitable, Coroutine):
        return awaitable
    return _wait_for(awaitable)


async def _wait_for(awaitable: Awaitable[None]) -> None:
    await awaitable


@coroutine
def _finish(step: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:  # noqa: ANN401 - what a coroutine yields belongs to the event loop
    """Go on with a coroutine that was stepped by hand, from the future it waits for."""
    while True:
        try:
            given = yield waits_for
        except BaseException as exc:  # noqa: BLE001 - a cancel belongs inside the coroutine
            thrown: BaseException | None = exc
        else:
            thrown = None
        try:
            waits_for = step.send(given) if thrown is None else step.throw(thrown)
        except StopIteration:
            return

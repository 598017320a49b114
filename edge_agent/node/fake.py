"""The node link in memory, for simulation: real messages, no sockets, cuts on demand.

The network outlives both ends: an agent or a node may crash and come back, and finds the same
address. Messages take the delay that the network is told, in order; a cut loses what is under way.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from edge_agent.node.channel import Channel
from edge_agent.node.errors import LinkError
from edge_agent.node.server import NodeServer

IN_FLIGHT_MAX = 4_096


class MemoryChannel:
    """One end of an in-memory connection; ``make_pair`` makes both.

    Args:
        delay_s: gives the seconds that the next message takes.
    """

    def __init__(self, delay_s: Callable[[], float]) -> None:
        self._delay_s = delay_s
        self._under_way: deque[Sequence[bytes]] = deque()
        self._last_due_s = 0.0
        self._inbox: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._closed = False
        self.peer: MemoryChannel | None = None

    async def send(self, messages: Sequence[bytes]) -> None:
        """Put the messages on their way."""
        peer = self.peer
        if self._closed or peer is None:
            raise LinkError("the connection is closed")
        due_s = asyncio.get_running_loop().time() + self._delay_s()
        peer.take(due_s, messages)

    async def receive(self) -> bytes:
        """Give the next message when its time has come."""
        while not self._inbox:
            if self._closed:
                raise LinkError("the peer closed the connection")
            self._ready.clear()
            await self._ready.wait()
        return self._inbox.popleft()

    def take(self, due_s: float, messages: Sequence[bytes]) -> None:
        """Receive from the peer; never before what was sent earlier."""
        if self._closed:
            return
        if len(self._inbox) + len(self._under_way) >= IN_FLIGHT_MAX:
            self.close()
            return
        self._last_due_s = max(self._last_due_s, due_s)
        self._under_way.append(messages)
        asyncio.get_running_loop().call_at(self._last_due_s, self._arrive)

    def _arrive(self) -> None:
        """Deliver what is under way for longest: all falls due in the order of sending."""
        if self._under_way:
            self._inbox.extend(self._under_way.popleft())
            self._ready.set()

    def close(self) -> None:
        """End both ways at once; what is under way is lost."""
        peer, self.peer = self.peer, None
        self._closed = True
        self._under_way.clear()
        self._inbox.clear()
        self._ready.set()
        if peer is not None:
            peer.close()


def make_pair(delay_s: Callable[[], float] = lambda: 0.0) -> tuple[MemoryChannel, MemoryChannel]:
    """Make the two ends of one connection."""
    near, far = MemoryChannel(delay_s), MemoryChannel(delay_s)
    near.peer, far.peer = far, near
    return near, far


class NodeNetwork:
    """Connects agents to nodes by address.

    Args:
        delay_s: gives the seconds that the next message takes.
    """

    def __init__(self, delay_s: Callable[[], float] = lambda: 0.0) -> None:
        self._delay_s = delay_s
        self._hosts: dict[str, tuple[NodeServer, asyncio.TaskGroup]] = {}
        self._live: dict[str, list[MemoryChannel]] = {}
        self._down: set[str] = set()

    async def host(self, address: str, server: NodeServer, work: Coroutine[Any, Any, None]) -> None:
        """Serve a node at an address while ``work`` (its service) runs; ends with it.

        Args:
            work: as a rule ``NodeService.run()``.
        """
        try:
            async with asyncio.TaskGroup() as group:
                self._hosts[address] = (server, group)
                group.create_task(work, name=f"node-{address}")
        finally:
            self._hosts.pop(address, None)
            self.cut(address)

    async def dial(self, address: str) -> Channel:
        """Connect to a node; pass this as the client's ``dialer``.

        Raises:
            ConnectionError: nobody is there, or the way is down.
        """
        await asyncio.sleep(self._delay_s())
        hosted = self._hosts.get(address)
        if hosted is None or address in self._down:
            raise LinkError(f"{address} does not answer")
        server, group = hosted
        near, far = make_pair(self._delay_s)
        group.create_task(server.serve(far), name=f"session-{address}")
        live = [one for one in self._live.get(address, []) if one.peer is not None]
        self._live[address] = [*live, near]
        return near

    def cut(self, address: str, *, down: bool = False) -> None:
        """End every connection to an address; ``down`` keeps it unreachable until ``restore``."""
        if down:
            self._down.add(address)
        for channel in self._live.pop(address, []):
            channel.close()

    def restore(self, address: str) -> None:
        """Let an address be reached again."""
        self._down.discard(address)

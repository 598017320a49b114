"""The agent's end of all node links: one connection per node, kept up by itself.

Results are handed over as they arrive; inventory, readings, facts and events go to the sink one at
a time and in order per node, so that a slow sink never delays a phase. Of facts only the newest
waits. Readings are acked after the sink returned from them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.node.channel import Channel, Dialer, Silence, dial
from edge_agent.node.errors import LinkError
from edge_agent.ports import NodeSink
from edge_agent.tasks import first_error
from protocol import codec
from protocol.errors import DecodeError
from protocol.node import (
    AgentBeat,
    AgentToNode,
    Hello,
    HelloRefused,
    Inventory,
    NodeEvent,
    NodeFacts,
    NodeToAgent,
    Phase,
    PhaseDo,
    PhaseDone,
    Readings,
    ReadingsAck,
)

logger = logging.getLogger(__name__)

BEAT_PERIOD_S = 2.0
HELLO_TIMEOUT_S = 5.0
# The node sends facts every second.
NODE_SILENCE_S = 5.0
ANSWER_MARGIN_S = 1.0
BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 5.0
SINK_QUEUE_MAX = 256
IN_FLIGHT_MAX = 256
# Before these the node must know when the hub was last heard (it refuses work that has lapsed), and
# who may use what it is about to serve.
_PHASES_AFTER_BEAT = frozenset({Phase.VALIDATE, Phase.COMMIT})


class NodeAddress(Struct, frozen=True, kw_only=True):
    """Where a node listens: ``unix:/path`` or ``tcp:host:port``."""

    node_id: str
    address: str


class LinkStats(Struct, kw_only=True):
    """Counts of one link."""

    connects: int = 0
    refused: int = 0
    malformed: int = 0
    stray_answers: int = 0
    last_error: str = ""


class AgentEpoch:
    """The epoch under which this agent speaks; it may rise once a node has seen a higher one.

    Args:
        value: as stored at this start. raise_above: stores and gives one above that of a node; None
            keeps the epoch as it is.
    """

    def __init__(
        self, value: int, raise_above: Callable[[int], Awaitable[int]] | None = None
    ) -> None:
        self.value = value
        self._raise_above = raise_above

    async def pass_by(self, highest: int) -> None:
        """Go above what a node has seen: this store was restored from an older copy."""
        if self._raise_above is not None and highest > self.value:
            before, self.value = self.value, await self._raise_above(highest)
            logger.warning("agent epoch raised from %d to %d", before, self.value)


class NodeLinksClient:
    """Implements ``NodeLinks`` and delivers to a ``NodeSink``.

    Args:
        nodes: every node of the site. agent_epoch: as stored at this start of the agent.
        raise_epoch: stores and gives an epoch above the one given; used when a node that has not
            accepted this agent yet knows a higher one. An agent that another has replaced was
            accepted before, so that two agents never outbid each other.
        sink: of the agent. hub_heard_age_ms: milliseconds since the last hub message, None: never.
        uniform: injected randomness, ``uniform(low, high)``, for the reconnect jitter.
        dialer: connects to an address; the default uses sockets.
    """

    def __init__(
        self,
        nodes: tuple[NodeAddress, ...],
        *,
        site_id: str,
        agent_epoch: int,
        sink: NodeSink,
        hub_heard_age_ms: Callable[[], int | None],
        uniform: Callable[[float, float], float],
        dialer: Dialer = dial,
        raise_epoch: Callable[[int], Awaitable[int]] | None = None,
    ) -> None:
        epoch = AgentEpoch(agent_epoch, raise_epoch)
        self._links = {
            node.node_id: _Link(
                node,
                Hello(site_id=site_id, agent_epoch=agent_epoch),
                epoch,
                sink,
                hub_heard_age_ms,
                uniform,
                dialer,
            )
            for node in nodes
        }

    async def run(self) -> None:
        """Keep all links up until cancelled."""
        async with asyncio.TaskGroup() as group:
            for node_id, link in self._links.items():
                group.create_task(link.run(), name=f"node-link-{node_id}")

    async def do(self, node_id: str, request: PhaseDo) -> PhaseDone:
        """Ask for a phase and wait for its result.

        Raises:
            ConnectionError: not reachable now. TimeoutError: no answer; asking again is safe.
        """
        link = self._links.get(node_id)
        if link is None:
            raise LinkError(f"no node named {node_id}")
        return await link.do(request)

    def connected(self, node_id: str) -> bool:
        """Tell whether the node answered Hello on the present connection."""
        link = self._links.get(node_id)
        return link is not None and link.up

    def stats(self, node_id: str) -> LinkStats:
        """Give the counts of one link."""
        return self._links[node_id].stats


class _Link:
    """One node."""

    def __init__(
        self,
        node: NodeAddress,
        hello: Hello,
        epoch: AgentEpoch,
        sink: NodeSink,
        hub_heard_age_ms: Callable[[], int | None],
        uniform: Callable[[float, float], float],
        dialer: Dialer,
    ) -> None:
        self._node = node
        self._hello = hello
        self._epoch = epoch
        self._accepted = False
        self._sink = sink
        self._hub_heard_age_ms = hub_heard_age_ms
        self._uniform = uniform
        self._dialer = dialer
        self._channel: Channel | None = None
        self._waiting: dict[tuple[str, Phase], list[asyncio.Future[PhaseDone]]] = {}
        self._failures = 0
        self._told = False
        self.stats = LinkStats()
        self.up = False

    async def run(self) -> None:
        while True:
            try:
                await self._connection()
            except (OSError, DecodeError) as exc:
                self._note(exc)
            self._lose()
            if self._told:
                self._told = False
                await self._sink.on_lost(self._node.node_id)
            limit_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2.0 ** min(self._failures, 10))
            await asyncio.sleep(self._uniform(BACKOFF_S_MIN / 2, limit_s))

    async def do(self, request: PhaseDo) -> PhaseDone:
        channel = self._channel
        if channel is None or not self.up:
            raise LinkError(f"node {self._node.node_id} is not connected")
        if sum(len(futures) for futures in self._waiting.values()) >= IN_FLIGHT_MAX:
            raise LinkError(f"node {self._node.node_id} has {IN_FLIGHT_MAX} phases unanswered")
        request = replace(request, agent_epoch=max(request.agent_epoch, self._epoch.value))
        key = (request.switch_id, request.phase)
        future: asyncio.Future[PhaseDone] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        try:
            async with asyncio.timeout(request.walk_ms / 1_000 + ANSWER_MARGIN_S):
                messages = [_encode(request)]
                if request.phase in _PHASES_AFTER_BEAT:
                    messages.insert(0, _encode(self._beat()))
                await channel.send(messages)
                return await future
        finally:
            futures = self._waiting.get(key, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._waiting.pop(key, None)

    async def _connection(self) -> None:
        channel = await self._dialer(self._node.address)
        try:
            mark = self._sink.reading_mark(self._node.node_id)
            hello = replace(self._hello, agent_epoch=self._epoch.value, readings_seq=mark)
            await channel.send([_encode(hello)])
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                answer = codec.NODE_TO_AGENT.decode(await channel.receive())
            if isinstance(answer, HelloRefused):
                self.stats.refused += 1
                if answer.code == "stale_epoch" and not self._accepted:
                    await self._epoch.pass_by(answer.highest_epoch)
                raise LinkError(f"refused: {answer.code}, highest epoch {answer.highest_epoch}")
            if not isinstance(answer, Inventory) or answer.node_id != self._node.node_id:
                raise LinkError(f"{self._node.address} is not node {self._node.node_id}")
            await self._serve(channel, answer)
        finally:
            channel.close()

    async def _serve(self, channel: Channel, inventory: Inventory) -> None:
        self._told = self._accepted = True
        await self._sink.on_inventory(inventory)
        self._channel, self.up = channel, True
        self._failures = 0
        self.stats.connects += 1
        logger.info("node=%s connected", self._node.node_id)
        inbox, silence = _Inbox(), Silence(NODE_SILENCE_S)
        raise await first_error(
            {
                "node-link-receive": self._receive(channel, inbox, silence),
                "node-link-silence": silence.watch(),
                "node-link-deliver": self._deliver(channel, inbox),
                "node-link-beat": self._beat_on(channel),
            },
            OSError,
            DecodeError,
        )

    async def _receive(self, channel: Channel, inbox: "_Inbox", silence: Silence) -> None:
        while True:
            message = codec.NODE_TO_AGENT.decode(await channel.receive())
            silence.heard()
            if isinstance(message, PhaseDone):
                self._answer(message)
            else:
                inbox.put(message)

    def _answer(self, done: PhaseDone) -> None:
        futures = self._waiting.pop((done.switch_id, done.phase), [])
        self.stats.stray_answers += not futures
        for future in futures:
            if not future.done():
                future.set_result(done)

    async def _deliver(self, channel: Channel, inbox: "_Inbox") -> None:
        node_id = self._node.node_id
        while True:
            match await inbox.get():
                case Readings() as readings:
                    await self._sink.on_readings(node_id, readings)
                    if readings.readings:
                        await channel.send([_encode(ReadingsAck(seq=readings.readings[-1].seq))])
                case NodeFacts() as facts:
                    await self._sink.on_facts(node_id, facts)
                case NodeEvent() as event:
                    await self._sink.on_event(node_id, event)
                case Inventory() as inventory:
                    await self._sink.on_inventory(inventory)
                case other:
                    raise LinkError(f"unexpected {type(other).__name__}")

    async def _beat_on(self, channel: Channel) -> None:
        while True:
            await channel.send([_encode(self._beat())])
            await asyncio.sleep(BEAT_PERIOD_S)

    def _beat(self) -> AgentBeat:
        return AgentBeat(
            agent_epoch=self._epoch.value,
            hub_heard_age_ms=self._hub_heard_age_ms(),
            lease_keys=self._sink.lease_keys(self._node.node_id),
            prepare=self._sink.prepare(self._node.node_id),
            release=self._sink.release(self._node.node_id),
        )

    def _lose(self) -> None:
        self._channel, self.up = None, False
        waiting, self._waiting = self._waiting, {}
        for futures in waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(LinkError(f"node {self._node.node_id} went away"))
                    future.exception()  # its waiter may be gone: mark it as looked at

    def _note(self, exc: Exception) -> None:
        if isinstance(exc, DecodeError):
            self.stats.malformed += 1
        self.stats.last_error = f"{type(exc).__name__}: {exc}"
        if self._failures == 0:
            logger.warning("node=%s away: %s", self._node.node_id, self.stats.last_error)
        self._failures += 1


class _Inbox:
    """Messages waiting for the sink: bounded, and of facts only the newest."""

    def __init__(self) -> None:
        self._messages: deque[NodeToAgent] = deque()
        self._facts: NodeFacts | None = None
        self._ready = asyncio.Event()

    def put(self, message: NodeToAgent) -> None:
        if isinstance(message, NodeFacts):
            self._facts = message
        elif len(self._messages) >= SINK_QUEUE_MAX:
            # Nothing is lost: the node sends unacked readings and standing events again.
            raise LinkError("the agent does not keep up with the node")
        else:
            self._messages.append(message)
        self._ready.set()

    async def get(self) -> NodeToAgent:
        while not self._messages and self._facts is None:
            self._ready.clear()
            await self._ready.wait()
        if self._messages:
            return self._messages.popleft()
        facts, self._facts = self._facts, None
        assert facts is not None
        return facts


def _encode(message: AgentToNode) -> bytes:
    return codec.encode(message, codec.FRAME_BYTES_MAX)

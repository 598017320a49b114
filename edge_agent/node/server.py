"""The node's end of the node link: one agent at a time, the newest epoch wins.

A session says ``Inventory`` first, then what ended by itself, then readings from the agent's last
ack on. Readings are never queued: the sender reads them from the store behind a cursor, so that a
slow agent costs nothing. What has no number (facts, results, events) is bounded: facts keep the
newest, a session whose results or events pile up ends and is told all of it at its next start.
"""

import asyncio
import contextlib
import logging
import os
import ssl
import stat
from collections import deque
from datetime import datetime
from pathlib import Path

from edge_agent.addresses import split_tcp
from edge_agent.node.channel import Channel, Silence, StreamChannel
from edge_agent.node.errors import LinkError
from edge_agent.node.service import NodeService
from edge_agent.node.store import READINGS_PER_FRAME
from edge_agent.node.tls import TlsListener
from edge_agent.storage.errors import StorageError
from edge_agent.tasks import first_error
from protocol import codec
from protocol.errors import DecodeError
from protocol.node import (
    AgentBeat,
    AgentToNode,
    Hello,
    HelloRefused,
    NodeEvent,
    NodeFacts,
    PhaseDo,
    PhaseDone,
    Readings,
    ReadingsAck,
)

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 5.0
REFUSAL_LINGER_S = 1.0
# The agent beats every 2 s.
AGENT_SILENCE_S = 10.0
OUTBOX_MAX = 1_024
# Readings sent and not yet acked: a long backlog fills neither the agent's inbox nor the pipe.
READINGS_WINDOW = 4 * READINGS_PER_FRAME
# Facts wait so long for the readings of the same second: one message instead of two.
FACTS_LINGER_S = 0.02
CONNECTIONS_MAX = 16
_SOCKET_MODE = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP


class _Session:
    """One connected agent."""

    def __init__(self, service: NodeService, channel: Channel, hello: Hello) -> None:
        self._service = service
        self._channel = channel
        self._epoch = hello.agent_epoch
        self._from_seq = hello.readings_seq
        self._wake = asyncio.Event()
        self._outbox: deque[PhaseDone | NodeEvent] = deque()
        self._facts: NodeFacts | None = None
        self._facts_due: asyncio.TimerHandle | None = None
        self._sent_seq = self._acked_seq = 0
        self._sent_through: datetime | None = None

    async def run(self) -> None:
        """Serve the agent; raises what ended the connection."""
        self._sent_seq = self._acked_seq = self._service.memory.resume_from(self._from_seq)
        first = [self._service.inventory(), *self._service.standing_events()]
        await self._channel.send([codec.encode(one, codec.FRAME_BYTES_MAX) for one in first])
        self._wake.set()
        silence = Silence(AGENT_SILENCE_S)
        raise await first_error(
            {
                "node-session-send": self._send(),
                "node-session-receive": self._receive(silence),
                "node-session-silence": silence.watch(),
            },
            OSError,
            DecodeError,
        )

    def wake(self) -> None:
        """Look again for readings."""
        self._wake.set()

    def facts(self, facts: NodeFacts) -> None:
        """Send the newest facts, with what else there is to send in a moment."""
        self._facts = facts
        if self._facts_due is None:
            loop = asyncio.get_running_loop()
            self._facts_due = loop.call_later(FACTS_LINGER_S, self._wake.set)

    def event(self, event: NodeEvent) -> None:
        """Send an event."""
        self._queue(event)

    def replaced(self) -> None:
        """End, because another session took over."""
        self._channel.close()

    def _queue(self, message: PhaseDone | NodeEvent) -> None:
        if len(self._outbox) >= OUTBOX_MAX:
            logger.warning("agent takes nothing, its session ends")
            self._channel.close()
            return
        self._outbox.append(message)
        self._wake.set()

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while messages := self._due():
                await self._channel.send(messages)

    def _due(self) -> list[bytes]:
        """Give what is to be sent now; readings go before the results that caused them."""
        memory = self._service.memory
        due: list[bytes] = []
        open_window = self._sent_seq - self._acked_seq < READINGS_WINDOW
        readings = memory.readings_after(self._sent_seq) if open_window else ()
        last_seq = readings[-1].seq if readings else self._sent_seq
        through = memory.metering.through if last_seq == memory.metering.last_seq else None
        if readings or (through is not None and through != self._sent_through):
            self._sent_seq, self._sent_through = last_seq, through
            due.append(_encode(Readings(readings=readings, through=through)))
        while self._outbox:
            due.append(_encode(self._outbox.popleft()))
        if self._facts is not None:
            due.append(_encode(self._facts))
            self._facts = None
        if self._facts_due is not None:
            self._facts_due.cancel()
            self._facts_due = None
        return due

    async def _receive(self, silence: Silence) -> None:
        while True:
            message = await _next(self._channel)
            silence.heard()
            match message:
                case PhaseDo():
                    self._service.begin_phase(message, self._queue)
                case ReadingsAck(seq=seq):
                    self._service.ack(seq)
                    self._acked_seq = max(self._acked_seq, min(seq, self._sent_seq))
                    self._wake.set()
                case AgentBeat():
                    self._service.beat(message)
                case Hello():
                    raise LinkError("a second hello on one connection")


class NodeServer:
    """Listens for agents.

    Args:
        service: started. listen: ``unix:/path`` or ``tcp:host:port``.
        tls: with the node's certificate; None: agents say who they are, and are believed.
    """

    def __init__(
        self, service: NodeService, listen: str, tls: ssl.SSLContext | None = None
    ) -> None:
        self._service = service
        self._listen = listen
        self._tls = tls
        self._connections = 0
        self.refused = 0
        self.malformed = 0

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Accept agents until cancelled; sets ``ready`` when it listens."""
        if self._tls is not None:
            listener = TlsListener(
                self._tls,
                site_id=self._service.config.site_id,
                serve=self.serve,
                on_refused=self._count_refusal,
            )
            await listener.run(*split_tcp(self._listen), ready)
            return
        async with asyncio.TaskGroup() as group:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                channel = StreamChannel(reader, writer)
                group.create_task(self.serve(channel), name="node-session")

            if self._listen.startswith("unix:"):
                path = Path(self._listen.removeprefix("unix:"))
                _clear_socket(path)
                server = await asyncio.start_unix_server(accept, path=str(path))
                os.chmod(path, _SOCKET_MODE)  # noqa: PTH101 - the path is a socket just made
            else:
                host, port = split_tcp(self._listen)
                server = await asyncio.start_server(accept, host, port)
            async with server:
                if ready is not None:
                    ready.set()
                await server.serve_forever()

    async def serve(self, channel: Channel) -> None:
        """Serve one connection to its end; what the peer does wrong ends only it."""
        if self._connections >= CONNECTIONS_MAX:
            channel.close()
            return
        self._connections += 1
        session: _Session | None = None
        try:
            session = await self._greet(channel)
            if session is not None:
                await session.run()
        except DecodeError as exc:
            self.malformed += 1
            logger.warning("agent session ended, malformed: %s", exc)
        except (OSError, StorageError) as exc:
            logger.info("agent session ended: %s", exc)
        finally:
            self._connections -= 1
            if session is not None:
                self._service.detach(session)
            channel.close()

    def _count_refusal(self) -> None:
        self.refused += 1

    async def _greet(self, channel: Channel) -> _Session | None:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = await _next(channel)
        if not isinstance(hello, Hello):
            raise LinkError("the first message must be hello")
        highest = self._service.memory.epoch
        code = ""
        if hello.site_id != self._service.config.site_id:
            code = "wrong_site"
        elif hello.agent_epoch < highest:
            code = "stale_epoch"
        if code:
            self.refused += 1
            logger.warning("agent refused: %s epoch=%d", code, hello.agent_epoch)
            await channel.send([_encode(HelloRefused(code=code, highest_epoch=highest))])
            # Closing at once could overtake the answer, so the agent closes.
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(REFUSAL_LINGER_S):
                    await channel.receive()
            return None
        session = _Session(self._service, channel, hello)
        await self._service.attach(session, hello.agent_epoch)
        return session


async def _next(channel: Channel) -> AgentToNode:
    return codec.AGENT_TO_NODE.decode(await channel.receive())


def _encode(message: PhaseDone | NodeEvent | NodeFacts | Readings | HelloRefused) -> bytes:
    return codec.encode(message, codec.FRAME_BYTES_MAX)


def _clear_socket(path: Path) -> None:
    """Remove what a killed node left; never anything but a socket."""
    if path.is_socket():
        path.unlink()

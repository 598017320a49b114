"""The node link over a network: TLS 1.3, and each side is who its certificate's common name says.

A node that obeyed whoever reaches its port could be told to switch, and its meters be read, by any
machine of the site's network. So the agent shows a certificate with the site's id, the node one
with its node id, both of an authority that signs nothing else.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping

from edge_agent.addresses import split_tcp
from edge_agent.node.channel import CONNECT_TIMEOUT_S, Channel, StreamChannel, dial
from edge_agent.node.errors import LinkError
from protocol.tls import common_name, explain_refusal

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
# Connections that have not yet said who they are.
GREETING_MAX = 16
# A machine without free file descriptors must not spin.
_PAUSE_S = 0.5
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class TlsDialer:
    """A ``Dialer`` that asks every node behind TCP for its certificate.

    Args:
        context: with the site's certificate. nodes: node ids by address.
    """

    def __init__(self, context: ssl.SSLContext, nodes: Mapping[str, str]) -> None:
        # Nodes are known by their ids, wherever they stand.
        context.check_hostname = False
        self._context = context
        self._nodes = dict(nodes)

    async def __call__(self, address: str) -> Channel:
        """Connect, and make sure of the node.

        Raises:
            LinkError: it is not that node, or one side refuses the other. ConnectionError,
                TimeoutError, OSError: not now. ValueError: no address.
        """
        if address.startswith("unix:"):
            return await dial(address)
        host, port = split_tcp(address)
        node_id = self._nodes[address]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(host, port, ssl=self._context)
        except ssl.SSLError as exc:
            raise LinkError(_told(exc, f"node {node_id}")) from exc
        name = common_name(writer.get_extra_info("peercert"))
        if name != node_id:
            writer.transport.abort()
            raise LinkError(f"{address} shows the certificate of {name!r}, not of {node_id!r}")
        return _TlsChannel(reader, writer, f"node {node_id}")


class TlsListener:
    """Accepts agents that show the site's certificate.

    Args:
        context: with the node's certificate. site_id: what an agent's certificate must name.
        serve: serves a channel to its end. on_refused: called when a handshake failed, or the
            certificate is of somebody else.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        site_id: str,
        serve: Callable[[Channel], Awaitable[None]],
        on_refused: Callable[[], None],
    ) -> None:
        self._context = context
        self._site_id = site_id
        self._serve = serve
        self._on_refused = on_refused
        self._greeting = 0

    async def run(self, host: str, port: int, ready: asyncio.Event | None = None) -> None:
        """Accept until cancelled; sets ``ready`` when it listens.

        Raises:
            OSError: the address cannot be listened on.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        loop = asyncio.get_running_loop()
        with socket.create_server((host, port), family=family, backlog=16) as listener:
            listener.setblocking(False)  # noqa: FBT003 - the socket's own signature
            if ready is not None:
                ready.set()
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        connected, peer = await loop.sock_accept(listener)
                    except OSError as exc:
                        if exc.errno not in _OUT_OF_FILES:
                            raise
                        logger.warning("no agent can be accepted now: %s", exc)
                        await asyncio.sleep(_PAUSE_S)
                        continue
                    if self._greeting >= GREETING_MAX:
                        connected.close()
                        continue
                    group.create_task(self._accept(connected, str(peer[0])), name="node-session")

    async def _accept(self, connected: socket.socket, peer: str) -> None:
        self._greeting += 1
        try:
            channel = await self._greet(connected)
        except (OSError, TimeoutError) as exc:
            self._on_refused()
            logger.warning("agent refused: peer=%s %s", peer, _told(exc, "the agent"))
            return
        finally:
            self._greeting -= 1
        await self._serve(channel)

    async def _greet(self, connected: socket.socket) -> Channel:
        """Shake hands and see who it is.

        Raises:
            OSError, TimeoutError: it did not come to that. LinkError: it is somebody else.
        """
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, connected, ssl=self._context
                )
        except BaseException:
            connected.close()
            raise
        name = common_name(transport.get_extra_info("peercert"))
        if name != self._site_id:
            transport.abort()
            raise LinkError(f"its certificate is of {name!r}, not of {self._site_id!r}")
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return _TlsChannel(reader, writer, "the agent")


class _TlsChannel(StreamChannel):
    """Says in the words of the settings why the other side ended it, as far as that is known."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str
    ) -> None:
        super().__init__(reader, writer)
        self._peer = peer
        self._heard = False

    async def receive(self) -> bytes:
        # In TLS 1.3 the other side judges our certificate after we are done. asyncio sends no
        # alert then: the connection ends, and why stands in the other side's log.
        try:
            message = await super().receive()
        except ssl.SSLError as exc:
            raise LinkError(_told(exc, self._peer)) from exc
        except (LinkError, ConnectionError) as exc:
            if self._heard:
                raise
            detail = (
                f"{self._peer} ended the connection at once: does it take tls_cert? See its log"
            )
            raise LinkError(detail) from exc
        self._heard = True
        return message


def _told(exc: Exception, peer: str) -> str:
    refusal = explain_refusal(str(exc), peer)
    if refusal is None:
        return f"{type(exc).__name__}: {exc}"
    why = getattr(exc, "verify_message", "")
    return f"{refusal.sentence} ({why})" if why else refusal.sentence

"""The node link over TLS: who is let in, who is not, and what is said about it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from edge_agent.node import tls
from edge_agent.node.channel import Channel, dial
from edge_agent.node.errors import LinkError
from edge_agent.node.tls import TlsDialer, TlsListener
from edge_agent.transport.tls import client_context, server_context
from protocol.settings import SettingsError
from simulators.stack import free_port
from tests.certificates import Authority, Identity

DEADLINE_S = 10.0
Scenario = Callable[[], Awaitable[None]]


class Node:
    """A listener that gives back what it is told."""

    def __init__(self, identity: Identity) -> None:
        self.port = free_port()
        self.refused = 0
        self.served = 0
        self.changed = asyncio.Event()
        context = server_context(identity.ca, identity.cert, identity.key, section="tls")
        self.listener = TlsListener(
            context, site_id="lubbock", serve=self._serve, on_refused=self._refuse
        )

    @property
    def address(self) -> str:
        return f"tcp:127.0.0.1:{self.port}"

    async def until_refused(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.refused < count:
                self.changed.clear()
                await self.changed.wait()

    def _refuse(self) -> None:
        self.refused += 1
        self.changed.set()

    async def _serve(self, channel: Channel) -> None:
        self.served += 1
        try:
            while True:
                await channel.send([await channel.receive()])
        except OSError:
            channel.close()


@asynccontextmanager
async def listening(identity: Identity) -> AsyncIterator[Node]:
    node, ready = Node(identity), asyncio.Event()
    task = asyncio.create_task(node.listener.run("127.0.0.1", node.port, ready))
    try:
        async with asyncio.timeout(DEADLINE_S):
            await ready.wait()
        yield node
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "site-ca")


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def runner(scenario: Scenario) -> None:
        async def main() -> None:
            async with asyncio.timeout(4 * DEADLINE_S):
                await scenario()

        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(main())

    return runner


def dialer(identity: Identity, node: Node, node_id: str = "n1") -> TlsDialer:
    context = client_context(identity.ca, identity.cert, identity.key, section="node_link")
    return TlsDialer(context, {node.address: node_id})


async def answer(channel: Channel, message: bytes = b"ping") -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        await channel.send([message])
        return await channel.receive()


def test_agent_and_node_know_each_other(
    play: Callable[[Scenario], None], authority: Authority
) -> None:
    async def scenario() -> None:
        async with listening(authority.server("n1")) as node:
            channel = await dialer(authority.client("lubbock"), node)(node.address)
            big = bytes(range(256)) * 1_000
            assert await answer(channel, big) == big
            channel.close()
            assert node.refused == 0

    play(scenario)


def test_the_agent_of_another_site_is_refused(
    play: Callable[[Scenario], None], authority: Authority
) -> None:
    async def scenario() -> None:
        async with listening(authority.server("n1")) as node:
            channel = await dialer(authority.client("houston"), node)(node.address)
            with pytest.raises(OSError):  # noqa: PT011 - how it learns of it is the kernel's affair
                await answer(channel)
            await node.until_refused(1)
            assert node.served == 0

    play(scenario)


def test_an_agent_whose_certificate_another_authority_signed_is_refused(
    play: Callable[[Scenario], None],
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stranger = Authority(tmp_path, "other-ca").client("lubbock")
    forged = Identity(authority.file, stranger.cert, stranger.key)

    async def scenario() -> None:
        async with listening(authority.server("n1")) as node:
            with pytest.raises(LinkError, match=r"node n1 ended .* does it take tls_cert"):
                await answer(await dialer(forged, node)(node.address))
            await node.until_refused(1)
            assert node.served == 0

    play(scenario)
    assert "the agent's certificate is not good by tls_ca (unable to get local" in caplog.text


def test_an_agent_without_a_certificate_is_refused(
    play: Callable[[Scenario], None], authority: Authority
) -> None:
    async def scenario() -> None:
        async with listening(authority.server("n1")) as node:
            bare = ssl.create_default_context(cafile=str(authority.file))
            with pytest.raises(LinkError, match="does it take tls_cert"):
                await answer(await TlsDialer(bare, {node.address: "n1"})(node.address))
            await node.until_refused(1)
            assert node.served == 0

    play(scenario)


def test_a_certificate_out_of_date_is_refused(
    play: Callable[[Scenario], None], authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with listening(authority.server("n1")) as node:
            old = authority.client("lubbock", expired=True)
            with pytest.raises(LinkError, match="does it take tls_cert"):
                await answer(await dialer(old, node)(node.address))
            await node.until_refused(1)

    play(scenario)
    assert "(certificate has expired)" in caplog.text


def test_another_node_at_the_address_is_not_obeyed(
    play: Callable[[Scenario], None], authority: Authority, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with listening(authority.server("n2")) as node:
            with pytest.raises(LinkError, match="certificate of 'n2', not of 'n1'"):
                await dialer(authority.client("lubbock"), node)(node.address)
        stranger = Authority(tmp_path, "other-ca").server("n1")
        async with listening(stranger) as node:
            with pytest.raises(LinkError, match="node n1's certificate is not good by tls_ca"):
                await dialer(authority.client("lubbock"), node)(node.address)
        # A client's certificate is none for a server.
        async with listening(authority.client("n1")) as node:
            with pytest.raises(LinkError, match="not good by tls_ca"):
                await dialer(authority.client("lubbock"), node)(node.address)

    play(scenario)


def test_who_speaks_no_tls_is_refused_and_others_are_served_on(
    play: Callable[[Scenario], None], authority: Authority
) -> None:
    async def scenario() -> None:
        async with listening(authority.server("n1")) as node:
            plain = await dial(node.address)
            await plain.send([b"no tls"])
            await node.until_refused(1)
            plain.close()
            channel = await dialer(authority.client("lubbock"), node)(node.address)
            assert await answer(channel) == b"ping"
            channel.close()

    play(scenario)


def test_who_says_nothing_is_let_go_and_holds_up_nobody(
    play: Callable[[Scenario], None], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_TIMEOUT_S", 2.0)

    async def scenario() -> None:
        async with listening(authority.server("n1")) as node:
            silent = [await dial(node.address) for _ in range(tls.GREETING_MAX - 1)]
            channel = await dialer(authority.client("lubbock"), node)(node.address)
            assert await answer(channel) == b"ping"
            channel.close()
            await node.until_refused(len(silent))
            for one in silent:
                one.close()

    play(scenario)


def test_files_that_are_no_certificates_are_named_with_their_section(tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("no certificate", encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        server_context(junk, junk, junk, section="tls")
    assert error.value.problems[0].path == "tls.tls_ca"
    with pytest.raises(SettingsError) as error:
        client_context(junk, junk, junk, section="node_link")
    assert error.value.problems[0].path == "node_link.tls_ca"

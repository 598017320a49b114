"""A real node process with real sockets, store and simulated host; killed, and asked to stop."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.node.link import NodeAddress, NodeLinksClient
from edge_agent.node.tls import TlsDialer
from edge_agent.transport.tls import client_context
from protocol.node import Phase, PhaseDo, ReadingKind
from protocol.resource import Activity
from simulators.stack import free_port
from tests.certificates import Authority, Identity
from tests.edge_agent.node.world import FORWARD, Sink, background, lease_work, step

ROOT = Path(__file__).resolve().parents[3]
CONFIG = """
node_id = "n1"
site_id = "lubbock"
listen = "{listen}"
data_dir = "{folder}/data"
credentials_dir = "{folder}"
[driver]
socket = "{folder}/gpu.sock"
[[device]]
device_id = "d0"
gpu = "gpu0"
device_class = "H100"
"""
TLS = """
[tls]
tls_ca = "{ca}"
tls_cert = "{cert}"
tls_key = "{key}"
"""
NODE = """
import asyncio, sys
from pathlib import Path
from edge_agent.node.config import load_node_config
from edge_agent.node.main import run_node
asyncio.run(run_node(load_node_config(Path(sys.argv[1]))))
"""


@asynccontextmanager
async def _process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _switch(links: NodeLinksClient, name: str, source: Activity, target: Activity) -> None:
    work = lease_work(f"i-{name}") if target is Activity.SERVE else None
    for phase in FORWARD:
        request = PhaseDo(
            agent_epoch=1,
            switch_id=name,
            phase=phase,
            deadline_ms=3_000,
            steps=(step("d0", source, target, work),),
        )
        done = await links.do("n1", request)
        assert done.outcomes[0].status == "done", done


async def _until(condition: Callable[[], bool], limit_s: float = 15) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - another process gives no event
            await asyncio.sleep(0.02)


async def _ready(links: NodeLinksClient, sink: Sink) -> None:
    await _until(lambda: links.connected("n1"))
    sink.facts.clear()
    await _until(lambda: bool(sink.facts) and sink.facts[-1].samples[0].healthy)


@pytest.mark.e2e
async def test_a_killed_node_carries_on_and_the_bill_equals_the_gate(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/node.sock"
    config = tmp_path / "node.toml"
    config.write_text(CONFIG.format(listen=listen, folder=tmp_path), encoding="utf-8")
    sink = Sink()
    links = NodeLinksClient(
        (NodeAddress(node_id="n1", address=listen),),
        site_id="lubbock",
        agent_epoch=1,
        sink=sink,
        hub_heard_age_ms=lambda: 0,
        uniform=random.Random(1).uniform,
    )
    truth = tmp_path / "truth.jsonl"
    host = ("gpu", "--socket", f"{tmp_path}/gpu.sock", "--gpus", "H100:1", "--truth", str(truth))
    async with _process("-m", "simulators", *host), background(links.run()):
        async with _process("-c", NODE, str(config)) as node:
            await _ready(links, sink)
            await _switch(links, "s1", Activity.IDLE, Activity.SERVE)
            node.kill()
            await node.wait()
        await _until(lambda: not links.connected("n1"))
        async with _process("-c", NODE, str(config)) as node:
            await _ready(links, sink)
            assert sink.inventories[-1].devices[0].activity is Activity.SERVE
            await _switch(links, "s2", Activity.SERVE, Activity.MINE)
            assert sink.inventories[-1].node_id == "n1"
            await _until(lambda: sink.readings[-1].kind is ReadingKind.CLOSE, 5)
            assert (
                f'"served_ns":{sink.readings[-1].served_ns}' in truth.read_text().splitlines()[-1]
            )
            assert [one.seq for one in sink.readings] == list(range(1, len(sink.readings) + 1))
            node.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                assert await node.wait() == 0


@pytest.mark.e2e
async def test_a_node_on_the_network_obeys_its_site_s_certificate_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "site-ca")
    node_id = authority.server("n1")
    listen = f"tcp:127.0.0.1:{free_port()}"
    config = tmp_path / "node.toml"
    settings = CONFIG.format(listen=listen, folder=tmp_path) + TLS.format(
        folder=tmp_path, ca=node_id.ca.name, cert=node_id.cert.name, key=node_id.key.name
    )
    config.write_text(settings, encoding="utf-8")
    sink = Sink()
    address = NodeAddress(node_id="n1", address=listen)

    def links(identity: Identity, sink: Sink) -> NodeLinksClient:
        context = client_context(identity.ca, identity.cert, identity.key, section="node_link")
        return NodeLinksClient(
            (address,),
            site_id="lubbock",
            agent_epoch=1,
            sink=sink,
            hub_heard_age_ms=lambda: 0,
            uniform=random.Random(1).uniform,
            dialer=TlsDialer(context, {listen: "n1"}),
        )

    ours = links(authority.client("lubbock"), sink)
    other = links(authority.client("houston"), Sink())
    host = ("gpu", "--socket", f"{tmp_path}/gpu.sock", "--gpus", "H100:1")
    async with (
        _process("-m", "simulators", *host),
        _process("-c", NODE, str(config)),
        background(ours.run()),
        background(other.run()),
    ):
        await _ready(ours, sink)
        await _switch(ours, "s1", Activity.IDLE, Activity.SERVE)
        await _until(lambda: "tls_cert" in other.stats("n1").last_error)
        assert not other.connected("n1")


def test_phases_named_here_are_all_there_are() -> None:
    assert set(Phase) == {*FORWARD, Phase.ROLLBACK, Phase.QUARANTINE}

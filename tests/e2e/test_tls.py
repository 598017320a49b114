"""TLS 1.3 with certificates on both sides: agent, mosquitto as we configure it, and hub."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge_agent.transport.mqtt import AiomqttConnector as EdgeConnector
from edge_agent.transport.mqtt import Endpoint
from edge_agent.transport.tls import client_context as edge_context
from hub.store import sites
from hub.store.database import connect, open_store
from hub.store.migrations import migrate
from hub.store.schema import MIGRATIONS
from hub.transport.mqtt import AiomqttConnector as HubConnector
from hub.transport.mqtt import BrokerAddress
from hub.transport.tls import client_context as hub_context
from protocol import topics
from protocol.sync import Lane
from simulators.process import Program, python_module
from simulators.stack import free_port, run_command
from tests.certificates import Authority, Identity
from tests.tls_broker import find_mosquitto, tls_broker

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

HUB_USER = "hcp_hub"
# Neither side may find out by waiting: the shorter timeout of a connect is 10 s.
AT_ONCE_S = 5.0
TRIES = 10
Connect = Callable[[int, ssl.SSLContext | None], AbstractAsyncContextManager[Any]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


@pytest.fixture
def port(tmp_path: Path, authority: Authority) -> Iterator[int]:
    with tls_broker(tmp_path, authority.server("broker")) as number:
        yield number


def as_edge(port: int, tls: ssl.SSLContext | None) -> AbstractAsyncContextManager[Any]:
    return EdgeConnector(Endpoint(host="127.0.0.1", port=port), tls).connect(
        client_id="edge", clean_start=True, session_expiry_s=0, receive_maximum=16, will=None
    )


def as_hub(port: int, tls: ssl.SSLContext | None) -> AbstractAsyncContextManager[Any]:
    return HubConnector(BrokerAddress(port=port), tls).connect(
        client_id="hub", clean_start=True, session_expiry_s=0, receive_maximum=16, will=None
    )


def context_of(identity: Identity, ca: Path | None = None) -> ssl.SSLContext:
    return edge_context(ca or identity.ca, identity.cert, identity.key)


# --- who is let in --------------------------------------------------------------------------------


@pytest.mark.parametrize("connect_as", [as_edge, as_hub])
async def test_a_client_that_is_not_good_is_refused_at_once_with_the_reason(
    port: int, authority: Authority, tmp_path: Path, connect_as: Connect
) -> None:
    foreign = Authority(tmp_path, "foreign")
    no_certificate = ssl.create_default_context(cafile=str(authority.file))
    old = context_of(authority.client("lubbock"))
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    server_only = authority.server("not-a-client")
    cases: list[tuple[ssl.SSLContext | None, type[OSError], str]] = [
        # We trust another authority than the one that signed the broker.
        (context_of(foreign.client("lubbock")), ConnectionError, "not good by tls_ca"),
        # Another authority than the broker's signed us.
        (
            context_of(foreign.client("lubbock"), authority.file),
            PermissionError,
            "does not know who signed tls_cert",
        ),
        (no_certificate, PermissionError, "wants a certificate"),
        (context_of(authority.client("old", expired=True)), PermissionError, "out of date"),
        (context_of(server_only), PermissionError, "does not take tls_cert for a client's"),
        (old, PermissionError, "TLS version"),
        (None, ConnectionError, "closed before it answered"),
    ]
    for tls, kind, said in cases:
        for _ in range(TRIES):
            error = await refused(connect_as, port, tls)
            if said in str(error):
                break
            # The broker hangs up with our packet unread: the kernel may then drop its alert.
            assert "closed before it answered" in str(error), said
        assert said in str(error)
        assert isinstance(error, kind), said


async def refused(connect_as: Connect, port: int, tls: ssl.SSLContext | None) -> OSError:
    """Connect once and give the refusal, which must come at once."""
    async with asyncio.timeout(AT_ONCE_S):
        with pytest.raises(OSError, match=r"\w") as caught:
            async with connect_as(port, tls):
                pytest.fail("let in")
    return caught.value


@pytest.mark.parametrize("connect_as", [as_edge, as_hub])
async def test_a_broker_under_another_name_or_out_of_date_is_not_trusted(
    tmp_path: Path, connect_as: Connect
) -> None:
    authority = Authority(tmp_path, "ca")
    for identity in (authority.client("no-address"), authority.server("old", expired=True)):
        trusting = context_of(authority.client("lubbock"))
        with (
            tls_broker(tmp_path, identity) as port,
            pytest.raises(ConnectionError, match="not good by tls_ca"),
        ):
            async with connect_as(port, trusting):
                pytest.fail("it was trusted")


async def test_a_certificate_that_was_taken_back_is_refused(
    tmp_path: Path, authority: Authority
) -> None:
    stolen, good = authority.client("lubbock"), authority.client("houston")
    crl = authority.revoke(stolen)
    with tls_broker(tmp_path, authority.server("broker"), crl) as port:
        told = [str(await refused(as_edge, port, context_of(stolen))) for _ in range(TRIES)]
        assert any("finds tls_cert revoked" in text for text in told)
        async with as_edge(port, context_of(good)) as link:
            await link.publish(topics.up("houston", Lane.USAGE), b"1")


async def test_a_site_uses_its_own_topics_only(port: int, authority: Authority) -> None:
    async with as_edge(port, context_of(authority.client("lubbock"))) as link:
        for lane in Lane:
            await link.publish(topics.up("lubbock", lane), b"1")
        await link.publish(topics.site_state("lubbock"), b"1", retain=True)
        foreign = [
            *(topics.up("houston", lane) for lane in Lane),
            topics.site_state("houston"),
            topics.down_ack("lubbock"),
            topics.down_policy("lubbock"),
            topics.down_cmd("houston"),
            topics.down_lease("lubbock", "w-1.1"),
            topics.HUB_STATE,
            topics.HUB_HEARTBEAT,
            topics.HUB_CANARY,
            topics.market("ercot"),
            "hcp/v1/lubbock/up/usage/more",
            "hcp/v1/lubbock",
            "hcp/v2/lubbock/up/usage",
            "anything",
        ]
        for topic in foreign:
            with pytest.raises(PermissionError):
                await link.publish(topic, b"1")


async def test_a_site_hears_what_is_meant_for_it_only(port: int, authority: Authority) -> None:
    heard: list[str] = []
    async with (
        as_hub(port, hub_context(*_files(authority.client(HUB_USER)))) as hub,
        as_edge(port, context_of(authority.client("lubbock"))) as edge,
    ):
        await edge.subscribe([("hcp/v1/#", 1)])  # granted; what is not allowed is not delivered
        meant = [
            topics.down_ack("lubbock"),
            topics.down_lease("lubbock", "w-1.1"),
            topics.HUB_STATE,
            topics.market("ercot"),
        ]
        others = [
            topics.down_ack("houston"),
            topics.down_lease("houston", "w-2.1"),
            topics.up("houston", Lane.USAGE),
            topics.up("lubbock", Lane.USAGE),
            topics.site_state("houston"),
            topics.HUB_CANARY,
        ]
        for topic in (*others, *meant):
            await hub.publish(topic, b"1")
        async with asyncio.timeout(AT_ONCE_S):
            async for message in edge.messages():
                heard.append(message.topic)
                await message.ack()
                if len(heard) == len(meant):
                    break
    assert heard == meant


def test_files_that_are_no_certificates_are_named(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.client("lubbock"), authority.client("houston")
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing\n")
    for make in (edge_context, hub_context):
        for files, said in (
            ((junk, good.cert, good.key), r"mqtt\.tls_ca: junk\.pem holds no certificate"),
            ((good.ca, junk, good.key), r"mqtt\.tls_cert: junk\.pem and ca-lubbock\.key are not"),
            ((good.ca, good.cert, other.key), r"ca-lubbock\.crt and ca-houston\.key are not"),
        ):
            with pytest.raises(Exception, match=said) as caught:
                make(*files)
            assert type(caught.value).__name__ in ("SettingsError", "ConfigError")


# --- agent, broker and hub ------------------------------------------------------------------------


@pytest.mark.slow
async def test_agents_reach_the_hub_by_their_certificates_or_say_why_not(
    port: int, authority: Authority, root: Path
) -> None:
    foreign = Authority(root, "foreign")
    hub = _hub(root, port, authority.client(HUB_USER))
    # The site id is the name of the certificate: houston shows lubbock's.
    agents = {
        "lubbock": _agent(root, "lubbock", port, authority.client("lubbock")),
        "houston": _agent(root, "houston", port, authority.client("lubbock")),
        "fargo": _agent(root, "fargo", port, foreign.client("fargo"), authority.file),
        "odessa": _agent(root, "odessa", port, foreign.client("odessa")),
    }
    programs = [hub, *agents.values()]
    try:
        async with asyncio.TaskGroup() as group:
            for program in programs:
                group.create_task(program.start(), name=program.name)
        wanted = {
            "lubbock": "",
            "houston": "PermissionError",
            "fargo": "PermissionError: the broker does not know who signed tls_cert",
            "odessa": "ConnectionError: the broker's certificate is not good by tls_ca",
        }
        said = {name: await _settled(root, name, why) for name, why in wanted.items()}
        for name, why in wanted.items():
            assert said[name]["online"] is (not why), (name, said[name])
            assert said[name]["last_error"].startswith(why), (name, said[name])
        assert said["lubbock"]["backlog"] == 0
    finally:
        await asyncio.gather(*(program.stop() for program in programs))
    store = open_store(root / "hub" / "hub.sqlite", threaded=False)
    rows = {row.site_id: row for row in sites.list_sites(store)}
    store.close()
    assert rows["lubbock"].reported_at is not None
    assert [name for name, row in rows.items() if row.last_seen is not None] == ["lubbock"]


async def _settled(root: Path, name: str, why: str) -> dict[str, Any]:
    """Ask an agent how its link stands, until it is up and empty, or says why it is not."""
    argv = python_module("edge_agent", "status", "--json", "--run-dir", str(root / name / "run"))
    async with asyncio.timeout(40.0):
        while True:
            link: dict[str, Any] = json.loads(await run_command(argv, ok=(0, 1)))["hub"]
            up = link["online"] and link["heard_age_s"] is not None and link["backlog"] == 0
            if (link["last_error"] or "").startswith(why) if why else up:
                return link
            await asyncio.sleep(0.2)


def _hub(root: Path, port: int, identity: Identity) -> Program:
    home = root / "hub"
    home.mkdir()
    connection = connect(home / "hub.sqlite")
    now = datetime.now(UTC)
    migrate(connection, MIGRATIONS, 0)
    for site_id in ("lubbock", "houston", "fargo", "odessa"):
        sites.add(connection, site_id, name=site_id, hub_epoch=1, now=now)
    connection.close()
    (home / "hub.toml").write_text(
        f'data_dir = "{home}"\nissuer = "https://hub.hcp.invalid"\n'
        f'credentials_dir = "{identity.cert.parent}"\n'
        f'[http]\nhost = "127.0.0.1"\nport = {free_port()}\n{_mqtt(port, identity)}'
    )
    argv = python_module("hub", "serve", "--config", str(home / "hub.toml"))
    return Program("hub", argv, root / "hub.log")


def _agent(
    root: Path, site_id: str, port: int, identity: Identity, ca: Path | None = None
) -> Program:
    home = root / site_id
    for name in ("run", "data", "credentials"):
        (home / name).mkdir(parents=True)
    kept = [ca or identity.ca, identity.cert, identity.key]
    files = [home / "credentials" / path.name for path in kept]
    for source, target in zip(kept, files, strict=True):
        target.write_bytes(source.read_bytes())
    (home / "agent.toml").write_text(
        f'site_id = "{site_id}"\ndata_dir = "{home / "data"}"\nrun_dir = "{home / "run"}"\n'
        f'credentials_dir = "{home / "credentials"}"\n[limits]\npower_cap_w = 1e6\n'
        f'[[classes]]\nmodel = "S21"\n{_mqtt(port, Identity(*files))}'
    )
    argv = python_module("edge_agent", "run", "--config", str(home / "agent.toml"))
    return Program(site_id, argv, root / f"{site_id}.log", ready=home / "run" / "view.sock")


def _mqtt(port: int, identity: Identity) -> str:
    names = zip(("tls_ca", "tls_cert", "tls_key"), _files(identity), strict=True)
    lines = [f'{setting} = "{path.name}"' for setting, path in names]
    return "\n".join(["[mqtt]", 'host = "127.0.0.1"', f"port = {port}", *lines, ""])


def _files(identity: Identity) -> tuple[Path, Path, Path]:
    return identity.ca, identity.cert, identity.key

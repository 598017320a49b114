"""Composition root of the hub: ports are chosen here, and everything runs in one TaskGroup."""

import asyncio
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import uvicorn
import uvloop
from joserfc.jwk import RSAKey

from hub.api.app import build_app
from hub.api.deps import Deps, Limits, make_deps
from hub.clock import SystemClock
from hub.config import HubConfig, credential_path
from hub.errors import ConfigError
from hub.live import LiveChannel
from hub.metrics.adapters import ThreadedMetrics
from hub.metrics.database import MetricsDatabase
from hub.notify import sd_notify, watchdog_period_s
from hub.ports import Clock, Store
from hub.security.passwords import Argon2Passwords
from hub.security.tokens import TokenKeys, load_keys
from hub.services.back import HubBack
from hub.store import users
from hub.store.database import connect, open_store
from hub.store.long_reads import ThreadedReads
from hub.store.migrations import migrate
from hub.store.schema import MIGRATIONS
from hub.transport.mqtt import AiomqttConnector, BrokerAddress
from hub.transport.tls import client_context
from protocol.ids import IdSource
from protocol.units import to_ms

_LOG = logging.getLogger("hub")
SHUTDOWN_S = 5
HOUSEKEEPING_S = 60.0
WS_MESSAGE_MAX = 64 * 1024


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers (the composition root has its own), and an event."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def migrate_store(config: HubConfig) -> tuple[str, ...]:
    """Make the data folder and bring the store's schema up to date; gives what was applied."""
    Path(config.data_dir).mkdir(mode=0o750, parents=True, exist_ok=True)
    connection = connect(config.store_path)
    try:
        return migrate(connection, MIGRATIONS, to_ms(SystemClock().wall()))
    finally:
        connection.close()


async def serve(config: HubConfig) -> None:
    """Run the hub until SIGTERM or SIGINT.

    Raises:
        HubError: it cannot start. OSError: the address cannot be bound.
    """
    for name in migrate_store(config):
        _LOG.info("applied migration %s", name)
    clock = SystemClock()
    store = open_store(config.store_path, queue_max=config.limits.writes_waiting_max)
    metrics = ThreadedMetrics(
        MetricsDatabase(config.metrics_path, memory_limit=config.metrics_memory)
    )
    passwords = Argon2Passwords()
    long_reads = ThreadedReads(config.store_path)
    try:
        live = LiveChannel(config.limits.live_clients_max)
        back = HubBack(
            store=store,
            connector=_connector(config),
            metrics=metrics,
            live=live,
            clock=clock,
            rng=random.Random(),
            client_id=config.mqtt.client_id,
        )
        deps = make_deps(
            store=store,
            live=live,
            dispatcher=back.dispatcher,
            clock=clock,
            ids=IdSource(os.urandom),
            tokens=TokenKeys(_keys(config, clock), config.issuer),
            passwords=passwords,
            limits=_limits(config),
            counts=back.counters,
            long_reads=long_reads,
        )
        await _run(config, deps, back)
    finally:
        long_reads.close()
        passwords.close()
        metrics.close()
        store.close()


async def _run(config: HubConfig, deps: Deps, back: HubBack) -> None:
    listener = socket.create_server((config.http.host, config.http.port), backlog=2_048)
    server = _Server(
        uvicorn.Config(
            build_app(deps),
            http="httptools",
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_max_size=WS_MESSAGE_MAX,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=bool(config.http.trusted_proxies),
            forwarded_allow_ips=config.http.trusted_proxies or None,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stop.set)
    async with asyncio.TaskGroup() as group:
        http = group.create_task(server.serve(sockets=[listener]), name="hub-http")
        others = [
            group.create_task(back.run(), name="hub-back"),
            group.create_task(_housekeep(deps.store, deps.clock), name="hub-housekeeping"),
            group.create_task(_watchdog(), name="hub-watchdog"),
            group.create_task(_announce(server, listener), name="hub-announce"),
        ]
        await stop.wait()
        sd_notify("STOPPING=1")
        server.should_exit = True
        await asyncio.wait({http})
        for task in others:
            task.cancel()


async def _announce(server: _Server, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    await server.listening.wait()
    sd_notify("READY=1")
    _LOG.info("listening on http://%s:%s", host, port)


async def _housekeep(store: Store, clock: Clock) -> None:
    while True:
        await store.write(partial(users.forget_answers, now_ms=to_ms(clock.wall())))
        await asyncio.sleep(HOUSEKEEPING_S)


async def _watchdog() -> None:
    period_s = watchdog_period_s()
    while period_s is not None:
        sd_notify("WATCHDOG=1")
        await asyncio.sleep(period_s)


def _connector(config: HubConfig) -> AiomqttConnector:
    mqtt = config.mqtt
    password = None
    if mqtt.password_credential:
        path = credential_path(config, mqtt.password_credential, os.environ)
        password = path.read_text(encoding="utf-8").strip()
    context = None
    if mqtt.tls_ca:
        ca, cert, key = (
            credential_path(config, name, os.environ)
            for name in (mqtt.tls_ca, mqtt.tls_cert, mqtt.tls_key)
        )
        context = client_context(ca, cert, key)
    address = BrokerAddress(
        host=mqtt.host, port=mqtt.port, username=mqtt.username or None, password=password
    )
    return AiomqttConnector(address, context)


def _keys(config: HubConfig, clock: Clock) -> tuple[RSAKey, ...]:
    if not config.jwt_credential:
        return load_keys(config.keys_path, clock.wall())
    path = credential_path(config, config.jwt_credential, os.environ)
    try:
        return (RSAKey.import_key(path.read_bytes()),)
    except (ValueError, TypeError) as exc:
        raise ConfigError("key_unreadable", f"{path} is not an RSA private key") from exc


def _limits(config: HubConfig) -> Limits:
    limits = config.limits
    return Limits(
        body_bytes_max=limits.body_bytes_max,
        rate_per_s=limits.rate_per_s,
        burst=limits.burst,
        anonymous_rate_per_s=limits.anonymous_rate_per_s,
        anonymous_burst=limits.anonymous_burst,
        logins_per_min=limits.logins_per_min,
    )


def run_server(config: HubConfig) -> None:
    """Run the hub in an event loop of its own (uvloop)."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config))

"""A hub front on a real socket: uvicorn, the real store, a clock that stands still."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import httpx
import uvicorn
from joserfc.jwk import RSAKey

from hub.api.app import build_app
from hub.api.deps import Deps, Limits, make_deps
from hub.api.front import Front
from hub.clock import ManualClock
from hub.core.authz import Role
from hub.core.rating import ClassPrice
from hub.ingest.counters import Counters
from hub.live import LiveChannel
from hub.security.passwords import FakePasswords
from hub.security.tokens import TokenKeys
from hub.store import rate_cards, users
from hub.store.database import Database, connect, open_store
from hub.store.long_reads import ThreadedReads
from hub.store.migrations import migrate
from hub.store.schema import MIGRATIONS
from hub.store.users import UserRow
from protocol.ids import IdSource

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
ISSUER = "https://hub.test"
KEY = RSAKey.generate_key(2048)
PASSWORD = "correct horse"
USERS = (
    ("u-admin", "admin@x.test", Role.ADMIN, None),
    ("u-op", "op@x.test", Role.OPERATOR, None),
    ("u-c1", "c1@x.test", Role.CUSTOMER, "c1"),
    ("u-c2", "c2@x.test", Role.CUSTOMER, "c2"),
)


class CountingDispatcher:
    def __init__(self) -> None:
        self.woken = 0
        self.published: list[str] = []
        self.orders_published = 0

    def publish_orders(self) -> None:
        self.orders_published += 1

    def publish(self, lease_ids: Sequence[str]) -> None:
        self.published += lease_ids

    def wake(self) -> None:
        self.woken += 1


@dataclass(frozen=True)
class Hub:
    """A running front."""

    front: Front
    deps: Deps
    clock: ManualClock
    dispatcher: CountingDispatcher
    port: int
    client: httpx.AsyncClient
    path: Path
    long_reads: ThreadedReads

    def token(self, role: str) -> str:
        for user_id, email, user_role, customer in USERS:
            if user_id == f"u-{role}":
                return self.deps.tokens.sign(
                    sub=user_id, email=email, role=user_role, customer_id=customer,
                    now=self.clock.wall(),
                )  # fmt: skip
        raise KeyError(role)

    def headers(self, role: str, **more: str) -> dict[str, str]:
        bearer = {} if role == "anonymous" else {"Authorization": f"Bearer {self.token(role)}"}
        return {**bearer, **{name.replace("_", "-"): value for name, value in more.items()}}


class Ids:
    """Random bytes that only count: ids differ and repeat from run to run."""

    def __init__(self) -> None:
        self._n = 0

    def __call__(self, size: int) -> bytes:
        self._n += 1
        return self._n.to_bytes(size, "big")


def make_store(path: Path, passwords_of: str) -> Database:
    connection = connect(path, synchronous="OFF")
    migrate(connection, MIGRATIONS, 1)
    for user_id, email, role, customer in USERS:
        users.add(
            connection,
            UserRow(
                user_id=user_id, email=email, role=role, customer_id=customer,
                password_hash=passwords_of,
            ),
            NOW,
        )  # fmt: skip
    prices = [
        ClassPrice(device_class="H100", price_usd_per_h=Decimal("2.50")),
        ClassPrice(device_class="A100", price_usd_per_h=Decimal("1.10")),
    ]
    rate_cards.add(connection, NOW.replace(minute=0), prices, NOW)
    connection.close()
    return open_store(path)


async def start_hub(path: Path, limits: Limits) -> tuple[Hub, uvicorn.Server, Database]:
    passwords = FakePasswords()
    store = make_store(path, await passwords.hash(PASSWORD))
    clock, dispatcher = ManualClock(NOW), CountingDispatcher()
    long_reads = ThreadedReads(path)
    deps = make_deps(
        store=store, live=LiveChannel(), dispatcher=dispatcher, clock=clock, ids=IdSource(Ids()),
        tokens=TokenKeys([KEY], ISSUER), passwords=passwords, limits=limits, counts=Counters(),
        long_reads=long_reads,
    )  # fmt: skip
    front = build_app(deps)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        front, log_level="warning", lifespan="off", ws="websockets-sansio",
        ws_per_message_deflate=False, http="httptools", access_log=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    hub = Hub(
        front, deps, clock, dispatcher, port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5), path, long_reads,
    )  # fmt: skip
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    return hub, server, store

"""What one message that cannot be dealt with does to the hub and to the ones beside it: nothing."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from hub.clock import ManualClock
from hub.core.sync import SeqSet
from hub.errors import MetricsError
from hub.ingest.counters import Counters
from hub.ingest.inbox import Inbox
from hub.live import LiveChannel
from hub.metrics.adapters import MemoryMetrics
from hub.metrics.ledger import TeleAnswer, TeleBatch
from hub.ports import MqttConnection
from hub.store import sites, sync_tables
from hub.store.database import Database, connect, open_store
from hub.store.migrations import migrate
from hub.store.schema import MIGRATIONS
from protocol import topics
from protocol.codec import DOWN_ACK, encode
from protocol.sync import Ack, Birth, Lane, Record, Stream, UpBatch, digest_of
from tests.hub.ingest.conftest import START


class Message:
    def __init__(self, topic: str, payload: bytes) -> None:
        self.topic, self.payload, self.retain = topic, payload, False
        self.acked = 0
        self.done = asyncio.Event()

    async def ack(self) -> None:
        self.acked += 1
        self.done.set()


class Link:
    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1) -> None:
        self.sent.append((topic, payload))

    def as_connection(self) -> MqttConnection:
        return cast("MqttConnection", self)  # which only publishes


class Picky(MemoryMetrics):
    """Cannot store the batches of one site, nor any group that holds one."""

    async def commit(self, batches: Sequence[TeleBatch]) -> tuple[TeleAnswer, ...]:
        if any(batch.site_id == "houston" for batch in batches):
            raise MetricsError("metrics_failed", "no place for it")
        return tuple(TeleAnswer(known=SeqSet(batch.records[-1].seq)) for batch in batches)


@pytest.fixture
def store(tmp_path: Path) -> Database:
    connection = connect(tmp_path / "hub.sqlite", synchronous="OFF")
    migrate(connection, MIGRATIONS, 1)
    for site_id in ("houston", "lubbock"):
        sites.add(connection, site_id, name=site_id, hub_epoch=1, now=START)
        sync_tables.enrol(connection, birth_of(site_id), 0)
    connection.close()
    return open_store(tmp_path / "hub.sqlite")


def birth_of(site_id: str) -> Birth:
    return Birth(
        site_id=site_id, store_id=f"s-{site_id}", boot_id="b", conn_no=1, at=START,
        agent_version="1", heads=(),
    )  # fmt: skip


def inbox_of(store: Database, counters: Counters) -> Inbox:
    return Inbox(
        store=store, metrics=Picky(), live=LiveChannel(), clock=ManualClock(START),
        counters=counters, after=lambda _: None,
    )  # fmt: skip


async def test_a_message_that_nobody_foresaw_is_counted_and_ends_nothing(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: object) -> None:
        raise OverflowError("int too large")

    counters, link = Counters(), Link()
    monkeypatch.setattr(store, "write", broken)
    message = Message(topics.site_state("lubbock"), encode(birth_of("lubbock")))
    await inbox_of(store, counters).take(message, link.as_connection())
    assert message.acked == 1
    assert link.sent == []
    assert dict(counters.snapshot())["failed_unexpected"] == 1
    store.close()


async def test_a_dead_link_is_told_and_acks_nothing(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    link = Link()
    monkeypatch.setattr(link, "publish", gone)
    message = Message(topics.site_state("lubbock"), encode(birth_of("lubbock")))
    with pytest.raises(ConnectionError):
        await inbox_of(store, Counters()).take(message, link.as_connection())
    assert message.acked == 0
    store.close()


async def test_telemetry_that_cannot_be_stored_holds_back_no_other_sites(store: Database) -> None:
    counters, link = Counters(), Link()
    inbox = inbox_of(store, counters)
    running = asyncio.create_task(inbox.run_telemetry(link.as_connection()))
    await asyncio.sleep(0)  # it drops what waits when it starts
    messages: list[Message] = []
    for site_id in ("lubbock", "houston", "lubbock"):
        body = f"{site_id} {len(messages)}".encode()
        record = Record(len(messages) + 1, digest_of(body), body)
        batch = UpBatch(1, site_id, f"s-{site_id}", Stream.TELE, (record,))
        messages.append(Message(topics.up(site_id, Lane.TELE), encode(batch)))
        await inbox.take(messages[-1], link.as_connection())
    async with asyncio.timeout(20):
        for message in messages:
            await message.done.wait()
    running.cancel()
    assert [message.acked for message in messages] == [1, 1, 1]
    assert dict(counters.snapshot())["failed_metrics_failed"] == 1
    assert {topic for topic, _ in link.sent} == {topics.down_ack("lubbock")}
    acks = [DOWN_ACK.decode(payload) for _, payload in link.sent]
    assert [ack.wm for ack in acks if isinstance(ack, Ack)] == [1, 3]
    store.close()

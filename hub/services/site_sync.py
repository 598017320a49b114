"""The hub's end of the link: connect, present itself, take messages, watch the broker's memory."""

import asyncio
import logging
import random
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from msgspec import Struct

from hub.errors import HubError
from hub.ingest.counters import Counters
from hub.ingest.inbox import Inbox
from hub.ports import Clock, Inbound, MqttConnection, MqttConnector, Store, Will
from hub.services.desired import DesiredState
from hub.store import sites, sync_tables
from protocol import topics
from protocol.codec import CANARY, encode
from protocol.errors import DecodeError
from protocol.sync import Canary, HubHeartbeat, HubState
from protocol.units import to_ms

_log = logging.getLogger("hub.site_sync")

SESSION_EXPIRY_S = 7 * 86_400
RECEIVE_MAXIMUM = 16
WILL_DELAY_S = 15
HEARTBEAT_S = 10.0
CANARY_S = 60.0
CANARY_WAIT_S = 5.0
HEARD_FLUSH_S = 5.0
STABLE_S = 60.0
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
PUBLISH_S = 15.0
GOODBYE_S = 2.0
TAKING_MAX = 64
LINK_ERRORS = (ConnectionError, TimeoutError, PermissionError, HubError)


class Backoff:
    """Full jitter with a growing bound, reset by a connection that was stable.

    Args:
        rng: source of chance.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._failures = 0

    def next_s(self, connected_s: float) -> float:
        """Give the seconds to wait after a connection that lasted ``connected_s``."""
        if connected_s >= STABLE_S:
            self._failures = 0
        bound = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return self._rng.uniform(0.0, bound)


class _Session(Struct, frozen=True):
    """One connection: its number, and the epoch in which it was made."""

    hub_epoch: int
    conn_no: int


class SiteSync:
    """Keeps a connection to the broker and serves it.

    Args:
        connector: makes connections. store: the operational store. inbox: takes messages.
        desired: publishes leases. clock: time. rng: jitter. counters: what happened.
        client_id: name of this hub's MQTT session.

    Attributes:
        connected: whether a connection stands now.
    """

    def __init__(
        self,
        *,
        connector: MqttConnector,
        store: Store,
        inbox: Inbox,
        desired: DesiredState,
        clock: Clock,
        rng: random.Random,
        counters: Counters,
        client_id: str = "hcp-hub",
    ) -> None:
        self._connector = connector
        self._store = store
        self._inbox = inbox
        self._desired = desired
        self._clock = clock
        self._backoff = Backoff(rng)
        self._counters = counters
        self._client_id = client_id
        self._canary: Canary | None = None
        self._canary_seen = asyncio.Event()
        self._flushed_ns: dict[str, int] = {}
        self.connected = False

    async def run(self) -> None:
        """Serve the sites until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            # In a task of its own, because on 3.11 a TaskGroup whose child fails in the turn of a
            # cancel swallows the cancel; here it ends the session, and the loop still hears of it.
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._session(), name="hub-session")
            await asyncio.sleep(self._backoff.next_s(loop.time() - started_s))

    async def _session(self) -> None:
        """Serve one connection to its end, whatever ends it."""
        try:
            await self._connect_and_serve()
        except* LINK_ERRORS as group:
            self._counters.add("link_lost")
            _log.warning("link=lost why=%s", _first(group))
        finally:
            self.connected = False

    async def _connect_and_serve(self) -> None:
        session = await self._store.write(
            lambda connection: _Session(
                sync_tables.meta(connection, "hub_epoch"),
                sync_tables.raise_meta(connection, "conn_no"),
            )
        )
        will = Will(
            topic=topics.HUB_STATE,
            payload=_state(session, online=False),
            retain=True,
            delay_s=WILL_DELAY_S,
        )
        async with self._connector.connect(
            client_id=self._client_id,
            clean_start=False,
            session_expiry_s=SESSION_EXPIRY_S,
            receive_maximum=RECEIVE_MAXIMUM,
            will=will,
        ) as link:
            self._counters.add("connected")
            _log.info("link=up conn_no=%d hub_epoch=%d", session.conn_no, session.hub_epoch)
            try:
                await self._serve(link, session)
            except asyncio.CancelledError:
                await self._say_goodbye(link, session)
                raise

    async def _serve(self, link: MqttConnection, session: _Session) -> None:
        self._canary = None
        self._canary_seen.clear()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive(link), name="hub-receive")
            tasks.create_task(self._inbox.run_telemetry(link), name="hub-telemetry")
            # Its own state first: an edge that sees it may send.
            await self._publish(link, topics.HUB_STATE, _state(session, online=True), retain=True)
            async with asyncio.timeout(PUBLISH_S):
                await link.subscribe(topics.hub_subscriptions())
            self.connected = True
            tasks.create_task(self._heartbeats(link, session), name="hub-heartbeat")
            tasks.create_task(self._desired.run(link), name="hub-desired")
            tasks.create_task(self._watch_canary(link, session), name="hub-canary")
            tasks.create_task(self._flush_heard(), name="hub-heard")

    async def _receive(self, link: MqttConnection) -> None:
        slots = asyncio.Semaphore(TAKING_MAX)
        async with asyncio.TaskGroup() as tasks:
            async for message in link.messages():
                if message.topic == topics.HUB_CANARY:
                    await self._take_canary(message)
                    continue
                await slots.acquire()
                # Tasks start in this order and their writes queue in it: streams stay ordered.
                tasks.create_task(self._take(message, link, slots), name="hub-take")
            raise ConnectionError("the broker ended the stream of messages")

    async def _take(self, message: Inbound, link: MqttConnection, slots: asyncio.Semaphore) -> None:
        try:
            await self._inbox.take(message, link)
        finally:
            slots.release()

    async def _heartbeats(self, link: MqttConnection, session: _Session) -> None:
        while True:
            beat = HubHeartbeat(hub_epoch=session.hub_epoch, hub_time=self._clock.wall())
            await self._publish(link, topics.HUB_HEARTBEAT, encode(beat), qos=0)
            await asyncio.sleep(HEARTBEAT_S)

    async def _watch_canary(self, link: MqttConnection, session: _Session) -> None:
        """Read the canary back; what the broker has lost is published again, the canary last."""
        while True:
            expected = self._expected_canary(session)
            try:
                async with asyncio.timeout(CANARY_WAIT_S):
                    await self._canary_seen.wait()
            except TimeoutError:
                self._counters.add("canary_missing")
            if self._canary != expected:
                await self._plant_canary(link, session)
            await asyncio.sleep(CANARY_S)
            self._canary = None
            self._canary_seen.clear()
            async with asyncio.timeout(PUBLISH_S):
                await link.subscribe(((topics.HUB_CANARY, 1),))

    async def _plant_canary(self, link: MqttConnection, session: _Session) -> None:
        _log.warning("canary=lost action=publish_everything")
        self._counters.add("desired_republished")
        await self._publish(link, topics.HUB_STATE, _state(session, online=True), retain=True)
        await self._desired.publish_everything(link)
        await self._store.write(lambda connection: sync_tables.raise_meta(connection, "canary_no"))
        canary = encode(self._expected_canary(session))
        await self._publish(link, topics.HUB_CANARY, canary, retain=True)

    def _expected_canary(self, session: _Session) -> Canary:
        (number,) = self._store.read("SELECT number FROM hub_meta WHERE name = 'canary_no'")[0]
        return Canary(hub_epoch=session.hub_epoch, nonce=f"c{session.hub_epoch}-{number}")

    async def _take_canary(self, message: Inbound) -> None:
        # A copy that is not retained is our own publish on its way past; it proves nothing.
        if message.retain:
            with suppress(DecodeError):  # a canary that cannot be read is a missing one
                self._canary = CANARY.decode(message.payload)
            self._canary_seen.set()
        await message.ack()

    async def _flush_heard(self) -> None:
        """Store when each site was last heard from, for people and for the next start."""
        while True:
            await asyncio.sleep(HEARD_FLUSH_S)
            changed = [
                site_id
                for site_id, at_ns in self._inbox.heard_ns.items()
                if self._flushed_ns.get(site_id) != at_ns
            ]
            if not changed:
                continue
            now_ms, now_ns = to_ms(self._clock.wall()), self._clock.boottime_ns()
            rows = [
                (site_id, now_ms - (now_ns - self._inbox.heard_ns[site_id]) // 1_000_000)
                for site_id in changed
            ]
            self._flushed_ns |= {site_id: self._inbox.heard_ns[site_id] for site_id in changed}
            await self._store.write(partial(_store_heard, heard=tuple(rows)))

    async def _say_goodbye(self, link: MqttConnection, session: _Session) -> None:
        with suppress(ConnectionError, TimeoutError, PermissionError):
            async with asyncio.timeout(GOODBYE_S):
                await link.publish(
                    topics.HUB_STATE, _state(session, online=False), qos=1, retain=True
                )

    async def _publish(
        self,
        link: MqttConnection,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
    ) -> None:
        async with asyncio.timeout(PUBLISH_S):
            await link.publish(topic, payload, qos=qos, retain=retain)


def _state(session: _Session, *, online: bool) -> bytes:
    return encode(HubState(hub_epoch=session.hub_epoch, online=online, conn_no=session.conn_no))


def _store_heard(connection: sqlite3.Connection, heard: Sequence[tuple[str, int]]) -> None:
    for site_id, at_ms in heard:
        sites.heard(connection, site_id, at_ms)


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group

"""From one MQTT message to a commit, the application ack, and the MQTT ack, in this order.

A crash between any two of these steps makes a message come again, and the ledger makes that
harmless. A message that cannot be taken now is acked to the broker and left unacked to the edge,
which sends it again: an unacked MQTT message would block the ones behind it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from hub.core import live
from hub.core.sync import SeqSet, build_ack, credit_after
from hub.errors import HubError
from hub.ingest.batches import Taken, take_batch
from hub.ingest.births import TelemetryHead, encode_reply, take_birth, take_death
from hub.ingest.counters import Counters
from hub.ingest.effects import Effects
from hub.metrics.ledger import TeleAnswer, TeleBatch
from hub.metrics.ports import Metrics
from hub.ports import Clock, Inbound, Live, MqttConnection, Store
from hub.store import sites, sync_tables
from hub.store.sync_tables import AlarmRow, read_epoch
from protocol import topics
from protocol.codec import SITE_LIVE, SITE_STATE, UP_BATCH, encode
from protocol.errors import DecodeError
from protocol.event import SiteLive
from protocol.sync import Ack, Death, Lane, NackCode, Stream, UpBatch
from protocol.units import to_ms

_log = logging.getLogger("hub.ingest")

STREAM_OF_LANE = {
    Lane.USAGE: Stream.USAGE,
    Lane.EVENT: Stream.EVENT,
    Lane.SCHEMA: Stream.SCHEMA,
    Lane.TELE: Stream.TELE,
    Lane.HIST: Stream.TELE,
}
TELEMETRY_LANES = frozenset({Lane.TELE, Lane.HIST})
# ReceiveMaximum bounds what the broker sends; this bounds what waits for the telemetry store.
TELEMETRY_WAITING_MAX = 32
TELEMETRY_GROUP_MAX = 8
PUBLISH_S = 15.0


class _Telemetry(Struct, frozen=True):
    """A telemetry message that waits for its commit."""

    message: Inbound
    batch: TeleBatch


class Inbox:
    """Takes every message of the sites.

    Args:
        store: the operational store. metrics: the telemetry store. live: the live channel.
        clock: time. counters: what happened.
        after: called with what a commit left to do beside the live channel and the metrics.

    Attributes:
        heard_ns: boottime at which each site was last heard from, in this run.
        last_live: newest lossy totals of each site.
    """

    def __init__(
        self,
        *,
        store: Store,
        metrics: Metrics,
        live: Live,
        clock: Clock,
        counters: Counters,
        after: Callable[[Effects], None],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._live = live
        self._clock = clock
        self._counters = counters
        self._after = after
        self._acks: Counter[str] = Counter()
        self._telemetry: asyncio.Queue[_Telemetry] = asyncio.Queue(TELEMETRY_WAITING_MAX)
        self.heard_ns: dict[str, int] = {}
        self.last_live: dict[str, SiteLive] = {}

    def load(self) -> None:
        """Tell the telemetry store what the operational store knows; once, at the start."""
        for digest, item in sync_tables.all_schemas(self._store):
            self._metrics.add_schema(digest, item)
        for gap in sync_tables.all_gaps(self._store):
            self._metrics.pass_gap(gap.store_id, gap.seq_first, gap.seq_last)

    async def take(self, message: Inbound, link: MqttConnection) -> None:
        """Deal with one message; only a dead link comes out as an error.

        Raises:
            ConnectionError: the link is gone. TimeoutError: so it seems.
        """
        try:
            queued = await self._route(message, link)
        except DecodeError as exc:
            self._counters.add(f"malformed_{exc.code}")
            _log.warning("message=refused topic=%s field=%s why=%s",
                         message.topic, exc.field, exc)  # fmt: skip
            queued = False
        except HubError as exc:
            self._counters.add(f"failed_{exc.code}")
            _log.error("message=failed topic=%s why=%s", message.topic, exc)
            queued = False
        except OSError:
            raise  # of the link
        except Exception:  # noqa: BLE001 - not acked, it comes again and ends this hub each time
            self._counters.add("failed_unexpected")
            _log.exception("message=failed topic=%s", message.topic)
            queued = False
        if not queued:
            await message.ack()

    async def run_telemetry(self, link: MqttConnection) -> None:
        """Commit telemetry in groups until cancelled; what a dead link left queued is dropped."""
        while not self._telemetry.empty():
            self._telemetry.get_nowait()
        while True:
            group = [await self._telemetry.get()]
            while len(group) < TELEMETRY_GROUP_MAX and not self._telemetry.empty():
                group.append(self._telemetry.get_nowait())
            await self._commit_telemetry(group, link)

    def carry_out(self, effects: Effects) -> None:
        """Do what a commit left: tell the live channel first, then the rest."""
        for message in effects.live:
            self._live.publish(message.topic, message.customer_id, message.body, message.owner_body)
        for name, count in effects.counted():
            self._counters.add(name, count)
        for alarm in effects.alarms:
            _log.warning("alarm=%s site=%s source=%s detail=%s",
                         alarm.code, alarm.site_id, alarm.source, alarm.detail)  # fmt: skip
        for digest, item in effects.schemas:
            self._metrics.add_schema(digest, item)
        for gap in effects.gaps:
            self._metrics.pass_gap(gap.store_id, gap.seq_first, gap.seq_last)
        self._after(effects)

    async def _route(self, message: Inbound, link: MqttConnection) -> bool:
        """Take a message; True when it was queued and is acked later."""
        up = topics.parse_up(message.topic)
        if up is None:
            site_id = topics.parse_state(message.topic)
            if site_id is None:
                # The hub's own state comes past its subscription to those of the sites.
                own = message.topic == topics.HUB_STATE
                self._counters.add("own_state" if own else "unknown_topic")
            elif message.payload:
                await self._take_state(site_id, message.payload, link)
            return False
        self._heard(up.site_id)
        if up.lane is Lane.LIVE:
            self._take_live(up.site_id, SITE_LIVE.decode(message.payload))
            return False
        batch = UP_BATCH.decode(message.payload)
        if batch.site_id != up.site_id or batch.stream is not STREAM_OF_LANE[up.lane]:
            await self._refuse(up.site_id, batch, link)
            return False
        if up.lane in TELEMETRY_LANES:
            return await self._queue_telemetry(message, batch)
        await self._take_ordered(batch, link)
        return False

    async def _take_ordered(self, batch: UpBatch, link: MqttConnection) -> None:
        now = self._clock.wall()
        credit = self._credit(batch.site_id)

        taken: Taken = await self._store.write(
            lambda connection: take_batch(connection, batch, now=now, credit=credit)
        )
        self.carry_out(taken.effects)
        if taken.ack is not None:
            await self._send(link, batch.site_id, encode(taken.ack))

    async def _take_state(self, site_id: str, payload: bytes, link: MqttConnection) -> None:
        state = SITE_STATE.decode(payload)
        if state.site_id != site_id:
            self._counters.add("foreign_state")
            return
        now = self._clock.wall()
        if isinstance(state, Death):
            death = state
            self.carry_out(
                await self._store.write(lambda connection: take_death(connection, death, now))
            )
            return
        birth = state
        self._heard(site_id)
        tele = TelemetryHead(
            self._metrics.known(birth.store_id), self._metrics.last_digest(birth.store_id)
        )
        credit = credit_after(self._acks[site_id])
        answered = await self._store.write(
            lambda connection: take_birth(connection, birth, tele=tele, now=now, credit=credit)
        )
        self.carry_out(answered.effects)
        if answered.reply is not None:
            await self._send(link, site_id, encode_reply(answered.reply))

    async def _queue_telemetry(self, message: Inbound, batch: UpBatch) -> bool:
        if batch.version != 1:
            self._counters.add("unknown_version")
            return False
        known = self._store.read(
            "SELECT 1 FROM stores WHERE store_id = ? AND site_id = ?",
            (batch.store_id, batch.site_id),
        )
        if not known:
            self._counters.add("batch_of_unknown_store")
            return False
        await self._telemetry.put(
            _Telemetry(
                message,
                TeleBatch(site_id=batch.site_id, store_id=batch.store_id, records=batch.records),
            )
        )
        return True

    async def _commit_telemetry(self, group: Sequence[_Telemetry], link: MqttConnection) -> None:
        try:
            answers = await self._metrics.commit([item.batch for item in group])
        except HubError as exc:
            if len(group) > 1:  # one that cannot be stored must not hold back the others
                for item in group:
                    await self._commit_telemetry((item,), link)
                return
            self._counters.add(f"failed_{exc.code}")
            _log.error("telemetry=failed site=%s why=%s", group[0].batch.site_id, exc)
        else:
            await self._ack_telemetry(group, answers, link)
        for item in group:
            await item.message.ack()

    async def _ack_telemetry(
        self, group: Sequence[_Telemetry], answers: Sequence[TeleAnswer], link: MqttConnection
    ) -> None:
        """Send one ack per store: it tells of every batch of the group."""
        epoch, now = read_epoch(self._store), self._clock.wall()
        acks: dict[str, tuple[str, Ack]] = {}
        nacks: dict[str, list[tuple[int, NackCode]]] = {}
        for item, answer in zip(group, answers, strict=True):
            batch = item.batch
            self._counters.add("points_ingested", answer.points)
            self._counters.add("tele_batches")
            nack = nacks.setdefault(batch.store_id, [])
            nack.extend(answer.nack)
            for seq in answer.conflicts:
                await self._alarm(batch.site_id, "digest_conflict", f"tele {batch.store_id}/{seq}")
            acks[batch.store_id] = (
                batch.site_id,
                build_ack(
                    hub_epoch=epoch,
                    store_id=batch.store_id,
                    stream=Stream.TELE,
                    known=answer.known,
                    hub_time=now,
                    credit=self._credit(batch.site_id),
                    nack=nack,
                ),
            )
        for site_id, ack in acks.values():
            await self._send(link, site_id, encode(ack))

    async def _refuse(self, site_id: str, batch: UpBatch, link: MqttConnection) -> None:
        foreign = batch.site_id != site_id
        code = NackCode.FORBIDDEN if foreign else NackCode.MALFORMED
        self._counters.add(f"nack_{code.value}")
        await self._alarm(site_id, f"batch_{code.value}", f"{batch.site_id}/{batch.stream.value}")
        ack = build_ack(
            hub_epoch=read_epoch(self._store),
            store_id=batch.store_id,
            stream=batch.stream,
            known=SeqSet(),
            hub_time=self._clock.wall(),
            credit=credit_after(self._acks[site_id]),
            nack=[(record.seq, code) for record in batch.records],
        )
        await self._send(link, site_id, encode(ack))

    async def _alarm(self, site_id: str, code: str, detail: str) -> None:
        row = AlarmRow(
            site_id=site_id,
            source="hub",
            code=code,
            detail=detail,
            at_ms=to_ms(self._clock.wall()),
        )
        await self._store.write(lambda connection: sync_tables.add_alarm(connection, row))
        self._counters.add(f"alarm_{code}")

    def _take_live(self, site_id: str, totals: SiteLive) -> None:
        if site_id not in self.last_live and sites.find(self._store, site_id) is None:
            self._counters.add("live_of_unknown_site")
            return
        self.last_live[site_id] = totals
        body = live.LiveSite(
            site_id=site_id,
            online=True,
            at=totals.at,
            power_w=totals.power_w,
            power_cap_w=totals.power_cap_w,
            price_usd_per_mwh=totals.price_usd_per_mwh,
            earning_usd_per_h=totals.earning_usd_per_h,
            hashrate_ths=totals.hashrate_ths,
            classes=totals.classes,
            backlog_records=totals.backlog_records,
        )
        self._live.publish(live.SITE, None, msgspec.json.encode(body))

    async def _send(self, link: MqttConnection, site_id: str, payload: bytes) -> None:
        try:
            async with asyncio.timeout(PUBLISH_S):
                await link.publish(topics.down_ack(site_id), payload, qos=1)
        except PermissionError:
            # The broker's rights are wrong: a person's work. The edge keeps what is unacked.
            self._counters.add("publish_refused")
            _log.exception("publish=refused topic=%s", topics.down_ack(site_id))

    def _heard(self, site_id: str) -> None:
        self.heard_ns[site_id] = self._clock.boottime_ns()

    def _credit(self, site_id: str) -> int:
        self._acks[site_id] += 1
        return credit_after(self._acks[site_id])

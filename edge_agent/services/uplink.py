"""The link to the hub: connect, send what the sync machine wants sent, obey what the hub answers.

One connection is one session: a task that receives, one task per lane that publishes, a timer, and
the lossy live lane. Any of them failing ends the session as a whole, and the outbox is the only
memory that survives it. All decisions are in ``core.sync``; here is only the carrying out.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from msgspec import Struct

from edge_agent.core.sync import SyncMachine, missing_leases
from edge_agent.core.sync_types import (
    CheckManifest,
    Complaint,
    DeadLetter,
    Effect,
    LowerMark,
    MarkAcked,
    SendBirth,
    StartOver,
    SyncLimits,
    TeleAcked,
    TeleLost,
    Want,
)
from edge_agent.ports import Clock, CommitBatch, Inbound, MqttConnection, MqttConnector, Will
from edge_agent.services.brain import Brain
from edge_agent.services.waiting import set_or_until
from edge_agent.storage.core_store import SqliteCoreStore, StreamBacklog
from edge_agent.storage.segments import SegmentStore
from edge_agent.tasks import obey_cancel
from protocol import codec, topics
from protocol.errors import DecodeError, EncodeError
from protocol.event import Alarm, NeedLeases, SiteLive
from protocol.sync import (
    Ack,
    Birth,
    Death,
    Lane,
    LeaseHead,
    Rebase,
    Record,
    Stream,
    UpBatch,
    Welcome,
    manifest_digest_of,
)

_S = 1_000_000_000
_PUMPED = (Lane.USAGE, Lane.EVENT, Lane.SCHEMA, Lane.TELE, Lane.HIST)
_MOMENT_NS = _S // 50
_ALARM_AGAIN = timedelta(minutes=10)
_REFUSED_HOLD_NS = 60 * _S
_COMMANDS_KEPT = 1_000
_NEED_LEASES_MAX = 500
_UP_BATCH_VERSION = 1
# Records of one moment leave together, and after what was decided with them: a switch's first ask.
_GATHER_S = 0.002


class UplinkLimits(Struct, frozen=True, kw_only=True):
    """How the link behaves.

    Args:
        backoff_max_s: of the wait before the next attempt (full jitter, doubled from 1 s); with the
            attempt itself it stays below the minute in which a site is back after an outage.
        stable_s: a session that lasted so long starts the backoff anew.
        manifest_after_s: how long retained leases may take before the missing ones are asked for.
        timer_s: the timer looks at least so often, although it knows when something is next due.
    """

    backoff_max_s: float = 40.0
    stable_s: float = 60.0
    session_expiry_s: int = 3_600
    receive_maximum: int = 16
    will_delay_s: int = 15
    manifest_after_s: float = 2.0
    manifest_again_s: float = 30.0
    timer_s: float = 30.0
    goodbye_s: float = 2.0


class UplinkStatus(Struct, frozen=True, kw_only=True):
    """The link as seen by a person."""

    connected: bool
    welcomed: bool
    owner: bool | None
    store_id: str
    conn_no: int
    since: datetime | None
    hub_heard_at: datetime | None
    connects: int
    malformed: int
    last_error: str


class _StartOverError(Exception):
    """The store is to be renumbered before anything else is said."""


class Uplink:
    """The site's end of the conversation with the hub.

    Args:
        store: recovered. segments: opened. random: gives [0, 1), for jitter.
        brain: receives leases, policy and commands.
    """

    def __init__(  # noqa: PLR0913 - a composition of ports
        self,
        *,
        connector: MqttConnector,
        store: SqliteCoreStore,
        segments: SegmentStore,
        clock: Clock,
        random: Callable[[], float],
        site_id: str,
        agent_version: str,
        brain: Brain,
        limits: UplinkLimits | None = None,
        sync_limits: SyncLimits | None = None,
    ) -> None:
        self._connector = connector
        self._store = store
        self._segments = segments
        self._clock = clock
        self._random = random
        self._site_id = site_id
        self._version = agent_version
        self._brain = brain
        self._limits = UplinkLimits() if limits is None else limits
        self._machine = SyncMachine(random, sync_limits)
        self._wakes = {lane: asyncio.Event() for lane in _PUMPED}
        self._gathering: set[Lane] = set()
        self._timed = asyncio.Event()
        self._timer_ns = 0
        self._live: deque[SiteLive] = deque(maxlen=1)
        self._live_wake = asyncio.Event()
        self._lease_versions: dict[str, tuple[int, int]] = {}
        self._commands: deque[str] = deque(maxlen=_COMMANDS_KEPT)
        self._alarmed: dict[str, datetime] = {}
        self._manifest: tuple[LeaseHead, ...] = ()
        self._manifest_due_ns: int | None = None
        self._conn_no = 0
        self._connects = 0
        self._malformed = 0
        self._connected = False
        self._owner: bool | None = None
        self._born_at = clock.wall()
        self._since: datetime | None = None
        self._hub_heard_at: datetime | None = None
        self._last_error = ""
        store.on_appended = self._on_appended
        segments.on_sealed = self._on_sealed
        segments.on_dropped = self._on_dropped

    # --- the service ----------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a session with the hub until cancelled."""
        for head in self._store.known_leases():
            self._lease_versions[head.lease_id] = (head.hub_epoch, head.generation)
        failures = 0
        while True:
            began_ns = self._clock.boottime_ns()
            start_over = False
            try:
                await self._session()
            except* _StartOverError as group:
                start_over = True
                self._last_error = f"rebase: {group.exceptions[0]}"
            except* OSError as group:
                self._last_error = _first_of(group)
            finally:
                self._end_session()
            obey_cancel()
            if start_over:
                await self._store.rebase()
                self._segments.reload()
            lasted_s = (self._clock.boottime_ns() - began_ns) / _S
            failures = 1 if start_over or lasted_s >= self._limits.stable_s else failures + 1
            ceiling_s = min(2.0 ** min(failures - 1, 10), self._limits.backoff_max_s)
            await asyncio.sleep(ceiling_s * self._random())

    def publish_live(self, live: SiteLive) -> None:
        """Offer the site's totals for dashboards; the newest one wins, none is stored."""
        self._live.append(live)
        self._live_wake.set()

    def status(self) -> UplinkStatus:
        """Tell how the link stands."""
        return UplinkStatus(
            connected=self._connected,
            welcomed=self._machine.welcomed,
            owner=self._owner,
            store_id=self._store.store_id,
            conn_no=self._conn_no,
            since=self._since,
            hub_heard_at=self._hub_heard_at,
            connects=self._connects,
            malformed=self._malformed,
            last_error=self._last_error,
        )

    def backlog(self) -> tuple[StreamBacklog, ...]:
        """Tell per stream what the hub has not acked."""
        return self._store.backlog()

    # --- one session ----------------------------------------------------------------------

    async def _session(self) -> None:
        self._conn_no = await self._store.next_conn_no()
        will = Will(
            topic=topics.site_state(self._site_id),
            payload=self._death(),
            retain=True,
            delay_s=self._limits.will_delay_s,
        )
        async with self._connector.connect(
            client_id=f"hcp-edge-{self._site_id}",
            clean_start=False,
            session_expiry_s=self._limits.session_expiry_s,
            receive_maximum=self._limits.receive_maximum,
            will=will,
        ) as connection:
            self._begin_session()
            await connection.subscribe(topics.edge_subscriptions(self._site_id))
            await self._send_birth(connection)
            try:
                await self._converse(connection)
            except asyncio.CancelledError:
                # A stop in good order sends no Will: say it ourselves, if the link still can.
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(self._limits.goodbye_s):
                        await connection.publish(will.topic, will.payload, retain=True)
                raise

    async def _converse(self, connection: MqttConnection) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_time(connection), name="uplink-timer")
            group.create_task(self._send_live(connection), name="uplink-live")
            for lane in _PUMPED:
                group.create_task(self._pump(connection, lane), name=f"uplink-{lane.value}")
            # In the body, not as a task: in Python 3.11 a child that fails while the group only
            # waits leaves the parent's count of cancellations raised for good.
            await self._receive(connection)

    def _begin_session(self) -> None:
        now_ns = self._clock.boottime_ns()
        ordered = (Stream.USAGE, Stream.EVENT, Stream.SCHEMA)
        self._machine.connected(
            now_ns,
            store_id=self._store.store_id,
            conn_no=self._conn_no,
            heads=self._store.heads(),
            segments=self._segments.index(),
            first_kept={stream: self._store.first_kept(stream) for stream in ordered},
        )
        self._connected = True
        self._connects += 1
        # Said again on the same connection it is the same birth, with newer heads.
        self._born_at = self._since = self._clock.wall()
        self._manifest_due_ns = None

    def _end_session(self) -> None:
        self._machine.disconnected()
        if self._connected:
            self._since = self._clock.wall()
        self._connected = False

    # --- sending --------------------------------------------------------------------------

    async def _pump(self, connection: MqttConnection, lane: Lane) -> None:
        wake = self._wakes[lane]
        while True:
            wake.clear()
            want = self._machine.want(lane, self._clock.boottime_ns())
            if want is None:
                self._set_timer()
                await wake.wait()
                continue
            await self._send(connection, want)
            if lane is Lane.TELE:
                self._wakes[Lane.HIST].set()  # it waits while anything fresh does

    async def _send(self, connection: MqttConnection, want: Want) -> None:
        records = await self._load(want)
        body = b"" if not records else await self._packed(want, records)
        if not body:
            self._machine.unsent(want, self._clock.boottime_ns(), _S)
            self._kick()
            return
        self._machine.sent(want, records[-1].seq, len(body), self._clock.boottime_ns())
        self._set_timer()
        try:
            await connection.publish(topics.up(self._site_id, want.lane), body)
        except PermissionError as exc:
            self._machine.unsent(want, self._clock.boottime_ns(), _REFUSED_HOLD_NS)
            await self._complain("publish_refused", str(exc))

    async def _load(self, want: Want) -> tuple[Record, ...]:
        if want.stream is not Stream.TELE:
            return self._store.pending(
                want.stream, want.after_seq, want.max_records, want.max_bytes
            )
        record = await self._segments.load(want.after_seq + 1)
        if record is None:
            self._machine.dropped([want.after_seq + 1])
            return ()
        return (record,)

    async def _packed(self, want: Want, records: tuple[Record, ...]) -> bytes:
        batch = UpBatch(
            _UP_BATCH_VERSION, self._site_id, self._store.store_id, want.stream, records
        )
        try:
            return codec.encode(batch)
        except EncodeError as exc:
            if want.stream is Stream.TELE:
                self._machine.dropped([records[0].seq])
                await self._segments.bury(records[0].seq, exc.code)
            else:
                await self._complain("record_too_large", f"{want.stream.value} {records[0].seq}")
            return b""

    async def _send_birth(self, connection: MqttConnection) -> None:
        birth = Birth(
            site_id=self._site_id,
            store_id=self._store.store_id,
            boot_id=self._clock.boot_id(),
            conn_no=self._conn_no,
            at=self._born_at,
            agent_version=self._version,
            heads=self._store.heads(),
        )
        topic = topics.site_state(self._site_id)
        await connection.publish(topic, codec.encode(birth), retain=True)

    async def _send_live(self, connection: MqttConnection) -> None:
        topic = topics.up(self._site_id, Lane.LIVE)
        while True:
            await self._live_wake.wait()
            self._live_wake.clear()
            if self._live:
                await connection.publish(topic, codec.encode(self._live.pop()), qos=0)

    async def _keep_time(self, connection: MqttConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now_ns = self._clock.boottime_ns()
            self._timer_ns = self._due_ns(now_ns)
            self._timed.clear()
            await set_or_until(self._timed, loop.time() + (self._timer_ns - now_ns) / _S)
            effects = self._machine.tick(self._clock.boottime_ns())
            self._kick()
            await self._carry_out(connection, effects)
            await self._ask_for_leases()

    def _due_ns(self, now_ns: int) -> int:
        """Give when the timer looks again: in a moment, for what is due and can not be done."""
        due_ns = now_ns + int(self._limits.timer_s * _S)
        for one_ns in (self._machine.next_due_ns(now_ns), self._manifest_due_ns):
            if one_ns is not None:
                due_ns = min(due_ns, one_ns)
        return max(due_ns, now_ns + _MOMENT_NS)

    def _set_timer(self) -> None:
        """Wake the timer when something has become due before the instant it waits for."""
        if self._due_ns(self._clock.boottime_ns()) < self._timer_ns:
            self._timed.set()

    # --- receiving ------------------------------------------------------------------------

    async def _receive(self, connection: MqttConnection) -> None:
        commands = topics.down_cmd(self._site_id)
        async for message in connection.messages():
            if message.topic == commands:
                # Acked first: after a crash a command is lost rather than done twice.
                await message.ack()
            try:
                await self._dispatch(connection, message)
            except DecodeError as exc:
                self._malformed += 1
                await self._complain("malformed_message", f"{message.topic}: {exc}"[:500])
            if message.topic != commands:
                await message.ack()
        raise ConnectionError("the broker ended the connection")

    async def _dispatch(self, connection: MqttConnection, message: Inbound) -> None:
        topic = message.topic
        if topic == topics.down_ack(self._site_id):
            await self._on_down_ack(connection, message.payload)
        elif topic == topics.HUB_HEARTBEAT:
            beat = codec.HEARTBEAT.decode(message.payload)
            self._machine.hub_state(online=True)
            self._kick()
            await self._heard(beat.hub_time)
        elif topic == topics.HUB_STATE:
            self._machine.hub_state(online=codec.HUB_STATE.decode(message.payload).online)
            self._kick()
        elif topic == topics.down_policy(self._site_id):
            await self._on_policy(message.payload)
        elif topic == topics.down_orders(self._site_id):
            await self._on_orders(message.payload)
        elif topic == topics.down_cmd(self._site_id):
            await self._on_command(message.payload)
        elif (lease_id := topics.parse_down_lease(topic)) is not None:
            await self._on_lease(lease_id, message.payload)
        else:
            raise DecodeError("unknown_topic", "nothing is expected there")

    async def _on_down_ack(self, connection: MqttConnection, payload: bytes) -> None:
        word = codec.DOWN_ACK.decode(payload)
        now_ns = self._clock.boottime_ns()
        effects: tuple[Effect, ...]
        if isinstance(word, Ack):
            effects = self._machine.on_ack(word, now_ns)
            await self._heard(word.hub_time)
        elif isinstance(word, Welcome):
            if manifest_digest_of(word.leases) != word.manifest_digest:
                raise DecodeError("malformed", "digest differs", "manifest_digest")
            own = {stream: self._store.digest_at(stream, wm) for stream, wm in word.wms}
            known = {stream: digest for stream, digest in own.items() if digest is not None}
            effects = self._machine.on_welcome(word, now_ns, known)
            await self._heard(word.hub_time)
        else:
            assert isinstance(word, Rebase)
            effects = self._machine.on_rebase(word)
        self._kick()
        self._set_timer()
        await self._carry_out(connection, effects)

    async def _on_policy(self, payload: bytes) -> None:
        if not payload:
            return  # cleared: the last one known stays in force
        policy = codec.POLICY.decode(payload)
        if policy.site_id != self._site_id:
            raise DecodeError("malformed", "names another site", "site_id")
        await self._brain.on_policy(policy)

    async def _on_orders(self, payload: bytes) -> None:
        if not payload:
            return  # cleared: only what is taken back ends
        orders = codec.ORDERS.decode(payload)
        if orders.site_id != self._site_id:
            raise DecodeError("malformed", "names another site", "site_id")
        await self._brain.on_orders(orders)

    async def _on_command(self, payload: bytes) -> None:
        command = codec.COMMAND.decode(payload)
        if command.command_id in self._commands:
            return
        self._commands.append(command.command_id)
        await self._brain.on_command(command)

    async def _on_lease(self, lease_id: str, payload: bytes) -> None:
        if not payload:
            self._lease_versions.pop(lease_id, None)
            # What the last welcome named is over since; asking for it would never end.
            self._manifest = tuple(head for head in self._manifest if head.lease_id != lease_id)
            await self._brain.on_lease_cleared(lease_id)
            return
        lease = codec.LEASE.decode(payload)
        if lease.lease_id != lease_id or lease.site_id != self._site_id:
            raise DecodeError("malformed", "names another lease or site", "lease_id")
        if lease.version <= self._lease_versions.get(lease_id, (-1, -1)):
            return
        await self._brain.on_lease(lease)
        self._lease_versions[lease_id] = lease.version

    async def _heard(self, hub_time: datetime) -> None:
        self._hub_heard_at = self._clock.wall()
        await self._brain.on_hub_heard(hub_time)

    # --- carrying out ---------------------------------------------------------------------

    async def _carry_out(self, connection: MqttConnection, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case MarkAcked(stream, wm):
                    await self._store.mark_acked(stream, wm)
                case LowerMark(stream, wm):
                    await self._store.lower_mark(stream, wm)
                case TeleAcked(wm, seqs):
                    await self._segments.acked(wm, seqs)
                case TeleLost(first, last):
                    await self._segments.declare_lost(first, last)
                case DeadLetter(seq, code):
                    await self._segments.bury(seq, code.value)
                case Complaint(code_text, detail):
                    await self._complain(code_text, detail)
                case SendBirth():
                    await self._send_birth(connection)
                case CheckManifest(leases, owner):
                    await self._check_manifest(leases, owner=owner)
                case StartOver(reason):
                    raise _StartOverError(reason)

    async def _check_manifest(self, leases: tuple[LeaseHead, ...], *, owner: bool) -> None:
        self._owner = owner
        self._manifest = leases
        wait_ns = int(self._limits.manifest_after_s * _S)
        self._manifest_due_ns = self._clock.boottime_ns() + wait_ns
        self._set_timer()
        await self._brain.on_owner(owner)
        await self._brain.on_manifest(leases)

    async def _ask_for_leases(self) -> None:
        """Ask for what the manifest names and the retained messages did not bring."""
        now_ns = self._clock.boottime_ns()
        if self._manifest_due_ns is None or now_ns < self._manifest_due_ns:
            return
        missing = missing_leases(self._manifest, self._store.known_leases())
        if not missing:
            self._manifest_due_ns = None
            return
        self._manifest_due_ns = now_ns + int(self._limits.manifest_again_s * _S)
        for lease_id in missing:
            # Handed over once, but never stored: it may come again in the same version.
            self._lease_versions.pop(lease_id, None)
        event = NeedLeases(lease_ids=missing[:_NEED_LEASES_MAX])
        await self._store.commit(CommitBatch(events=(event,)))

    async def _complain(self, code: str, detail: str) -> None:
        """Raise an alarm, each code at most once in ten minutes."""
        now = self._clock.wall()
        last = self._alarmed.get(code)
        if last is not None and timedelta(0) <= now - last < _ALARM_AGAIN:
            return
        self._alarmed[code] = now
        alarm = Alarm(at=now, code=code, detail=detail[:2_000])
        await self._store.commit(CommitBatch(events=(alarm,)))

    def _on_appended(self, stream: Stream) -> None:
        if stream is Stream.TELE:
            return
        head = next(head for head in self._store.heads() if head.stream is stream)
        self._machine.appended(stream, head.next_seq)
        lane = Lane(stream.value)
        if lane not in self._gathering:
            self._gathering.add(lane)
            asyncio.get_running_loop().call_later(_GATHER_S, self._gathered, lane)

    def _gathered(self, lane: Lane) -> None:
        self._gathering.discard(lane)
        self._wakes[lane].set()

    def _on_sealed(self, seq: int, size: int) -> None:
        self._machine.sealed(seq, size)
        self._wakes[Lane.TELE].set()
        self._wakes[Lane.HIST].set()

    def _on_dropped(self, seqs: Iterable[int]) -> None:
        self._machine.dropped(seqs)
        self._kick()

    def _kick(self) -> None:
        for lane in _PUMPED:
            if self._machine.waits(lane):
                self._wakes[lane].set()

    def _death(self) -> bytes:
        return codec.encode(
            Death(site_id=self._site_id, store_id=self._store.store_id, conn_no=self._conn_no)
        )


def _first_of(group: BaseExceptionGroup[BaseException]) -> str:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return f"{type(exc).__name__}: {exc}"

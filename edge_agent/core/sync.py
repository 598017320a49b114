"""The sync machine: what to send next, what an ack means, when to send again. No I/O.

Theory of operation. The shell tells the machine what happened (connected, appended, an ack came)
and carries out the effects that it returns. For each lane it asks ``want``: the answer names the
records to load and reserves a slot of the hub's credit, until the shell reports ``sent`` (just
before it publishes) or ``unsent``.

Ordered streams (usage, event, schema) are go-back-N: a cursor runs ahead of the acked mark; a
missing ack, a nack or a welcome sets it back. Telemetry is selective: each segment is in flight,
fresh (sent newest first on lane ``tele``) or backlog (oldest first on lane ``hist``, through a
token bucket). Only the hub's ack ends a record: a PUBACK is not even an input here.

What the hub says is obeyed only if it is about this store, of an epoch not below the highest seen,
and below the end of the stream. Telling the machine the same thing twice changes nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from edge_agent.core.sync_queue import TelemetryQueue
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
    Want,
)
from protocol.sync import (
    Ack,
    Lane,
    LeaseHead,
    NackCode,
    Rebase,
    Stream,
    StreamHead,
    Welcome,
)

_S = 1_000_000_000
_ORDERED = (Stream.USAGE, Stream.EVENT, Stream.SCHEMA)
_LANE_OF = {Stream.USAGE: Lane.USAGE, Stream.EVENT: Lane.EVENT, Stream.SCHEMA: Lane.SCHEMA}
_STREAM_OF = {lane: stream for stream, lane in _LANE_OF.items()}
_DEAD_CODES = (NackCode.TOO_LARGE, NackCode.MALFORMED, NackCode.UNKNOWN_VERSION)


def missing_leases(manifest: Sequence[LeaseHead], known: Sequence[LeaseHead]) -> tuple[str, ...]:
    """Give the ids that the hub lists and the site has not got, or only in an older version."""
    held = {head.lease_id: (head.hub_epoch, head.generation) for head in known}
    return tuple(
        head.lease_id
        for head in manifest
        if held.get(head.lease_id, (-1, -1)) < (head.hub_epoch, head.generation)
    )


class _Flight:
    """One batch that was published and is not acked."""

    __slots__ = ("due_ns", "first", "last", "size", "stream")

    def __init__(self, stream: Stream, seqs: tuple[int, int], size: int, due_ns: int) -> None:
        self.stream = stream
        self.first, self.last = seqs
        self.size = size
        self.due_ns = due_ns


class _Line:
    """Where one ordered stream stands."""

    __slots__ = (
        "acked",
        "cursor",
        "hold_ns",
        "next_seq",
        "rewind_ns",
        "rewind_wm",
        "tries",
        "turn",
    )

    def __init__(self) -> None:
        self.next_seq = 1
        self.acked = 0
        self.cursor = 0
        self.tries = 0
        self.hold_ns = 0
        self.rewind_wm = -1
        self.rewind_ns = 0
        self.turn = 0

    @property
    def waiting(self) -> bool:
        return self.cursor < self.next_seq - 1


class SyncMachine:
    """The edge's half of the conversation, for one store.

    Args:
        random: gives [0, 1); jitters the time of a resend.
    """

    def __init__(self, random: Callable[[], float], limits: SyncLimits | None = None) -> None:
        self._random = random
        self._limits = SyncLimits() if limits is None else limits
        self._lines = {stream: _Line() for stream in _ORDERED}
        self._flights: list[_Flight] = []
        self._wants: dict[Lane, Want] = {}
        self._store_id = ""
        self._conn_no = 0
        self._epoch = 0
        self._credit = 1
        self._connected = False
        self._welcomed = False
        self._hub_online = True
        self._birth_due_ns = 0
        self._births = 0
        self._first_kept: Mapping[Stream, int] = {}
        self._tele = TelemetryQueue(self._limits)
        self.ignored = 0

    # --- what happened --------------------------------------------------------------------

    def connected(
        self,
        now_ns: int,
        *,
        store_id: str,
        conn_no: int,
        heads: Sequence[StreamHead],
        segments: Iterable[tuple[int, int]],
        first_kept: Mapping[Stream, int],
    ) -> None:
        """A connection stands and the birth is about to be sent.

        Args:
            segments: (seq, bytes) of every segment held. first_kept: oldest seq per ordered stream.
        """
        self.disconnected()
        self._store_id = store_id
        self._conn_no = conn_no
        self._connected = True
        self._first_kept = first_kept
        for head in heads:
            if head.stream is Stream.TELE:
                self._tele.reset(head, segments, now_ns)
                continue
            line = self._lines[head.stream]
            line.next_seq, line.acked, line.cursor = head.next_seq, head.acked_wm, head.acked_wm
            line.tries = line.hold_ns = 0
        self._births = 0
        self._await_welcome(now_ns)

    def disconnected(self) -> None:
        """The connection is gone, and with it every flight; nothing is sent until a welcome."""
        self._connected = self._welcomed = False
        self._hub_online = True
        self._credit = 1
        self._flights.clear()
        self._wants.clear()

    def appended(self, stream: Stream, next_seq: int) -> None:
        """An ordered stream has grown."""
        line = self._lines[stream]
        line.next_seq = max(line.next_seq, next_seq)

    def sealed(self, seq: int, size: int) -> None:
        """A segment has become durable."""
        self._tele.add(seq, size)

    def dropped(self, seqs: Iterable[int]) -> None:
        """Segments are gone (cap, unreadable); a gap record names them."""
        doomed = set(seqs)
        self._tele.forget(doomed)
        self._land(doomed)

    def hub_state(self, *, online: bool) -> None:
        """The hub said that it is there, or its Will that it is not: then everything is held."""
        self._hub_online = online

    def on_welcome(
        self, welcome: Welcome, now_ns: int, own: Mapping[Stream, bytes] | None = None
    ) -> tuple[Effect, ...]:
        """The hub answered the birth of this connection: start from its watermarks.

        Args:
            own: digests of the store's own records at the hub's watermarks, where still kept.
        """
        if welcome.conn_no != self._conn_no or not self._is_ours(welcome.store_id):
            return self._ignore()
        if welcome.hub_epoch < self._epoch:
            return self._older_epoch(welcome.hub_epoch)
        for stream, digest in welcome.wm_digests:
            if (own or {}).get(stream, digest) != digest:
                return (StartOver(f"{stream.value}: the hub has another record at its mark"),)
        self._epoch = welcome.hub_epoch
        self._credit = welcome.credit
        self._welcomed = self._hub_online = True
        self._flights.clear()
        wms = dict(welcome.wms)
        effects: list[Effect] = []
        for stream in _ORDERED:
            effects += self._settle(stream, wms.get(stream, 0))
        effects += self._tele.settle(wms.get(Stream.TELE, 0))
        effects.append(CheckManifest(welcome.leases, welcome.owner))
        return tuple(effects)

    def on_ack(self, ack: Ack, now_ns: int) -> tuple[Effect, ...]:
        """The hub committed, or refused, records of one stream."""
        if not self._is_ours(ack.store_id):
            return self._ignore()
        if ack.hub_epoch < self._epoch:
            return self._older_epoch(ack.hub_epoch)
        if not self._welcomed:
            # Kept by the broker's session since an earlier connection. If this store is an older
            # copy, it speaks of records that the copy has never had, under numbers given again
            # since. What is true of it the welcome says.
            return self._ignore()
        restored = ack.hub_epoch > self._epoch
        self._epoch = ack.hub_epoch
        self._hub_online = True
        next_seq = self._next_seq(ack.stream)
        highest = max((last for _, last in ack.ranges), default=0)
        if max(ack.wm, highest) >= next_seq:
            detail = f"{ack.stream.value}: ack {max(ack.wm, highest)}, next is {next_seq}"
            return (Complaint("ack_beyond_head", detail),)
        self._credit = ack.credit
        effects = self._ack_tele(ack) if ack.stream is Stream.TELE else self._ack_line(ack)
        for seq, code in ack.nack:
            if 0 < seq < next_seq:
                effects += self._nack(ack, seq, code, now_ns)
        if restored:  # what else the restored hub lacks, only a new welcome tells
            effects.append(SendBirth())
        return tuple(effects)

    def on_rebase(self, rebase: Rebase) -> tuple[Effect, ...]:
        """The hub knows more of this store than the store itself."""
        if rebase.conn_no != self._conn_no or not self._is_ours(rebase.store_id):
            return self._ignore()
        if rebase.hub_epoch < self._epoch:
            return self._older_epoch(rebase.hub_epoch)
        if self._welcomed:
            # A retained birth is as old as its connection: the hub may have judged by heads that
            # have grown since. It is told the present ones, and obeyed if it says so again.
            self._welcomed = False
            return (SendBirth(),)
        return (StartOver(rebase.reason),)

    def tick(self, now_ns: int) -> tuple[Effect, ...]:
        """Time has passed: send again what was not acked in time."""
        late = [flight.stream for flight in self._flights if flight.due_ns <= now_ns]
        for stream in _ORDERED:
            if stream in late:
                line = self._lines[stream]
                self._rewind(stream, line.acked)
                line.tries += 1
        if Stream.TELE in late:
            lost = [
                flight.first
                for flight in self._flights
                if flight.stream is Stream.TELE and flight.due_ns <= now_ns
            ]
            for seq in lost:
                self._tele.again(seq)
            self._land(set(lost))
            self._tele.tries += 1
        self._tele.tick(now_ns)
        if self._connected and not self._welcomed and now_ns >= self._birth_due_ns:
            self._await_welcome(now_ns)
            return (SendBirth(),)
        return ()

    def next_due_ns(self, now_ns: int) -> int | None:
        """Give when ``tick`` is to be called next, at the latest; None while not connected."""
        if not self._connected:
            return None
        dues = [flight.due_ns for flight in self._flights]
        dues += [line.hold_ns for line in self._lines.values() if line.hold_ns > now_ns]
        if not self._welcomed:
            dues.append(self._birth_due_ns)
        elif (tele_due := self._tele.due_ns()) is not None:
            dues.append(tele_due)
        return min(dues, default=None)

    # --- what to send ---------------------------------------------------------------------

    @property
    def welcomed(self) -> bool:
        """Tell whether the hub has answered on this connection."""
        return self._welcomed

    def waits(self, lane: Lane) -> bool:
        """Tell whether a lane has anything to send, now or later."""
        stream = _STREAM_OF.get(lane)
        return self._tele.waits(lane) if stream is None else self._lines[stream].waiting

    def want(self, lane: Lane, now_ns: int) -> Want | None:
        """Tell what to publish next on a lane, and reserve its slot; None: nothing now."""
        if not self._welcomed or not self._hub_online or lane in self._wants:
            return None
        if len(self._flights) + len(self._wants) >= self._credit:
            return None
        after = (
            self._want_tele(lane, now_ns)
            if lane not in _STREAM_OF
            else self._want_line(_STREAM_OF[lane], now_ns)
        )
        if after is None:
            return None
        want = Want(
            lane=lane,
            stream=_STREAM_OF.get(lane, Stream.TELE),
            after_seq=after,
            max_records=1 if lane not in _STREAM_OF else self._limits.batch_records_max,
            max_bytes=self._limits.batch_bytes_max,
            turn=self._lines[_STREAM_OF[lane]].turn if lane in _STREAM_OF else 0,
        )
        self._wants[lane] = want
        return want

    def sent(self, want: Want, last_seq: int, size: int, now_ns: int) -> None:
        """The batch is being published; from now on an ack may come."""
        if self._wants.get(want.lane) is not want:
            return
        del self._wants[want.lane]
        tries = self._tele.tries
        if want.stream is not Stream.TELE:
            line = self._lines[want.stream]
            tries = line.tries
            # Set back while the records were loaded: the cursor stays where it was set.
            if want.turn == line.turn:
                line.cursor = max(line.cursor, last_seq)
        elif not self._tele.took(want.after_seq + 1, want.lane, size, now_ns):
            return  # acked or dropped meanwhile
        due_ns = now_ns + self._resend_ns(tries)
        self._flights.append(_Flight(want.stream, (want.after_seq + 1, last_seq), size, due_ns))

    def unsent(self, want: Want, now_ns: int, hold_ns: int = 0) -> None:
        """Nothing could be loaded, or the broker refused it: keep still for ``hold_ns``."""
        self._wants.pop(want.lane, None)
        if want.stream is Stream.TELE:
            self._tele.later(want.after_seq + 1, now_ns + max(hold_ns, _S))
            self._land({want.after_seq + 1})
            return
        line = self._lines[want.stream]
        line.hold_ns = now_ns + hold_ns
        self._rewind(want.stream, min(line.cursor, want.after_seq))

    # --- inside: ordered streams ----------------------------------------------------------

    def _want_line(self, stream: Stream, now_ns: int) -> int | None:
        line = self._lines[stream]
        if not line.waiting or line.hold_ns > now_ns:
            return None
        if self._bytes_in_flight() >= self._limits.unacked_bytes_max:
            return None
        # The last slot goes to a stream that has none yet: a long usage backlog starves no event.
        last_slot = len(self._flights) + len(self._wants) >= self._credit - 1
        if last_slot and self._in_flight(stream) and self._hungry(stream):
            return None
        return line.cursor

    def _hungry(self, but: Stream) -> bool:
        return any(
            line.waiting and stream is not but and not self._in_flight(stream)
            for stream, line in self._lines.items()
        )

    def _settle(self, stream: Stream, wm: int) -> list[Effect]:
        line = self._lines[stream]
        line.tries = line.hold_ns = 0
        line.rewind_wm = -1
        line.turn += 1
        if wm >= line.next_seq:
            # This store has forgotten what it sent: only the edge knows its head this exactly.
            self._welcomed = False
            return [StartOver(f"{stream.value}: the hub has {wm}, next is {line.next_seq}")]
        effects: list[Effect] = []
        if wm > line.acked:
            effects.append(MarkAcked(stream, wm))
        elif wm < line.acked:
            effects.append(LowerMark(stream, wm))
            first = self._first_kept.get(stream, 1)
            if first > wm + 1:
                # An in-order stream can not start in its middle: only a new store can.
                effects[-1] = LowerMark(stream, first - 1)
                effects.append(StartOver(f"{stream.value} before {first} is past its retention"))
                self._welcomed = False
        line.acked = line.cursor = wm
        return effects

    def _ack_line(self, ack: Ack) -> list[Effect]:
        line = self._lines[ack.stream]
        self._flights = [
            flight
            for flight in self._flights
            if flight.stream is not ack.stream or flight.last > ack.wm
        ]
        line.cursor = max(line.cursor, ack.wm)
        if ack.wm <= line.acked:
            return []
        line.acked = ack.wm
        line.tries = 0
        return [MarkAcked(ack.stream, ack.wm)]

    def _rewind(self, stream: Stream, to_seq: int) -> None:
        line = self._lines[stream]
        line.cursor = to_seq
        line.turn += 1
        self._flights = [flight for flight in self._flights if flight.stream is not stream]

    def _nack(self, ack: Ack, seq: int, code: NackCode, now_ns: int) -> list[Effect]:
        if ack.stream is Stream.TELE:
            return self._nack_tele(seq, code, now_ns)
        line = self._lines[ack.stream]
        if code is not NackCode.OUT_OF_ORDER:
            if seq <= line.acked:
                return []  # late, or of a batch that was not ours: it was taken before
            line.hold_ns = now_ns + self._resend_ns(line.tries)
            line.tries += 1
            self._rewind(ack.stream, line.acked)
            return [Complaint("record_held", f"{ack.stream.value} {seq}: {code.value}")]
        if ack.wm == line.rewind_wm and now_ns < line.rewind_ns:
            return []  # one loss makes many nacks; the first one was obeyed
        line.rewind_wm = ack.wm
        line.rewind_ns = now_ns + self._limits.rewind_again_ns
        effects: list[Effect] = []
        if ack.wm < line.acked:
            line.acked = ack.wm
            effects.append(LowerMark(ack.stream, ack.wm))
        self._rewind(ack.stream, ack.wm)
        return effects

    # --- inside: telemetry ----------------------------------------------------------------

    def _want_tele(self, lane: Lane, now_ns: int) -> int | None:
        if lane not in (Lane.TELE, Lane.HIST):
            return None
        bulk = self._in_flight(Stream.TELE) + sum(1 for one in self._wants if one not in _STREAM_OF)
        if self._credit > 1:
            if bulk >= self._credit - 1:
                return None
        elif any(line.waiting and line.hold_ns <= now_ns for line in self._lines.values()):
            return None
        room = self._limits.unacked_bytes_max - self._bytes_in_flight()
        seq = self._tele.pick(lane, room, now_ns)
        return None if seq is None else seq - 1

    def _land(self, seqs: set[int]) -> None:
        """End the flights of these segments."""
        self._flights = [
            flight
            for flight in self._flights
            if flight.stream is not Stream.TELE or flight.first not in seqs
        ]

    def _ack_tele(self, ack: Ack) -> list[Effect]:
        seqs = self._tele.acked(ack.wm, ack.ranges)
        self._land(set(seqs))
        if not seqs and not self._tele.raised(ack.wm):
            return []
        self._tele.tries = 0
        return [TeleAcked(ack.wm, seqs)]

    def _nack_tele(self, seq: int, code: NackCode, now_ns: int) -> list[Effect]:
        if seq not in self._tele.sizes:
            return []
        self._land({seq})
        if code in _DEAD_CODES or (code is NackCode.BAD_HASH and self._tele.second_strike(seq)):
            self._tele.forget({seq})
            return [DeadLetter(seq, code)]
        self._tele.later(
            seq, now_ns + self._limits.rewind_again_ns * (1 << min(self._tele.tries, 6))
        )
        if code is NackCode.NEED_SCHEMA:
            self._tele.tries += 1
            self._schema_again(now_ns)
            return []
        self._tele.later(seq, now_ns + self._limits.resend_max_ns)
        return [Complaint("segment_refused", f"tele {seq}: {code.value}")]

    def _schema_again(self, now_ns: int) -> None:
        line = self._lines[Stream.SCHEMA]
        if now_ns < line.rewind_ns:
            return
        line.rewind_ns = now_ns + self._limits.schema_again_ns
        self._rewind(Stream.SCHEMA, 0)

    # --- inside: common -------------------------------------------------------------------

    def _await_welcome(self, now_ns: int) -> None:
        wait_ns = min(
            self._limits.birth_after_ns << min(self._births, 10), self._limits.birth_max_ns
        )
        self._births += 1
        self._birth_due_ns = now_ns + self._jittered(wait_ns)

    def _resend_ns(self, tries: int) -> int:
        base = min(self._limits.resend_after_ns << min(tries, 10), self._limits.resend_max_ns)
        return self._jittered(base)

    def _jittered(self, wait_ns: int) -> int:
        return wait_ns + int(wait_ns * 0.25 * self._random())

    def _next_seq(self, stream: Stream) -> int:
        return self._tele.next_seq if stream is Stream.TELE else self._lines[stream].next_seq

    def _in_flight(self, stream: Stream) -> int:
        return sum(1 for flight in self._flights if flight.stream is stream)

    def _bytes_in_flight(self) -> int:
        return sum(flight.size for flight in self._flights)

    def _is_ours(self, store_id: str) -> bool:
        return self._connected and store_id == self._store_id

    def _ignore(self) -> tuple[Effect, ...]:
        self.ignored += 1
        return ()

    def _older_epoch(self, epoch: int) -> tuple[Effect, ...]:
        self.ignored += 1
        return (Complaint("hub_epoch_lower", f"{epoch} below {self._epoch}"),)

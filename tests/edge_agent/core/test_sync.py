"""The sync machine against every loss, doubling and reordering of the hub's words."""

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.core.sync import SyncMachine, missing_leases
from edge_agent.core.sync_types import (
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
from protocol.sync import (
    Ack,
    Lane,
    LeaseHead,
    NackCode,
    Rebase,
    Stream,
    StreamHead,
    Welcome,
    manifest_digest_of,
)

S = 1_000_000_000
ORDERED = (Stream.USAGE, Stream.EVENT, Stream.SCHEMA)
LANES = (Lane.USAGE, Lane.EVENT, Lane.SCHEMA, Lane.TELE, Lane.HIST)
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _ack(stream: Stream, wm: int, **more: object) -> Ack:
    values = {"hub_epoch": 1, "store_id": "st", "credit": 4, "hub_time": NOW} | more
    return Ack(stream=stream, wm=wm, **values)  # type: ignore[arg-type]


def _welcome(wms: dict[Stream, int], **more: object) -> Welcome:
    values = {"hub_epoch": 1, "store_id": "st", "conn_no": 1, "owner": True, "credit": 4} | more
    return Welcome(
        wms=tuple(wms.items()),
        leases=(),
        manifest_digest=manifest_digest_of(()),
        hub_time=NOW,
        **values,  # type: ignore[arg-type]
    )


def _machine(
    heads: dict[Stream, tuple[int, int]] | None = None,
    segments: tuple[tuple[int, int], ...] = (),
    first_kept: dict[Stream, int] | None = None,
    limits: SyncLimits | None = None,
) -> SyncMachine:
    machine = SyncMachine(lambda: 0.0, limits)
    known = {Stream.TELE: (len(segments) + 1, 0)} | (heads or {})
    machine.connected(
        0,
        store_id="st",
        conn_no=1,
        heads=[
            StreamHead(
                stream=stream,
                next_seq=known.get(stream, (1, 0))[0],
                acked_wm=known.get(stream, (1, 0))[1],
            )
            for stream in Stream
        ],
        segments=segments,
        first_kept=first_kept or {},
    )
    return machine


class Conversation(RuleBasedStateMachine):
    """A true hub behind a network that loses, doubles and delays whatever it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = SyncMachine(lambda: 0.5, SyncLimits(batch_records_max=3))
        self.now_ns = 0
        self.conn_no = 0
        self.next_seq = dict.fromkeys(ORDERED, 1)
        self.acked = dict.fromkeys(ORDERED, 0)
        self.hub = dict.fromkeys(ORDERED, 0)
        self.tele_next = 1
        self.tele: dict[int, int] = {}
        self.hub_tele: set[int] = set()
        self.words: list[Ack | Welcome] = []
        self.flying: list[tuple[Stream, int, int]] = []
        self.connect()

    @rule()
    def connect(self) -> None:
        self.conn_no += 1
        self.flying.clear()
        heads = [
            StreamHead(stream=s, next_seq=self.next_seq[s], acked_wm=self.acked[s]) for s in ORDERED
        ]
        heads.append(StreamHead(stream=Stream.TELE, next_seq=self.tele_next, acked_wm=0))
        self.machine.connected(
            self.now_ns,
            store_id="st",
            conn_no=self.conn_no,
            heads=heads,
            segments=self.tele.items(),
            first_kept={},
        )
        self.hub_welcomes()

    @rule()
    def hub_welcomes(self) -> None:
        wms = dict(self.hub) | {Stream.TELE: self._tele_wm()}
        self.words.append(_welcome(wms, conn_no=self.conn_no))

    @rule(stream=st.sampled_from(ORDERED), count=st.integers(1, 5))
    def append(self, stream: Stream, count: int) -> None:
        self.next_seq[stream] += count
        self.machine.appended(stream, self.next_seq[stream])

    @rule(size=st.integers(1, 600_000))
    def seal(self, size: int) -> None:
        self.tele[self.tele_next] = size
        self.machine.sealed(self.tele_next, size)
        self.tele_next += 1

    @rule(lane=st.sampled_from(LANES))
    def publish(self, lane: Lane) -> None:
        waits = self.machine.waits(lane)
        want = self.machine.want(lane, self.now_ns)
        if want is None:
            return
        assert waits  # else nobody would have woken the lane
        if want.stream is Stream.TELE:
            assert want.after_seq + 1 in self.tele
            last, size = want.after_seq + 1, self.tele[want.after_seq + 1]
        else:
            last = min(want.after_seq + want.max_records, self.next_seq[want.stream] - 1)
            assert last > want.after_seq >= 0
            size = last - want.after_seq
        self.machine.sent(want, last, size, self.now_ns)
        self.flying.append((want.stream, want.after_seq + 1, last))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), keep=st.booleans())
    def hub_takes(self, data: st.DataObject, *, keep: bool) -> None:
        at = data.draw(st.integers(0, len(self.flying) - 1))
        stream, first, last = self.flying[at] if keep else self.flying.pop(at)
        nack: tuple[tuple[int, NackCode], ...] = ()
        if stream is Stream.TELE:
            self.hub_tele.add(first)
            wm = self._tele_wm()
            ranges = tuple((s, s) for s in sorted(self.hub_tele) if s > wm)
            self.words.append(_ack(stream, wm, ranges=ranges))
            return
        if first > self.hub[stream] + 1:
            nack = ((first, NackCode.OUT_OF_ORDER),)
        else:
            self.hub[stream] = max(self.hub[stream], last)
        self.words.append(_ack(stream, self.hub[stream], nack=nack))

    @precondition(lambda self: self.words)
    @rule(data=st.data(), keep=st.booleans())
    def edge_hears(self, data: st.DataObject, *, keep: bool) -> None:
        at = data.draw(st.integers(0, len(self.words) - 1))
        word = self.words[at] if keep else self.words.pop(at)
        self._hear(word)

    @rule(seconds=st.integers(1, 100))
    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * S
        for effect in self.machine.tick(self.now_ns):
            assert isinstance(effect, SendBirth)

    def _hear(self, word: Ack | Welcome) -> None:
        if isinstance(word, Welcome):
            effects = self.machine.on_welcome(word, self.now_ns)
        else:
            effects = self.machine.on_ack(word, self.now_ns)
        for effect in effects:
            match effect:
                case MarkAcked(stream, wm):
                    assert wm <= self.hub[stream]
                    self.acked[stream] = wm
                case LowerMark(stream, wm):
                    self.acked[stream] = wm
                case TeleAcked(_, seqs):
                    assert set(seqs) <= self.hub_tele
                    for seq in seqs:
                        del self.tele[seq]
                case StartOver() | DeadLetter() | TeleLost() | Complaint():
                    raise AssertionError(effect)
                case _:
                    pass

    def _tele_wm(self) -> int:
        wm = 0
        while wm + 1 in self.hub_tele:
            wm += 1
        return wm

    @invariant()
    def only_what_the_hub_has_is_acked(self) -> None:
        for stream in ORDERED:
            assert self.acked[stream] <= self.hub[stream]
        held = set(self.tele)
        assert held | self.hub_tele >= set(range(1, self.tele_next))

    @invariant()
    def within_credit(self) -> None:
        assert len(self.machine._flights) <= 4

    def teardown(self) -> None:
        """When the network behaves, everything is acked within bounded time."""
        self.connect()
        self.words = self.words[-1:]
        for _ in range(4_000):
            for lane in LANES:
                self.publish(lane)
            while self.flying:
                stream, first, last = self.flying.pop(0)
                self.flying.insert(0, (stream, first, last))
                self._take_first()
            while self.words:
                self._hear(self.words.pop(0))
            self.wait(1)
            done = all(self.acked[s] == self.next_seq[s] - 1 for s in ORDERED)
            if done and not self.tele:
                return
        raise AssertionError("not everything was acked")

    def _take_first(self) -> None:
        stream, first, last = self.flying.pop(0)
        if stream is Stream.TELE:
            self.hub_tele.add(first)
            wm = self._tele_wm()
            ranges = tuple((s, s) for s in sorted(self.hub_tele) if s > wm)
            self.words.append(_ack(stream, wm, ranges=ranges))
            return
        nack: tuple[tuple[int, NackCode], ...] = ()
        if first > self.hub[stream] + 1:
            nack = ((first, NackCode.OUT_OF_ORDER),)
        else:
            self.hub[stream] = max(self.hub[stream], last)
        self.words.append(_ack(stream, self.hub[stream], nack=nack))


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def _send(machine: SyncMachine, lane: Lane, now_ns: int, *, last: int | None = None) -> Want:
    want = machine.want(lane, now_ns)
    assert want is not None
    machine.sent(want, want.after_seq + 1 if last is None else last, 100, now_ns)
    return want


def _only(effects: tuple[Effect, ...], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def test_nothing_is_sent_before_the_welcome_and_the_birth_is_repeated() -> None:
    machine = _machine({Stream.USAGE: (3, 0)})
    assert machine.want(Lane.USAGE, 0) is None
    due = machine.next_due_ns(0)
    assert due == 15 * S
    assert machine.tick(due - 1) == ()
    assert machine.tick(due) == (SendBirth(),)
    assert machine.next_due_ns(due) == due + 30 * S
    machine.on_welcome(_welcome({}), due)
    assert machine.want(Lane.USAGE, due) is not None


def test_resends_double_up_to_ten_minutes() -> None:
    machine = _machine({Stream.USAGE: (2, 0)})
    machine.on_welcome(_welcome({}), 0)
    now_ns, waits = 0, []
    for _ in range(7):
        _send(machine, Lane.USAGE, now_ns)
        assert machine.want(Lane.USAGE, now_ns) is None
        due = machine.next_due_ns(now_ns)
        assert due is not None
        waits.append((due - now_ns) // S)
        now_ns = due
        machine.tick(now_ns)
    assert waits == [30, 60, 120, 240, 480, 600, 600]


def test_credit_and_priority() -> None:
    machine = _machine({Stream.USAGE: (2, 0)}, segments=((1, 10), (2, 10), (3, 10)))
    machine.on_welcome(_welcome({}, credit=1), 0)
    assert machine.want(Lane.HIST, 0) is None  # the one slot is for usage
    _send(machine, Lane.USAGE, 0)
    assert machine.want(Lane.EVENT, 0) is None
    machine.on_ack(_ack(Stream.USAGE, 1, credit=3), 0)
    assert _send(machine, Lane.HIST, 0).after_seq == 0
    assert _send(machine, Lane.HIST, 0).after_seq == 1
    assert machine.want(Lane.HIST, 0) is None  # the last slot stays free for what is ordered
    machine.appended(Stream.EVENT, 2)
    assert machine.want(Lane.EVENT, 0) is not None


def test_bytes_in_flight_are_bounded() -> None:
    machine = _machine(segments=tuple((seq, 3 << 20) for seq in range(1, 6)))
    machine.on_welcome(_welcome({}, credit=16), 0)
    for now_ns in (0, 10 * S):
        want = machine.want(Lane.HIST, now_ns)
        assert want is not None
        machine.sent(want, want.after_seq + 1, 3 << 20, now_ns)
    assert machine.want(Lane.HIST, 20 * S) is None


def test_new_telemetry_first_and_newest_first() -> None:
    machine = _machine({Stream.TELE: (3, 0)}, segments=((1, 10), (2, 10)))
    machine.on_welcome(_welcome({}, credit=8), 0)
    for seq in (3, 4):
        machine.sealed(seq, 10)
    assert machine.want(Lane.HIST, 0) is None
    assert _send(machine, Lane.TELE, 0).after_seq == 3
    assert _send(machine, Lane.TELE, 0).after_seq == 2
    assert _send(machine, Lane.HIST, 0).after_seq == 0


def test_backlog_keeps_to_its_rate() -> None:
    limits = SyncLimits(hist_bytes_per_s=100, hist_burst_bytes=100)
    machine = _machine(segments=tuple((seq, 50) for seq in range(1, 40)), limits=limits)
    machine.on_welcome(_welcome({}, credit=16), 0)
    sent = 0
    for second in range(11):
        while (want := machine.want(Lane.HIST, second * S)) is not None:
            machine.sent(want, want.after_seq + 1, 50, second * S)
            machine.on_ack(_ack(Stream.TELE, 0, ranges=((sent + 1, sent + 1),), credit=16), 0)
            sent += 1
    assert sent == 2 + 10 * 2


def test_hub_that_lost_records_is_given_them_again() -> None:
    machine = _machine({Stream.USAGE: (9, 8), Stream.TELE: (6, 5)}, segments=())
    effects = machine.on_welcome(_welcome({Stream.USAGE: 3, Stream.TELE: 2}), 0)
    assert _only(effects, LowerMark) == [LowerMark(Stream.USAGE, 3)]
    assert _only(effects, TeleLost) == [TeleLost(3, 5)]
    want = machine.want(Lane.USAGE, 0)
    assert want is not None
    assert want.after_seq == 3


def test_records_past_retention_need_a_new_store() -> None:
    machine = _machine({Stream.USAGE: (9, 8)}, first_kept={Stream.USAGE: 5})
    effects = machine.on_welcome(_welcome({Stream.USAGE: 0}), 0)
    assert _only(effects, LowerMark) == [LowerMark(Stream.USAGE, 4)]
    assert len(_only(effects, StartOver)) == 1
    assert machine.want(Lane.USAGE, 0) is None


def test_hub_that_knows_more_makes_it_start_over() -> None:
    machine = _machine({Stream.USAGE: (3, 0)})
    (effect, *_) = machine.on_welcome(_welcome({Stream.USAGE: 3}), 0)
    assert isinstance(effect, StartOver)


def test_rebase_by_an_old_birth_is_asked_about_first() -> None:
    rebase = Rebase(hub_epoch=1, store_id="st", conn_no=1, reason="r")
    machine = _machine()
    assert machine.on_rebase(rebase) == (StartOver("r"),)
    machine = _machine()
    machine.on_welcome(_welcome({}), 0)
    assert machine.on_rebase(rebase) == (SendBirth(),)
    assert machine.on_rebase(rebase) == (StartOver("r"),)
    assert machine.on_rebase(Rebase(hub_epoch=1, store_id="x", conn_no=1, reason="r")) == ()


def test_words_that_are_never_obeyed() -> None:
    machine = _machine({Stream.USAGE: (4, 0)})
    machine.on_welcome(_welcome({}, hub_epoch=5), 0)
    beyond = machine.on_ack(_ack(Stream.USAGE, 4, hub_epoch=5), 0)
    assert [effect.code for effect in beyond if isinstance(effect, Complaint)] == [
        "ack_beyond_head"
    ]
    older = machine.on_ack(_ack(Stream.USAGE, 2, hub_epoch=4), 0)
    assert [effect.code for effect in older if isinstance(effect, Complaint)] == ["hub_epoch_lower"]
    assert machine.on_ack(_ack(Stream.USAGE, 2, hub_epoch=5, store_id="other"), 0) == ()
    assert machine.on_welcome(_welcome({}, hub_epoch=5, conn_no=7), 0) == ()
    assert SendBirth() in machine.on_ack(_ack(Stream.USAGE, 2, hub_epoch=6), 0)


def test_an_ack_from_before_the_welcome_is_not_obeyed() -> None:
    """The broker's session kept it; an older copy has given its numbers to other records since."""
    machine = _machine({Stream.USAGE: (50, 25)})
    assert machine.on_ack(_ack(Stream.USAGE, 42), 0) == ()
    rebase = Rebase(hub_epoch=1, store_id="st", conn_no=1, reason="event: hub has 34")
    assert machine.on_rebase(rebase) == (StartOver("event: hub has 34"),)
    machine = _machine({Stream.USAGE: (50, 25)})
    machine.on_ack(_ack(Stream.USAGE, 42), 0)
    machine.on_welcome(_welcome({Stream.USAGE: 25}), 0)
    assert MarkAcked(Stream.USAGE, 30) in machine.on_ack(_ack(Stream.USAGE, 30), 0)


def test_a_store_with_another_record_at_the_hubs_mark_starts_over() -> None:
    welcome = _welcome({Stream.USAGE: 42}, wm_digests=((Stream.USAGE, b"h" * 16),))
    machine = _machine({Stream.USAGE: (50, 25)})
    effects = machine.on_welcome(welcome, 0, {Stream.USAGE: b"e" * 16})
    assert [type(one) for one in effects] == [StartOver]
    assert machine.want(Lane.USAGE, 0) is None
    for own in ({Stream.USAGE: b"h" * 16}, {}):
        machine = _machine({Stream.USAGE: (50, 25)})
        assert MarkAcked(Stream.USAGE, 42) in machine.on_welcome(welcome, 0, own)


def test_missing_schema_goes_before_the_segment_that_needs_it() -> None:
    machine = _machine({Stream.SCHEMA: (3, 2), Stream.TELE: (2, 0)}, segments=((1, 10),))
    machine.on_welcome(_welcome({Stream.SCHEMA: 2}), 0)
    _send(machine, Lane.HIST, 0)
    machine.on_ack(_ack(Stream.TELE, 0, nack=((1, NackCode.NEED_SCHEMA),)), 0)
    assert machine.want(Lane.HIST, 0) is None
    assert _send(machine, Lane.SCHEMA, 0, last=2).after_seq == 0
    machine.on_ack(_ack(Stream.SCHEMA, 2), 0)
    machine.tick(2 * S)
    assert _send(machine, Lane.HIST, 2 * S).after_seq == 0


def test_segments_refused_for_good_and_for_now() -> None:
    machine = _machine({Stream.TELE: (4, 0)}, segments=((1, 9), (2, 9), (3, 9)))
    machine.on_welcome(_welcome({}, credit=8), 0)
    for _ in range(3):
        _send(machine, Lane.HIST, 0)
    dead = machine.on_ack(_ack(Stream.TELE, 0, nack=((1, NackCode.TOO_LARGE),)), 0)
    assert dead == (DeadLetter(1, NackCode.TOO_LARGE),)
    bad = ((2, NackCode.BAD_HASH),)
    assert not _only(machine.on_ack(_ack(Stream.TELE, 0, nack=bad), 0), DeadLetter)
    assert _only(machine.on_ack(_ack(Stream.TELE, 0, nack=bad), 0), DeadLetter)
    held = machine.on_ack(_ack(Stream.TELE, 0, nack=((3, NackCode.FORBIDDEN),)), 0)
    assert [effect.code for effect in held if isinstance(effect, Complaint)] == ["segment_refused"]
    machine.tick(599 * S)
    assert machine.want(Lane.HIST, 599 * S) is None
    machine.tick(601 * S)
    assert machine.want(Lane.HIST, 601 * S) is not None


def test_usage_refused_for_its_content_is_held_never_dropped() -> None:
    machine = _machine({Stream.USAGE: (4, 0)})
    machine.on_welcome(_welcome({}), 0)
    _send(machine, Lane.USAGE, 0, last=3)
    (effect,) = machine.on_ack(_ack(Stream.USAGE, 0, nack=((2, NackCode.MALFORMED),)), 0)
    assert isinstance(effect, Complaint)
    assert machine.want(Lane.USAGE, 0) is None
    want = machine.want(Lane.USAGE, 40 * S)
    assert want is not None
    assert want.after_seq == 0


def test_a_late_refusal_of_what_was_taken_holds_nothing_up() -> None:
    machine = _machine({Stream.USAGE: (4, 0)})
    machine.on_welcome(_welcome({Stream.USAGE: 2}), 0)
    late = _ack(Stream.USAGE, 2, nack=((1, NackCode.FORBIDDEN),))
    assert machine.on_ack(late, 0) == ()
    want = machine.want(Lane.USAGE, 0)
    assert want is not None
    assert want.after_seq == 2


def test_offline_hub_is_sent_nothing() -> None:
    machine = _machine({Stream.USAGE: (4, 0)})
    machine.on_welcome(_welcome({}), 0)
    machine.hub_state(online=False)
    assert machine.want(Lane.USAGE, 0) is None
    machine.hub_state(online=True)
    assert machine.want(Lane.USAGE, 0) is not None


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.integers(1, 3))),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.integers(1, 3))),
)
def test_missing_leases_are_those_not_held_so_new(
    manifest: list[tuple[str, int, int]], known: list[tuple[str, int, int]]
) -> None:
    wanted = {row[0]: LeaseHead(*row) for row in manifest}
    held = {row[0]: LeaseHead(*row) for row in known}
    found = missing_leases(tuple(wanted.values()), tuple(held.values()))
    for lease_id, head in wanted.items():
        have = held.get(lease_id)
        old = have is None or (have.hub_epoch, have.generation) < (head.hub_epoch, head.generation)
        assert (lease_id in found) == old

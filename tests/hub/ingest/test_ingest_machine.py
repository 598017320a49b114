"""Whatever the link and the processes do: no usage record is lost and none is counted twice."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from protocol.sync import Rebase, Stream, Welcome, digest_of


class CrashError(Exception):
    """The hub dies inside a write job."""


def crash() -> None:
    raise CrashError


class Ingest(RuleBasedStateMachine):
    """An edge store with its outbox against the real tables of the hub."""

    make_hub: ClassVar[Callable[[], Any]]
    usage_body: ClassVar[Callable[[int], bytes]]

    def __init__(self) -> None:
        super().__init__()
        self.hub = type(self).make_hub()
        self.stores = 1
        self.conn_no = 1
        self.made = 0
        self.outbox: list[bytes] = []
        self.acked = 0
        self.safe: set[bytes] = set()
        self.backup: tuple[str, list[bytes], int, int] | None = None
        self.hub.birth(self.store_id, self.conn_no)
        self.hub.issue()

    @property
    def store_id(self) -> str:
        return f"s{self.stores}"

    @rule(count=st.integers(1, 5))
    def meter(self, count: int) -> None:
        for _ in range(count):
            self.made += 1
            self.outbox.append(type(self).usage_body(self.made))

    @rule(
        back=st.integers(0, 8),
        count=st.integers(1, 6),
        fate=st.sampled_from(("acked", "acked", "ack_lost", "crash", "doubled")),
    )
    def send(self, back: int, count: int, fate: str) -> None:
        first = max(1, self.acked + 1 - back)
        bodies = self.outbox[first - 1 : first - 1 + count]
        if not bodies:
            return
        if fate == "crash":
            with pytest.raises(CrashError):
                self.hub.send(Stream.USAGE, first, *bodies, store_id=self.store_id, spoil=crash)
            return
        for _ in range(2 if fate == "doubled" else 1):
            taken = self.hub.send(Stream.USAGE, first, *bodies, store_id=self.store_id)
        assert taken.ack is not None
        assert taken.ack.wm <= len(self.outbox)
        if fate != "ack_lost":
            self.obey(taken.ack.wm)

    @rule(gap=st.integers(1, 4))
    def send_ahead(self, gap: int) -> None:
        first = self.acked + 1 + gap
        bodies = self.outbox[first - 1 :]
        if bodies:
            taken = self.hub.send(Stream.USAGE, first, *bodies, store_id=self.store_id)
            self.obey(taken.ack.wm)

    @rule()
    def reconnect(self) -> None:
        self.conn_no += 1
        last = digest_of(self.outbox[-1]) if self.outbox else b""
        answered = self.hub.birth(
            self.store_id, self.conn_no, {Stream.USAGE: (len(self.outbox), last)}
        )
        if isinstance(answered.reply, Rebase):
            self.rebase()
            return
        assert isinstance(answered.reply, Welcome)
        assert answered.reply.owner
        self.obey(dict(answered.reply.wms)[Stream.USAGE])

    @rule()
    def snapshot(self) -> None:
        self.backup = (self.store_id, list(self.outbox), self.acked, self.conn_no)

    @rule()
    def restore_edge(self) -> None:
        """The edge's disk goes back; the numbers of new intervals go on, as instances do."""
        if self.backup is None or self.backup[0] != self.store_id:
            return
        _, self.outbox, self.acked, self.conn_no = self.backup
        self.outbox = list(self.outbox)
        self.reconnect()

    def rebase(self) -> None:
        unacked = self.outbox[self.acked :]
        self.stores += 1
        self.conn_no += 1
        self.outbox, self.acked, self.backup = list(unacked), 0, None
        answered = self.hub.birth(
            self.store_id, self.conn_no, {Stream.USAGE: (len(self.outbox), b"")}
        )
        assert isinstance(answered.reply, Welcome)
        assert answered.reply.owner

    def obey(self, wm: int) -> None:
        assert wm <= len(self.outbox)
        self.acked = max(self.acked, wm)
        self.safe |= set(self.outbox[: self.acked])

    @invariant()
    def everything_acked_is_stored_once(self) -> None:
        stored = self.hub.rows("SELECT usage_id, active_ms FROM usage")
        truth = {f"u-{n}": 30_000 - n % 1_000 for n in range(1, self.made + 1)}
        assert all(truth[usage_id] == active_ms for usage_id, active_ms in stored)
        known = {usage_id for usage_id, _ in stored}
        safe = {f"u-{n}" for n in range(1, self.made + 1) if type(self).usage_body(n) in self.safe}
        assert safe <= known
        assert self.hub.rows("SELECT count(*) FROM quarantine") == [(0,)]

    def teardown(self) -> None:
        self.reconnect()
        while self.acked < len(self.outbox):
            self.send(0, 6, "acked")
        stored = {row[0] for row in self.hub.rows("SELECT usage_id FROM usage")}
        offered = {
            f"u-{n}" for n in range(1, self.made + 1) if type(self).usage_body(n) in self.outbox
        }
        assert offered <= stored
        self.hub.connection.close()


def test_no_usage_is_lost_or_doubled(
    make_hub: Callable[[], Any], usage_body: Callable[..., bytes]
) -> None:
    made: dict[int, bytes] = {}

    def body(number: int) -> bytes:
        if number not in made:
            made[number] = usage_body(number)
        return made[number]

    Ingest.make_hub = make_hub
    Ingest.usage_body = body
    run_state_machine_as_test(
        Ingest,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None),
    )

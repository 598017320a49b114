"""An MQTT 5 broker in memory: sessions, retained messages, wills, in-flight limits.

It keeps to what mosquitto 2.0 does where the standard leaves a choice: overlapping subscriptions
deliver twice, QoS 0 is not queued for an absent client, a full queue drops the newest message
without a word to the publisher. Shared subscriptions are not simulated. Connections are `Peer`
objects; time is the running loop's.
Source: OASIS MQTT 5.0, sections 3.1.2.5 (will), 3.3.1.3 (retain), 4.1 (sessions), 4.6 (order).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import msgspec

from simulators.errors import SettingError

PACKET_BYTES_MAX = 1 << 20
QUEUED_MAX = 1000
SUCCESS = 0x00
NO_MATCHING_SUBSCRIBERS = 0x10
NOT_AUTHORIZED = 0x87
TOPIC_NAME_INVALID = 0x90


class Message(msgspec.Struct, frozen=True):
    """One application message."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


class WillLike(Protocol):
    """What the broker publishes for a client that goes away without a word."""

    @property
    def topic(self) -> str:
        """Topic of the will."""

    @property
    def payload(self) -> bytes:
        """Payload of the will."""

    @property
    def qos(self) -> int:
        """QoS of the will."""

    @property
    def retain(self) -> bool:
        """Whether the will is retained."""

    @property
    def delay_s(self) -> int:
        """Seconds between the loss of the client and its will."""


class Peer(Protocol):
    """The broker's side of one connection."""

    def deliver(self, packet_id: int | None, message: Message) -> None:
        """Send a message; a packet id asks for an acknowledgement."""

    def taken_over(self) -> None:
        """Learn that another connection has taken the session, or that the broker is gone."""


# (publisher, subscriber, message) -> delay in s of the first copy, then of each further one after
# the first has arrived; none at all = lost.
Fate = Callable[[str, str, Message], Sequence[float]]


class _Copies(msgspec.Struct, frozen=True):
    """A message on its way to a subscriber, and when it comes again."""

    client_id: str
    message: Message
    qos: int
    again_s: tuple[float, ...]


class Session:
    """What the broker keeps for a client id, connected or not."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.subscriptions: dict[str, int] = {}
        self.queue: deque[Message] = deque()
        self.inflight: dict[int, Message] = {}
        self.peer: Peer | None = None
        self.expiry_s = 0
        self.receive_maximum = 0
        self.will: WillLike | None = None
        self.will_timer: asyncio.TimerHandle | None = None
        self.expiry_timer: asyncio.TimerHandle | None = None
        self._last_id = 0

    def next_id(self) -> int:
        """Return a free packet identifier, 1..65,535."""
        self._last_id = self._last_id % 65_535 + 1
        return self._last_id

    def forget_timers(self) -> None:
        """Stop the will and the expiry."""
        for timer in (self.will_timer, self.expiry_timer):
            if timer is not None:
                timer.cancel()
        self.will_timer = self.expiry_timer = None


class Broker:
    """The broker.

    Args:
        fate: What happens to each copy on its way from the broker to a subscriber.
        allowed: Whether a client may publish on a topic.
    """

    def __init__(self, fate: Fate, allowed: Callable[[str, str], bool]) -> None:
        self.retained: dict[str, Message] = {}
        self.sessions: dict[str, Session] = {}
        self.dropped_full = 0
        self._fate = fate
        self._allowed = allowed
        self._lanes: dict[tuple[str, str, str], deque[_Copies]] = {}
        self._lane_ends_s: dict[tuple[str, str, str], float] = {}

    def connect(
        self,
        peer: Peer,
        client_id: str,
        *,
        clean_start: bool,
        session_expiry_s: int,
        receive_maximum: int,
        will: WillLike | None,
    ) -> None:
        """Open a connection; whatever the session held unacknowledged is sent again, in order."""
        session = self.sessions.get(client_id)
        if session is not None and session.peer is not None:
            other, session.peer = session.peer, None
            self._part(session, graceful=False)
            other.taken_over()
            session = self.sessions.get(client_id)
        if session is not None and clean_start:
            self._end(session)
            session = None
        if session is None:
            session = self.sessions[client_id] = Session(client_id)
        session.forget_timers()
        session.peer = peer
        session.expiry_s = session_expiry_s
        session.receive_maximum = receive_maximum
        session.will = will
        for packet_id, message in session.inflight.items():
            peer.deliver(packet_id, message)
        self._pump(session)

    def disconnect(self, client_id: str, peer: Peer, *, graceful: bool) -> None:
        """Close a connection; a graceful end discards the will."""
        session = self.sessions.get(client_id)
        if session is None or session.peer is not peer:
            return
        session.peer = None
        self._part(session, graceful=graceful)

    def subscribe(self, client_id: str, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe, and send what is retained under each filter."""
        session = self.sessions[client_id]
        for pattern, qos in filters:
            if pattern.startswith("$share/"):
                raise SettingError("filters", f"{pattern}: shared subscriptions are not simulated")
            session.subscriptions[pattern] = qos
            for topic, message in self.retained.items():
                if matches(pattern, topic):
                    self._enqueue(session, message, min(qos, message.qos))

    def publish(self, client_id: str, message: Message) -> int:
        """Take a message and return the reason code of its PUBACK."""
        if "+" in message.topic or "#" in message.topic or not message.topic:
            return TOPIC_NAME_INVALID
        if not self._allowed(client_id, message.topic):
            return NOT_AUTHORIZED
        if message.retain and message.payload:
            self.retained[message.topic] = message
        elif message.retain:
            self.retained.pop(message.topic, None)
        live = msgspec.structs.replace(message, retain=False)
        matched = False
        for session in list(self.sessions.values()):
            for pattern, qos in session.subscriptions.items():
                if matches(pattern, message.topic):
                    matched = True
                    self._send(client_id, session, live, min(qos, message.qos))
        return SUCCESS if matched else NO_MATCHING_SUBSCRIBERS

    def acknowledge(self, client_id: str, peer: Peer, packet_id: int) -> None:
        """Take a client's PUBACK and send on."""
        session = self.sessions.get(client_id)
        if session is None or session.peer is not peer:
            return
        session.inflight.pop(packet_id, None)
        self._pump(session)

    def crash(self, *, keep_state: bool) -> None:
        """Die: every connection ends, no will is sent, and the state may be lost as well."""
        self._lanes.clear()
        self._lane_ends_s.clear()
        for session in list(self.sessions.values()):
            session.forget_timers()
            peer, session.peer = session.peer, None
            if peer is not None:
                peer.taken_over()
        if not keep_state:
            self.sessions.clear()
            self.retained.clear()

    def restart(self) -> None:
        """Come back: kept sessions wait for their clients, and expire if they stay away."""
        for session in self.sessions.values():
            self._part(session, graceful=True)

    def _part(self, session: Session, *, graceful: bool) -> None:
        """Start what runs while a client is away: its will, and the end of its session."""
        will, session.will = session.will, None
        session.forget_timers()
        loop = asyncio.get_running_loop()
        if will is not None and not graceful:
            if min(will.delay_s, session.expiry_s) <= 0:
                self._publish_will(session.client_id, will)
            else:
                session.will = will
                session.will_timer = loop.call_later(will.delay_s, self._will_due, session)
        if session.expiry_s <= 0:
            self._end(session)
        else:
            session.expiry_timer = loop.call_later(session.expiry_s, self._end, session)

    def _will_due(self, session: Session) -> None:
        will, session.will, session.will_timer = session.will, None, None
        if will is not None:
            self._publish_will(session.client_id, will)

    def _end(self, session: Session) -> None:
        """End a session; a will that still waits is sent now."""
        session.forget_timers()
        if self.sessions.get(session.client_id) is session:
            del self.sessions[session.client_id]
        self._will_due(session)

    def _publish_will(self, client_id: str, will: WillLike) -> None:
        self.publish(client_id, Message(will.topic, will.payload, will.qos, will.retain))

    def _send(self, publisher: str, session: Session, message: Message, qos: int) -> None:
        """Let fate decide when the copies reach the subscriber's queue.

        First copies of one (publisher, topic, subscriber) never overtake each other.
        """
        delays_s = self._fate(publisher, session.client_id, message)
        if not delays_s:
            return
        copies = _Copies(session.client_id, message, qos, tuple(delays_s[1:]))
        key = (publisher, message.topic, session.client_id)
        if delays_s[0] <= 0 and key not in self._lanes:
            self._arrive(copies)
            return
        loop = asyncio.get_running_loop()
        due_s = max(self._lane_ends_s.get(key, 0.0), loop.time() + delays_s[0])
        self._lane_ends_s[key] = due_s
        self._lanes.setdefault(key, deque()).append(copies)
        loop.call_at(due_s, self._lane_due, key)

    def _lane_due(self, key: tuple[str, str, str]) -> None:
        lane = self._lanes.get(key)
        if not lane:
            return  # the broker crashed in between
        copies = lane.popleft()
        if not lane:
            del self._lanes[key], self._lane_ends_s[key]
        self._arrive(copies)

    def _arrive(self, copies: _Copies) -> None:
        session = self.sessions.get(copies.client_id)
        if session is None:
            return
        self._enqueue(session, copies.message, copies.qos)
        again = msgspec.structs.replace(copies, again_s=())
        for delay_s in copies.again_s:
            asyncio.get_running_loop().call_later(delay_s, self._arrive, again)

    def _enqueue(self, session: Session, message: Message, qos: int) -> None:
        message = msgspec.structs.replace(message, qos=qos)
        if qos == 0:
            if session.peer is not None:
                session.peer.deliver(None, message)
            return
        if len(session.queue) >= QUEUED_MAX:
            self.dropped_full += 1
            return
        session.queue.append(message)
        self._pump(session)

    def _pump(self, session: Session) -> None:
        """Send from the queue while the client's receive maximum allows."""
        while session.queue and session.peer and len(session.inflight) < session.receive_maximum:
            packet_id = session.next_id()
            message = session.inflight[packet_id] = session.queue.popleft()
            session.peer.deliver(packet_id, message)


@lru_cache(maxsize=4_096)
def matches(pattern: str, topic: str) -> bool:
    """Tell whether a topic filter with its wildcards matches a topic."""
    wanted, given = pattern.split("/"), topic.split("/")
    for level, part in enumerate(wanted):
        if part == "#":
            return True
        if level >= len(given) or part not in {"+", given[level]}:
            return False
    return len(wanted) == len(given)

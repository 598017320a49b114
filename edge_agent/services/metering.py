"""The metering service: node readings become durable usage, each once, in order.

Heads and marks in memory move on only after the commit that holds them: a failed commit leaves
them, and the node sends its readings again.
"""

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from edge_agent.core.facts import Fact, MetersPassed, NodeSaid
from edge_agent.core.metering import Head, Metered, meter, through_minute_ms
from edge_agent.core.site_state import LeaseStatus, SiteState, lease_by_id
from edge_agent.ports import CommitBatch, MeterHead
from edge_agent.services.journal import Journal
from protocol.event import Alarm
from protocol.node import Inventory, MeterReading, NodeEvent, NodeEventKind, ReadingKind, Readings
from protocol.units import from_ms, minute_floor
from protocol.usage import Through, UsageItem

ALARMS_PER_BATCH = 16
# Closed heads kept in memory to tell a late duplicate; the store keeps more.
CLOSED_HEADS_MAX = 20_000
NS_PER_S = 1_000_000_000


class _Page(Struct):
    """What one call computes, before it is durable; lives inside that call only."""

    heads: dict[str, Head]
    usage: list[UsageItem]
    alarms: list[tuple[str, str, str | None]]
    closed: list[str]
    completed: list[NodeEvent]
    mark: int


class MeteringService:
    """Turns readings into usage.

    Args:
        journal: where rows go. offer: takes facts for the next pass.
        heads, marks: as recovered.
    """

    def __init__(
        self,
        journal: Journal,
        offer: Callable[[Fact], None],
        heads: tuple[MeterHead, ...],
        marks: tuple[tuple[str, int], ...],
    ) -> None:
        self._journal = journal
        self._offer = offer
        self._heads = {
            row.reading.instance_id: Head(row.reading, row.next_interval_no, row.closed)
            for row in heads
        }
        self._device_ends: dict[str, datetime] = {}
        for row in heads:
            self._note_end(row.reading)
        self._marks = dict(marks)
        self._through: dict[str, datetime | None] = dict.fromkeys(journal.site.nodes)
        self._waiting: dict[str, datetime] = {}
        self.alarms = 0

    def mark(self, node_id: str) -> int:
        """Give the last reading of the node whose usage is durable; 0 is none."""
        return self._marks.get(node_id, 0)

    def is_closed(self, instance_id: str) -> bool:
        """Tell whether the meter of an instance is closed and its usage durable."""
        head = self._heads.get(instance_id)
        return head is not None and head.closed

    def closed_of(self, instances: tuple[str, ...]) -> tuple[str, ...]:
        """Give those of the instances whose meter is closed."""
        return tuple(key for key in instances if self.is_closed(key))

    def expect(self, instances: tuple[str, ...], asked_at: datetime) -> None:
        """Wait for the meters of instances whose gate may have opened at or before ``asked_at``.

        One that no reading names, once its node has given all readings up to then, never opened.
        """
        for key in instances:
            if key not in self._heads:
                self._waiting.setdefault(key, asked_at)

    def inventory(self, inventory: Inventory) -> tuple[str, str] | None:
        """Compare what a node holds with what is metered; gives an alarm, or None.

        A node that lost its store begins its seq anew. An instance that it no longer holds, and
        that none of the readings kept until now closes, was closed to an agent store that is gone
        (an older copy was put back): its last reading is with the hub, and never comes again.
        """
        node_id, last_seq = inventory.node_id, inventory.last_seq
        held = {device.work.instance_id for device in inventory.devices if device.work is not None}
        for key in self._open_on(node_id):
            if key not in held:
                self._waiting.setdefault(key, inventory.at)
        mark = self._marks.get(node_id, 0)
        if last_seq >= mark:
            return None
        self._marks[node_id] = 0
        return ("node_store_reset", f"{node_id}: last reading {last_seq}, known {mark}")

    async def take(self, node_id: str, readings: Readings) -> None:
        """Make the usage of these readings durable; returns after the commit."""
        if not readings.readings and self._says_nothing_new(node_id, readings.through):
            self._through[node_id] = readings.through
            return
        page = self._read(node_id, readings.readings)
        if readings.through is not None:
            before = self._through.get(node_id)
            newer = before is None or readings.through > before
            through = readings.through if newer else before
        else:
            through = self._through.get(node_id)
        minutes = self._minutes({node_id: through})
        page.usage.extend(Through(at=from_ms(at_ms)) for at_ms in minutes)
        facts = (MetersPassed(through_ms=minutes[-1]),) if minutes else ()
        if page.heads or page.usage or page.mark != self._marks.get(node_id, 0):
            await self._commit(node_id, page, facts)
        self._install(node_id, page, through)

    def _says_nothing_new(self, node_id: str, through: datetime | None) -> bool:
        """Tell whether a node has only come on within its minute, as it does each second."""
        before = self._through.get(node_id)
        return (
            before is not None
            and through is not None
            and through >= before
            and minute_floor(through) == minute_floor(before)
            and not self._waiting
        )

    async def pass_minutes(self) -> None:
        """Tell the minutes of a site without nodes: they pass by the wall."""
        if self._journal.site.nodes:
            return
        minutes = through_minute_ms((self._journal.instant().wall,), self._state.through_ms)
        if minutes:
            usage = tuple(Through(at=from_ms(at_ms)) for at_ms in minutes)
            fact = MetersPassed(through_ms=minutes[-1])
            await self._journal.note((fact,), CommitBatch(usage=usage))

    @property
    def _state(self) -> SiteState:
        return self._journal.state

    def _read(self, node_id: str, readings: tuple[MeterReading, ...]) -> _Page:
        mark = self._marks.get(node_id, 0)
        page = _Page({}, [], [], [], [], mark)
        for reading in readings:
            if reading.seq <= page.mark:
                continue  # sent again: its usage is durable
            if reading.seq > page.mark + 1 and page.mark > 0:
                detail = f"{node_id}: {page.mark} -> {reading.seq}"
                page.alarms.append(("reading_gap", detail, None))
            page.mark = reading.seq
            key = reading.instance_id
            head = page.heads.get(key) or self._heads.get(key)
            given = meter(
                self._journal.site.site_id,
                head,
                reading,
                clock_suspect=self._state.suspect,
                not_before=self._end_of(page, reading.device_id) if head is None else None,
            )
            self._keep(page, reading, given)
        return page

    def _end_of(self, page: _Page, device_id: str) -> datetime | None:
        """Give the latest stamp of a device, those of a page that is not yet durable included."""
        ends = [row.reading.at for row in page.heads.values() if row.reading.device_id == device_id]
        known = self._device_ends.get(device_id)
        return max(ends if known is None else [*ends, known], default=None)

    def _note_end(self, reading: MeterReading) -> None:
        known = self._device_ends.get(reading.device_id)
        if known is None or reading.at > known:
            self._device_ends[reading.device_id] = reading.at

    def _keep(self, page: _Page, reading: MeterReading, given: Metered) -> None:
        if given.alarm is not None:
            page.alarms.append((*given.alarm, reading.device_id))
        page.usage.extend(given.records)
        if given.head is None:
            return
        page.heads[reading.instance_id] = given.head
        if given.head.closed:
            page.closed.append(reading.instance_id)
            if reading.kind is ReadingKind.CLOSE and self._served_all(reading):
                page.completed.append(_completed(reading))

    def _served_all(self, reading: MeterReading) -> bool:
        entry = lease_by_id(self._state, reading.lease_id)
        run_s = None if entry is None or entry.lease is None else entry.lease.spec.run_s
        return run_s is not None and reading.served_ns >= run_s * NS_PER_S

    def _minutes(self, newer: dict[str, datetime | None]) -> tuple[int, ...]:
        throughs = tuple(newer.get(node, self._through[node]) for node in self._through)
        return through_minute_ms(throughs, self._state.through_ms)

    async def _commit(self, node_id: str, page: _Page, facts: tuple[Fact, ...]) -> None:
        wall = self._journal.instant().wall
        self.alarms += len(page.alarms)
        alarms = tuple(
            Alarm(at=wall, code=code, detail=detail[:2_000], device_id=device_id)
            for code, detail, device_id in page.alarms[:ALARMS_PER_BATCH]
        )
        batch = CommitBatch(
            usage=tuple(page.usage),
            events=alarms,
            meter_heads=tuple(
                MeterHead(
                    reading=head.reading,
                    next_interval_no=head.next_interval_no,
                    closed=head.closed,
                )
                for head in page.heads.values()
            ),
            node_marks=((node_id, page.mark),),
            # A gate that opens gives no usage yet: lost with the power, its reading is asked for
            # again from the mark that is durable (adr 0007). So it does not stand before the
            # commit that closes its switch.
            sync=bool(page.usage or alarms or facts),
        )
        if facts:
            await self._journal.note(facts, batch)
        else:
            await self._journal.commit(batch)

    def _install(self, node_id: str, page: _Page, through: datetime | None) -> None:
        self._heads.update(page.heads)
        for row in page.heads.values():
            self._note_end(row.reading)
        self._marks[node_id] = page.mark
        if node_id in self._through:
            self._through[node_id] = through
        for event in page.completed:
            self._offer(NodeSaid(node_id, event))
        for key in page.heads:
            self._waiting.pop(key, None)
        closed = (*page.closed, *self._never_opened(node_id, through))
        if closed:
            self._offer(MetersPassed(closed=closed))
        self._trim()

    def _never_opened(self, node_id: str, through: datetime | None) -> tuple[str, ...]:
        """Give awaited instances of the node that no reading up to their time has closed."""
        if through is None or not self._waiting:
            return ()
        own = self._open_on(node_id)
        gone = tuple(
            key
            for key, asked_at in self._waiting.items()
            if asked_at <= through and not self.is_closed(key) and (key in own or self._orphan(key))
        )
        for key in gone:
            del self._waiting[key]
            head = self._heads.get(key)
            if head is not None:
                self._heads[key] = Head(head.reading, head.next_interval_no, closed=True)
        return gone

    def _open_on(self, node_id: str) -> dict[str, None]:
        """Give the instances of a node whose meters are waited for or open, in a fixed order."""
        own: dict[str, None] = {}
        for entry in self._state.leases:
            if entry.status is LeaseStatus.CLOSED:
                continue
            for slot in entry.slots:
                if slot.instance_id and self._node_of(slot.device_id) == node_id:
                    own[slot.instance_id] = None
        for key, head in self._heads.items():
            if not head.closed and self._node_of(head.reading.device_id) == node_id:
                own[key] = None
        return own

    def _orphan(self, instance_id: str) -> bool:
        """Tell whether no slot names the instance any more."""
        return not any(
            slot.instance_id == instance_id for entry in self._state.leases for slot in entry.slots
        ) and all(at is not None for at in self._through.values())

    def _node_of(self, device_id: str) -> str | None:
        at = self._journal.site.index_of(device_id)
        return None if at is None else self._journal.site.devices[at].node_id

    def _trim(self) -> None:
        if len(self._heads) <= CLOSED_HEADS_MAX:
            return
        for key in [key for key, head in self._heads.items() if head.closed][:1_000]:
            del self._heads[key]


def _completed(reading: MeterReading) -> NodeEvent:
    return NodeEvent(
        kind=NodeEventKind.COMPLETED,
        device_id=reading.device_id,
        at=reading.at,
        lease_id=reading.lease_id,
        attempt=reading.attempt,
        instance_id=reading.instance_id,
    )

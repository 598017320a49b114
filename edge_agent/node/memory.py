"""The node's state in memory: always what the store holds, changed only once it is stored."""

from collections import deque
from collections.abc import Iterable

from edge_agent.node.lapse import HubHeard
from edge_agent.node.state import Assignment, MeterState
from edge_agent.node.store import (
    READINGS_PER_FRAME,
    RESULTS_MAX,
    Metering,
    NodeChange,
    NodeStore,
    ResultKey,
)
from protocol.node import DeviceOutcome, MeterReading
from protocol.resource import Activity

_TAIL_MAX = 4_096


class NodeMemory:
    """Mirror of ``node.sqlite``.

    Args:
        store: opened by ``load``. device_ids: of the config, in its order.
    """

    def __init__(self, store: NodeStore, device_ids: Iterable[str]) -> None:
        self._store = store
        self._tail: deque[MeterReading] = deque(maxlen=_TAIL_MAX)
        self._results: dict[ResultKey, DeviceOutcome] = {}
        self.assignments = {
            one: Assignment(device_id=one, activity=Activity.UNKNOWN) for one in device_ids
        }
        self.meters: dict[str, MeterState] = {}
        self.metering = Metering()
        self.epoch = 0
        self.heard: HubHeard | None = None
        self.acked_seq = 0
        self.acked_durable_seq = 0

    async def load(self, node_id: str, site_id: str) -> None:
        """Read the store; start-up is recovery."""
        loaded = await self._store.load(node_id, site_id)
        for one in loaded.assignments:
            if one.device_id in self.assignments:
                self.assignments[one.device_id] = one
        self.meters = {one.work.instance_id: one for one in loaded.meters}
        self._results = dict(loaded.results)
        self.metering = loaded.metering
        self.epoch = loaded.epoch
        self.heard = loaded.heard
        self.acked_seq = self.acked_durable_seq = loaded.acked_seq

    async def commit(self, change: NodeChange, *, sync: bool = True) -> None:
        """Store a change and then show it.

        Raises:
            StorageError: nothing changed.
        """
        await self._store.apply(change, sync=sync, on_done=lambda _: self._take(change))

    async def raise_epoch(self, epoch: int) -> None:
        """Remember the highest agent epoch before its agent is obeyed."""
        if epoch > self.epoch:
            await self.commit(NodeChange(epoch=epoch))

    def ack(self, seq: int) -> bool:
        """Take the agent's mark; False for one beyond what was given, which is not obeyed."""
        if seq > self.metering.last_seq:
            return False
        self.acked_seq = max(self.acked_seq, seq)
        return True

    @property
    def unacked(self) -> int:
        """Give how many readings wait for an ack."""
        return self.metering.last_seq - self.acked_durable_seq

    def resume_from(self, mark: int | None) -> int:
        """Give the seq after which a session sends, from the agent's mark.

        A mark above what was given is of another store of this node: go on after the last ack. One
        below the last ack is of an older copy of the agent: give again what is still kept.
        """
        if mark is None or mark > self.metering.last_seq:
            return self.acked_seq
        return max(mark, self._store.first_reading() - 1)

    def result(self, key: ResultKey) -> DeviceOutcome | None:
        """Give a stored phase result."""
        return self._results.get(key)

    def meters_of(self, device_id: str) -> tuple[MeterState, ...]:
        """Give the instances of a device that are not known to be gone."""
        return tuple(
            one for one in self.meters.values() if one.device_id == device_id and not one.stopped
        )

    def readings_after(self, seq: int) -> tuple[MeterReading, ...]:
        """Give readings above ``seq``, at most one frame of them, from memory where possible."""
        if seq >= self.metering.last_seq:
            return ()
        if self._tail and self._tail[0].seq <= seq + 1:
            first = seq + 1 - self._tail[0].seq
            last = min(first + READINGS_PER_FRAME, len(self._tail))
            return tuple(self._tail[index] for index in range(first, last))
        return self._store.readings_after(seq)

    def _take(self, change: NodeChange) -> None:
        for assignment in change.assignments:
            self.assignments[assignment.device_id] = assignment
        for meter in change.meters:
            self.meters[meter.work.instance_id] = meter
        for name in change.dropped_meters:
            self.meters.pop(name, None)
        self._tail.extend(change.readings)
        for key, outcome in change.results:
            self._results.pop(key, None)
            self._results[key] = outcome
        while len(self._results) > RESULTS_MAX:
            del self._results[next(iter(self._results))]
        if change.metering is not None:
            self.metering = change.metering
        if change.epoch is not None:
            self.epoch = max(self.epoch, change.epoch)
        if change.heard is not None:
            self.heard = change.heard
        if change.acked_seq is not None:
            self.acked_durable_seq = change.acked_seq

"""Order of telemetry segments: fresh ones newest first, the backlog oldest first and metered."""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence

from edge_agent.core.sync_types import Effect, StartOver, SyncLimits, TeleAcked, TeleLost
from protocol.sync import Lane, StreamHead

_S = 1_000_000_000


class TelemetryQueue:
    """Which segments wait, and in which order they go."""

    def __init__(self, limits: SyncLimits) -> None:
        self._limits = limits
        self.next_seq = 1
        self.tries = 0
        self.sizes: dict[int, int] = {}
        self._wm = 0
        self._fresh: deque[int] = deque()
        self._backlog: list[int] = []
        self._later: list[tuple[int, int]] = []
        self._low: list[int] = []
        self._struck: set[int] = set()
        self._tokens = float(limits.hist_burst_bytes)
        self._tokens_at_ns = 0
        self._starved_for = 0

    def reset(self, head: StreamHead, segments: Iterable[tuple[int, int]], now_ns: int) -> None:
        """Begin a connection: everything held is backlog."""
        self.sizes = dict(segments)
        self.next_seq = head.next_seq
        self._wm = head.acked_wm
        self.tries = self._starved_for = 0
        self._fresh.clear()
        self._later.clear()
        self._struck.clear()
        self._backlog = sorted(self.sizes)
        self._low = list(self._backlog)
        self._tokens_at_ns = now_ns

    def add(self, seq: int, size: int) -> None:
        """A new segment: it goes before all others."""
        self.next_seq = max(self.next_seq, seq + 1)
        self.sizes[seq] = size
        heapq.heappush(self._low, seq)
        self._fresh.append(seq)
        if len(self._fresh) > self._limits.fresh_max:
            heapq.heappush(self._backlog, self._fresh.popleft())

    def forget(self, seqs: set[int]) -> None:
        """Segments are gone; the queues skip them as they come up."""
        for seq in seqs:
            self.sizes.pop(seq, None)
            self._struck.discard(seq)

    def settle(self, wm: int) -> list[Effect]:
        """Take the watermark of a welcome."""
        if wm >= self.next_seq:
            return [StartOver(f"tele: the hub has {wm}, next is {self.next_seq}")]
        effects: list[Effect] = []
        if wm < self._wm:
            held = sorted(seq for seq in self.sizes if seq > wm)
            for first, last in _holes(wm, [*held, self.next_seq]):
                effects.append(TeleLost(first, last))
        self._fresh.clear()
        self._later.clear()
        self._backlog = sorted(self.sizes)
        seqs = self.acked(wm, ())
        if seqs or wm > self._wm:
            effects.append(TeleAcked(wm, seqs))
        self._wm = wm
        return effects

    def acked(self, wm: int, ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Forget what the hub has; gives the seqs held until now."""
        done: set[int] = set()
        while self._low and self._low[0] <= wm:
            seq = heapq.heappop(self._low)
            if seq in self.sizes:
                done.add(seq)
        for first, last in ranges:
            if last - first >= len(self.sizes):
                done.update(seq for seq in self.sizes if first <= seq <= last)
            else:
                done.update(seq for seq in range(first, last + 1) if seq in self.sizes)
        self.forget(done)
        return tuple(sorted(done))

    def raised(self, wm: int) -> bool:
        """Note the watermark; True when it is news."""
        if wm <= self._wm:
            return False
        self._wm = wm
        return True

    def waits(self, lane: Lane) -> bool:
        """Tell whether a lane has a segment to send, now or later."""
        return bool(self._fresh if lane is Lane.TELE else self._backlog)

    def pick(self, lane: Lane, room: int, now_ns: int) -> int | None:
        """Choose the next segment of a lane that fits into ``room`` bytes."""
        while self._fresh and self._fresh[-1] not in self.sizes:
            self._fresh.pop()
        if lane is Lane.TELE:
            seq = self._fresh[-1] if self._fresh else None
        else:
            while self._backlog and self._backlog[0] not in self.sizes:
                heapq.heappop(self._backlog)
            seq = self._backlog[0] if self._backlog and not self._fresh else None
        if seq is None or self.sizes[seq] > room:
            return None
        if lane is Lane.HIST and not self._may_spend(self.sizes[seq], now_ns):
            return None
        if lane is Lane.TELE:
            self._fresh.pop()
        else:
            heapq.heappop(self._backlog)
        return seq

    def took(self, seq: int, lane: Lane, size: int, now_ns: int) -> bool:
        """The segment is on its way; False when it is no longer needed."""
        if lane is Lane.HIST:
            self._refill(now_ns)
            self._tokens -= size
        return seq in self.sizes

    def again(self, seq: int) -> None:
        """No ack came: it joins the backlog."""
        if seq in self.sizes:
            heapq.heappush(self._backlog, seq)

    def later(self, seq: int, at_ns: int) -> None:
        """Try it again, not before ``at_ns``."""
        if seq in self.sizes:
            self._later = [entry for entry in self._later if entry[1] != seq]
            heapq.heapify(self._later)
            heapq.heappush(self._later, (at_ns, seq))

    def tick(self, now_ns: int) -> None:
        """Put back what has waited long enough."""
        while self._later and self._later[0][0] <= now_ns:
            _, seq = heapq.heappop(self._later)
            if seq in self.sizes:
                heapq.heappush(self._backlog, seq)

    def due_ns(self) -> int | None:
        """Give when something waits no longer: a delayed segment, or tokens for the backlog."""
        dues = [self._later[0][0]] if self._later else []
        if self._starved_for:
            missing = self._starved_for - self._tokens
            dues.append(self._tokens_at_ns + int(missing / self._limits.hist_bytes_per_s * _S) + 1)
        return min(dues, default=None)

    def second_strike(self, seq: int) -> bool:
        """Note a bad hash; True for the second time."""
        if seq in self._struck:
            return True
        self._struck.add(seq)
        return False

    def _may_spend(self, size: int, now_ns: int) -> bool:
        self._refill(now_ns)
        needed = min(size, self._limits.hist_burst_bytes)
        self._starved_for = 0 if self._tokens >= needed else needed
        return self._starved_for == 0

    def _refill(self, now_ns: int) -> None:
        gained = (now_ns - self._tokens_at_ns) / _S * self._limits.hist_bytes_per_s
        self._tokens = min(float(self._limits.hist_burst_bytes), self._tokens + gained)
        self._tokens_at_ns = now_ns


def _holes(after: int, held: Sequence[int]) -> list[tuple[int, int]]:
    """Give the runs of seqs above ``after`` that are not in ``held`` (sorted)."""
    holes = []
    for seq in held:
        if seq > after + 1:
            holes.append((after + 1, seq - 1))
        after = seq
    return holes

"""What only time brings about in placement, and whether it is due, without a read of the store."""

from datetime import datetime

from hub.ports import Clock

NS_PER_S = 1_000_000_000
# Whatever was missed is found so soon: a reconciler does not trust its wake-ups alone.
RECHECK_S = 30.0


class Agenda:
    """The earliest instants at which a pass would find more than the last one did.

    A wall clock that is set back makes everything due: what was past may lie ahead again.

    Args:
        clock: time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall: datetime | None = None
        self._boottime_ns = 0
        self._made_at = clock.wall()

    def begin(self, now: datetime) -> None:
        """Forget everything, because a pass looks at everything as of ``now``."""
        self._made_at = now
        self._wall = None
        self._boottime_ns = self._clock.boottime_ns() + int(RECHECK_S * NS_PER_S)

    def at_wall(self, at: datetime | None) -> None:
        """Note an instant of the wall clock; one that has passed was dealt with by this pass."""
        if at is not None and at > self._made_at and (self._wall is None or at < self._wall):
            self._wall = at

    def at_boottime(self, at_ns: int) -> None:
        """Note an instant of boottime."""
        self._boottime_ns = min(self._boottime_ns, at_ns)

    def is_due(self) -> bool:
        """Tell whether the earliest of them has come."""
        now = self._clock.wall()
        if now < self._made_at or self._clock.boottime_ns() >= self._boottime_ns:
            return True
        return self._wall is not None and now >= self._wall

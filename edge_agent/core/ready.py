"""What is held ready for likely switches, when leases came and what they paid: of the state.

Each is kept on sites that ask for it alone, so that others stay as they were, bit for bit.
"""

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from protocol.node import STANDING, Prepared
from protocol.resource import Activity

ARRIVALS_KEPT = 8
DETAIL_CHARS_MAX = 200


class PrepareStatus(StrEnum):
    """Where a wish stands; GONE: it was ready and is not; BARRED: left alone for a while."""

    ASKED = "asked"
    PREPARING = "preparing"
    PREPARED = "prepared"
    REFUSED = "refused"
    FAILED = "failed"
    GONE = "gone"
    BARRED = "barred"


_DRAWS_NOTHING = (PrepareStatus.PREPARED, PrepareStatus.GONE)


class PrepareEntry(Struct, frozen=True, array_like=True):
    """One device that is asked to hold an engine ready; at most one entry for each.

    Args:
        since_ns: asked, or barred, then. until_ns: end of the bar. code, detail: as its node said.
        leaving: it ended before it was ready, and its node has not said yet that it is gone.
    """

    device_id: str
    enters: Activity
    status: PrepareStatus
    since_ns: int
    chance: float
    within_s: float
    why: str
    code: str = ""
    detail: str = ""
    until_ns: int = 0
    leaving: bool = False

    @property
    def draws(self) -> bool:
        """Tell whether it may draw what a start draws: nothing begins anew what was ready."""
        return self.leaving or (self.live and self.status not in _DRAWS_NOTHING)

    @property
    def live(self) -> bool:
        """Tell whether its node is asked for it."""
        return self.status is not PrepareStatus.BARRED

    @property
    def ready(self) -> bool:
        """Tell whether the engine was made ready, and seen to be so."""
        return self.status is PrepareStatus.PREPARED and self.code != STANDING


class Arrivals(Struct, frozen=True, array_like=True):
    """When the newest leases of a class came (boottime ns), oldest first."""

    device_class: str
    at_ns: tuple[int, ...]


class Paid(Struct, frozen=True, array_like=True):
    """What the newest leases of a class pay per hour and device, and for how many; oldest first.

    Args:
        gpus: shorter where the oldest came before it was kept: those count as one.
    """

    device_class: str
    usd_per_h: tuple[float, ...]
    gpus: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Give the devices of each lease."""
        return (1,) * (len(self.usd_per_h) - len(self.gpus)) + self.gpus


def entry_of(prepares: tuple[PrepareEntry, ...], device_id: str) -> PrepareEntry | None:
    """Find the entry of a device."""
    return next((row for row in prepares if row.device_id == device_id), None)


def is_ready(prepares: tuple[PrepareEntry, ...], device_id: str, enters: Activity) -> bool:
    """Tell whether what a device would enter is held ready on it."""
    entry = entry_of(prepares, device_id)
    return entry is not None and entry.ready and entry.enters is enters


def told(entry: PrepareEntry, row: Prepared | None) -> PrepareEntry:
    """Give an entry after its node's word on it; None: the node is silent about it.

    What was ready and is not counts as no start: its room may be another's by now, and its node was
    told not to begin it anew.
    """
    if not entry.live:
        return replace(entry, leaving=entry.leaving and row is not None)
    status = PrepareStatus.ASKED if row is None else PrepareStatus(row.stage.value)
    if entry.status in _DRAWS_NOTHING and status is not PrepareStatus.PREPARED:
        status = PrepareStatus.GONE
    return replace(
        entry,
        status=status,
        code="" if row is None else row.code,
        detail="" if row is None else row.detail[:DETAIL_CHARS_MAX],
    )


def put_entry(prepares: tuple[PrepareEntry, ...], entry: PrepareEntry) -> tuple[PrepareEntry, ...]:
    """Give the entries with that of a device put in, by device."""
    held = {row.device_id: row for row in prepares} | {entry.device_id: entry}
    return tuple(held[key] for key in sorted(held))


def arrived(arrivals: tuple[Arrivals, ...], device_class: str, now_ns: int) -> tuple[Arrivals, ...]:
    """Give the arrivals with one more; the oldest of a class are forgotten."""
    held = {row.device_class: row for row in arrivals}
    before = held[device_class].at_ns if device_class in held else ()
    held[device_class] = Arrivals(device_class, (*before, now_ns)[-ARRIVALS_KEPT:])
    return tuple(held[key] for key in sorted(held))


def has_paid(
    paid: tuple[Paid, ...], device_class: str, usd_per_h: float, gpus: int
) -> tuple[Paid, ...]:
    """Give what was paid with one lease more; the oldest of a class are forgotten."""
    held = {row.device_class: row for row in paid}
    before = held.get(device_class, Paid(device_class, ()))
    held[device_class] = Paid(
        device_class,
        (*before.usd_per_h, usd_per_h)[-ARRIVALS_KEPT:],
        (*before.gpus, gpus)[-ARRIVALS_KEPT:],
    )
    return tuple(held[key] for key in sorted(held))


def shift_prepares(prepares: tuple[PrepareEntry, ...], shift: int) -> tuple[PrepareEntry, ...]:
    """Give the entries in boottime of another boot: nothing that was ready has lived through it."""
    return tuple(
        replace(
            row,
            since_ns=row.since_ns + shift,
            until_ns=row.until_ns + shift,
            status=PrepareStatus.GONE if row.status is PrepareStatus.PREPARED else row.status,
        )
        for row in prepares
    )


def shift_arrivals(arrivals: tuple[Arrivals, ...], shift: int) -> tuple[Arrivals, ...]:
    """Give the arrivals in boottime of another boot."""
    return tuple(replace(row, at_ns=tuple(at + shift for at in row.at_ns)) for row in arrivals)


def next_chance(at_ns: tuple[int, ...], now_ns: int, within_ns: int) -> float:
    """Give the chance that another lease comes within a time.

    Args:
        at_ns: the newest arrivals, oldest first, of which the oldest only begins the count.

    Source: with n arrivals of a Poisson process seen in a time T, and a rate of which nothing is
        known before, none comes in w more with chance (T / (T + w)) ^ n.
    """
    seen = len(at_ns) - 1
    if seen < 1 or within_ns <= 0:
        return 0.0
    passed = float(max(now_ns - at_ns[0], 1))
    each = passed / (passed + within_ns)
    none = 1.0
    for _ in range(seen):
        none *= each
    return 1.0 - none


def ready_text(prepares: tuple[PrepareEntry, ...], device_id: str, now_ns: int) -> str | None:
    """Say what a device holds ready and why, or why it does not; None: nothing to say."""
    entry = entry_of(prepares, device_id)
    if entry is None:
        return None
    since_s = (now_ns - entry.since_ns) / 1e9
    what = f"to {entry.enters.value}"
    why = f"{entry.why}, chance {entry.chance:.2f} within {entry.within_s:.0f} s"
    if entry.live:
        told = f" ({entry.code})" if entry.code else ""
        return f"{entry.status.value}{told} {what} for {since_s:.0f} s: {why}"
    if now_ns >= entry.until_ns:
        return None
    detail = f" ({entry.detail})" if entry.detail else ""
    rest_s = (entry.until_ns - now_ns) / 1e9
    return f"was {what}, {entry.code}{detail}: left alone for {rest_s:.0f} s more"

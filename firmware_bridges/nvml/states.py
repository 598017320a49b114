"""The fence's times, what it says of a card, and what it wants done: frozen values."""

from enum import StrEnum

from msgspec import Struct

from firmware_bridges.nvml.samples import GpuInfo, GpuSample


class Bounds(Struct, frozen=True, kw_only=True):
    """Times of the fence, in seconds, and the one count.

    Args:
        stale_s: age of a row at which its card is silent. hang_s: the same for one call of a card
            that was read before; NVML answers in microseconds, rarely in tens of milliseconds.
        start_s: until a child loads the library, and until a card first answers (without
            persistence mode it is only then set up). beat_s: silence of a whole child.
        retry_s_min: with retry_s_max, between two starts of a child that fails.
        probe_s: how long a probe may take. probe_s_min: with probe_s_max, between two of them.
        settled_s: after this long without trouble the intervals are small again.
        dying_max: killed children that are still there; no child is started above it.
    """

    stale_s: float = 2.5
    hang_s: float = 1.0
    start_s: float = 15.0
    beat_s: float = 2.0
    retry_s_min: float = 0.5
    retry_s_max: float = 60.0
    probe_s: float = 15.0
    probe_s_min: float = 5.0
    probe_s_max: float = 300.0
    settled_s: float = 60.0
    dying_max: int = 4


class GpuState(StrEnum):
    """What is known of a card's readings; UNKNOWN: it has not been read yet."""

    LIVE = "live"
    UNKNOWN = "unknown"
    SILENT = "silent"
    LOST = "lost"
    RESET_REQUIRED = "reset_required"
    UNREADABLE = "unreadable"


class GpuView(Struct, frozen=True, kw_only=True):
    """One card as it stands.

    Args:
        card: its UUID; ``index:N`` for one that never said it.
        sample: the newest, however old. age_s: of the newest row; None: there never was one.
        hangs: it is silent because of a call of its own.
    """

    card: str
    state: GpuState
    info: GpuInfo | None = None
    sample: GpuSample | None = None
    age_s: float | None = None
    detail: str = ""
    hangs: bool = False


class Start(Struct, frozen=True):
    """Start a child that reads `cards` (None: all there are)."""

    child: int
    cards: tuple[str, ...] | None
    events: bool


class Kill(Struct, frozen=True):
    """Kill a child."""

    child: int
    reason: str


Effect = Start | Kill

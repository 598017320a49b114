"""What decoders make of several values of one kind: hottest sensor, sum over boards, fans. Pure."""

from collections.abc import Iterable

from firmware_bridges.rows import FAN_RPM_MAX, TEMP_C_MAX, as_float

TEMP_C_PLAUSIBLE_MIN = 0.5
FANS_MAX = 16
CHIPS_MAX = 100_000


def hottest_c(values: Iterable[object]) -> float | None:
    """Give the highest temperature that is one; 0 and -273 stand for an absent sensor."""
    numbers = (as_float(value) for value in values)
    plausible = (c for c in numbers if c is not None and TEMP_C_PLAUSIBLE_MIN <= c <= TEMP_C_MAX)
    return max(plausible, default=None)


def sum_of(values: Iterable[float | None]) -> float | None:
    """Give the sum of what is known; `None` when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def fans_of(values: Iterable[object], *, drop_silent: bool = False) -> tuple[int, ...] | None:
    """Give the speeds that are ones.

    Args:
        values: In the order of the fans.
        drop_silent: Places that read 0 beside fans that turn are empty places.
    """
    numbers = [as_float(value) for value in list(values)[:FANS_MAX]]
    speeds = [int(rpm) for rpm in numbers if rpm is not None and 0 <= rpm <= FAN_RPM_MAX]
    if drop_silent and any(speeds):
        speeds = [rpm for rpm in speeds if rpm > 0]
    return tuple(speeds) or None


def chips_of(values: Iterable[object]) -> list[int]:
    """Give the numbers of chips of the boards that have some."""
    numbers = [as_float(value) for value in values]
    return [int(n) for n in numbers if n is not None and 0 < n <= CHIPS_MAX]

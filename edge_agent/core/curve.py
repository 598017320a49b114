"""The power curve of a miner: points of (mode, rate, power), their concave hull, and its steps.

A step is what one mode adds to the one below it; the first one adds to being off. On the hull each
step costs more joules per terahash than the one before, so the best mode at a price is where the
next step no longer pays, and no other test is needed.
"""

from typing import Annotated

from msgspec import Meta, Struct

_Positive = Annotated[float, Meta(gt=0, le=1e7)]


class ModePoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One mode as measured.

    Args:
        mode: ``low``, ``normal``, ``high``, or the name of a firmware's own step.
        rate_ths: hash rate in TH/s. power_w: at the device, before PUE.
    """

    mode: Annotated[str, Meta(min_length=1, max_length=64)]
    rate_ths: _Positive
    power_w: _Positive


class Step(Struct, frozen=True, kw_only=True):
    """What a mode adds to the one below it; the modes' names tell which.

    Args:
        rate_ths, power_w: the rise. reached_ths: rate of the mode that it reaches.
    """

    mode: str
    rate_ths: float
    power_w: float
    reached_ths: float

    @property
    def j_per_th(self) -> float:
        """Give the marginal efficiency."""
        return self.power_w / self.rate_ths


def hull(points: tuple[ModePoint, ...], off_w: float) -> tuple[ModePoint, ...]:
    """Give the points that some price makes the best, by rising power.

    Args:
        off_w: power of being off, where the rate is 0.
    """
    kept: list[tuple[float, float, ModePoint | None]] = [(off_w, 0.0, None)]
    for point in sorted(points, key=lambda row: (row.power_w, -row.rate_ths)):
        power_w, rate = point.power_w, point.rate_ths
        if power_w <= off_w or rate <= kept[-1][1]:
            continue
        while len(kept) > 1 and _below(kept[-2][:2], kept[-1][:2], (power_w, rate)):
            kept.pop()
        kept.append((power_w, rate, point))
    return tuple(point for _, _, point in kept if point is not None)


def steps(points: tuple[ModePoint, ...], off_w: float) -> tuple[Step, ...]:
    """Give the steps of the hull, the cheapest joules first."""
    out: list[Step] = []
    power_w, rate = off_w, 0.0
    for point in hull(points, off_w):
        out.append(
            Step(
                mode=point.mode,
                rate_ths=point.rate_ths - rate,
                power_w=point.power_w - power_w,
                reached_ths=point.rate_ths,
            )
        )
        power_w, rate = point.power_w, point.rate_ths
    return tuple(out)


def _below(
    first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]
) -> bool:
    """Say whether the middle point lies on or below the line of the other two."""
    rise = (middle[1] - first[1]) * (last[0] - first[0])
    return rise <= (last[1] - first[1]) * (middle[0] - first[0])

"""The profiles of LuxOS: steps of frequency and voltage, each with the watts it should draw."""

from typing import Final

import msgspec

from firmware_bridges.cgminer.codec import Answer
from firmware_bridges.rows import POWER_W_MAX, RowReader

_NORMAL_NAME: Final = "default"


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One profile.

    Args:
        power_w: That the firmware expects at the wall.
        step: Steps above or below the normal profile; `None` on releases that do not count.
    """

    name: str
    power_w: float
    step: int | None = None


def profiles_of(answer: Answer) -> tuple[Profile, ...]:
    """Read those of `profiles` that name their watts."""
    found = []
    for row in answer.section("PROFILES") or ():
        reader = RowReader(row)
        name, power_w = reader.text("Profile Name"), reader.number("Watts", low=0, high=POWER_W_MAX)
        if name is not None and power_w:
            step = reader.whole("Step", low=-1_000, high=1_000)
            found.append(Profile(name=name, power_w=power_w, step=step))
    return tuple(found)


def at_most(profiles: tuple[Profile, ...], limit_w: float) -> Profile | None:
    """Give the profile with the most watts within a limit."""
    within = [profile for profile in profiles if profile.power_w <= limit_w]
    return max(within, key=lambda profile: profile.power_w, default=None)


def normal_of(profiles: tuple[Profile, ...]) -> Profile | None:
    """Give the profile that the maker's nameplate means: step 0, or the one called `default`."""
    counted = next((profile for profile in profiles if profile.step == 0), None)
    named = (profile for profile in profiles if profile.name.lower() == _NORMAL_NAME)
    return counted or next(named, None)

"""The ledger of device time: per device the activities sum to elapsed, always.

Elapsed is boottime inside one boot; between two boots it is known from the wall only, and is one
interval ``unknown``.
"""

from msgspec import Struct

from edge_agent.core.site import ACTIVITIES, IntColumn
from edge_agent.core.site_state import SiteState
from protocol.resource import ACTIVITY_CODES, Activity


class ActivityTime(Struct, frozen=True, array_like=True):
    """Time that a device spent in an activity."""

    activity: Activity
    spent_ns: int


def spent_ns(state: SiteState, now_ns: int) -> IntColumn:
    """Give the time by device and activity code (D, 8), the open interval included."""
    out: IntColumn = state.spent_ns.copy()
    open_ns = now_ns - state.since_ns
    for code in range(ACTIVITIES):
        out[:, code] += (state.activity == code) * open_ns
    return out


def elapsed_ns(state: SiteState, now_ns: int) -> IntColumn:
    """Give each device's elapsed time on the ledger; equal for all devices of one history."""
    total: IntColumn = spent_ns(state, now_ns).sum(axis=1)
    return total


def device_time(state: SiteState, index: int, now_ns: int) -> tuple[ActivityTime, ...]:
    """Give the times of one device in the order of the activity codes."""
    row = spent_ns(state, now_ns)[index]
    return tuple(ActivityTime(ACTIVITY_CODES[code], int(row[code])) for code in range(ACTIVITIES))

"""API keys of users: when one opens, and when its use is worth a write."""

from datetime import datetime, timedelta
from enum import StrEnum

API_KEY_PREFIX = "hcpk_"
# What is shown of a key afterwards: enough to tell it from others, too little to guess it by.
SHOWN_CHARACTERS = 11
DAYS_MAX = 365
STANDING_MAX = 50
# Of a user's keys that open nothing any more, those among the newest this many are kept.
KEPT_MAX = 200
# "Last used" is a person's hint: one write a minute and key is enough for it.
USE_STEP = timedelta(minutes=1)


class KeyState(StrEnum):
    """Whether a key opens."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


def state_of(expires_at: datetime, revoked_at: datetime | None, now: datetime) -> KeyState:
    """Tell whether a key opens at ``now``; it does not at the instant at which it expires."""
    if revoked_at is not None:
        return KeyState.REVOKED
    return KeyState.EXPIRED if expires_at <= now else KeyState.ACTIVE


def use_is_news(last_used_at: datetime | None, now: datetime) -> bool:
    """Tell whether a use at ``now`` is to be kept; a clock that stepped back is news too."""
    return last_used_at is None or abs(now - last_used_at) >= USE_STEP

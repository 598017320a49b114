"""When to ask a silent device again; pure.

After a few failures in a row the breaker opens: the device is asked again only at `retry_at_ns`,
and each further failure doubles the wait up to a limit. A device's place in the site spreads the
retries, so that a switch that comes back is not met by all its miners in one instant.
"""

from typing import Final

import msgspec

_GOLDEN: Final = 0.618_033_988_749_895
_NS: Final = 1_000_000_000


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a breaker opens and how long it waits.

    Args:
        failures_to_open: Failures in a row, at least 1.
        wait_s: First wait.
        wait_s_max: Longest wait.
        spread: Largest extra share of a wait, 0..1.
    """

    failures_to_open: int = 3
    wait_s: float = 10.0
    wait_s_max: float = 120.0
    spread: float = 0.25


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """One device's record of failure.

    Args:
        failures: In a row.
        retry_at_ns: Boottime before which it is left alone; 0 = ask at any time.
    """

    failures: int = 0
    retry_at_ns: int = 0


CLOSED: Final = Breaker()


def allows(breaker: Breaker, now_ns: int) -> bool:
    """Tell whether the device may be asked now."""
    return now_ns >= breaker.retry_at_ns


def after_failure(breaker: Breaker, policy: BreakerPolicy, now_ns: int, place: int) -> Breaker:
    """Give the record after one more failure.

    Args:
        breaker: Before it.
        policy: Of the site.
        now_ns: Boottime.
        place: Of the device in the site's index; spreads the retries.
    """
    failures = breaker.failures + 1
    opened = failures - policy.failures_to_open
    if opened < 0:
        return Breaker(failures=failures)
    # The exponent is bounded before the power is taken: a miner may be dead for years.
    wait_s = min(policy.wait_s * 2.0 ** min(opened, 32), policy.wait_s_max)
    wait_s *= 1.0 + policy.spread * ((place * _GOLDEN) % 1.0)
    return Breaker(failures=failures, retry_at_ns=now_ns + int(wait_s * _NS))

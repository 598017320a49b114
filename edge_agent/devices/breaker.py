"""When to ask a silent device again; pure.

The breaker opens after a burst of failures (5 within 10 s), or after a few in a row: at a tick of
5 s a dead device never makes a burst. Then the device is left alone for 30 s and asked once
(half-open); an answer closes the breaker, each further failure doubles the wait up to a limit, so
that the dead of a site cost next to nothing. A device's place in the site spreads the retries, so
that a switch that comes back is not met by all its miners in one instant.
"""

from typing import Final

import msgspec

_GOLDEN: Final = 0.618_033_988_749_895
_NS: Final = 1_000_000_000


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a breaker opens and how long it waits.

    Args:
        failures_to_open: Failures in a row, at least 1.
        burst: So many failures within `burst_s` open it too.
        burst_s: Length of a burst.
        wait_s: First wait.
        wait_s_max: Longest wait.
        spread: Largest extra share of a wait, 0..1.
    """

    failures_to_open: int = 3
    burst: int = 5
    burst_s: float = 10.0
    wait_s: float = 30.0
    wait_s_max: float = 120.0
    spread: float = 0.25


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """One device's record of failure.

    Args:
        failures: In a row.
        opened: How often it opened since the last answer.
        recent_ns: Boottimes of the newest failures, an answer between them or not; at most a burst.
        retry_at_ns: Boottime before which it is left alone; 0 = ask at any time.
    """

    failures: int = 0
    opened: int = 0
    recent_ns: tuple[int, ...] = ()
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
    recent_ns = (*breaker.recent_ns, now_ns)[-policy.burst :]
    burst = len(recent_ns) == policy.burst and now_ns - recent_ns[0] <= policy.burst_s * _NS
    if failures < policy.failures_to_open and not burst and not breaker.opened:
        return Breaker(failures=failures, recent_ns=recent_ns)
    # The exponent is bounded before the power is taken: a miner may be dead for years.
    wait_s = min(policy.wait_s * 2.0 ** min(breaker.opened, 32), policy.wait_s_max)
    wait_s *= 1.0 + policy.spread * ((place * _GOLDEN) % 1.0)
    return Breaker(
        failures=failures,
        opened=breaker.opened + 1,
        recent_ns=recent_ns,
        retry_at_ns=now_ns + int(wait_s * _NS),
    )


def after_answer(breaker: Breaker) -> Breaker:
    """Give the record after an answer; one that was open forgets all that it failed before."""
    if breaker is CLOSED or breaker.opened or not breaker.recent_ns:
        return CLOSED
    return Breaker(recent_ns=breaker.recent_ns)

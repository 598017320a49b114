"""Token buckets: how many requests a caller may make, forgotten callers first."""

from collections import OrderedDict

from msgspec import Struct

CALLERS_MAX = 20_000


class Allowance(Struct, frozen=True):
    """Outcome of one request: what is left, and when the next token comes."""

    allowed: bool
    left: int
    retry_after_s: int


class TokenBuckets:
    """One bucket per caller; those not asked for in the longest time are forgotten.

    Args:
        rate_per_s: tokens that come back each second. burst: tokens that a full bucket holds.
    """

    def __init__(self, rate_per_s: float, burst: int, callers_max: int = CALLERS_MAX) -> None:
        assert rate_per_s > 0
        assert burst >= 1
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._callers_max = callers_max
        # caller -> (tokens, boottime in ns when they were counted)
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def take(self, caller: str, now_ns: int) -> Allowance:
        """Take one token.

        Args:
            caller: who asks. now_ns: monotonic nanoseconds.
        """
        tokens, since_ns = self._buckets.pop(caller, (float(self.burst), now_ns))
        gained = max(0, now_ns - since_ns) * self.rate_per_s / 1e9
        tokens = min(float(self.burst), tokens + gained)
        allowed = tokens >= 1.0
        if allowed:
            tokens -= 1.0
        self._buckets[caller] = (tokens, now_ns)
        if len(self._buckets) > self._callers_max:
            self._buckets.popitem(last=False)
        wait_s = 0 if allowed else int((1.0 - tokens) / self.rate_per_s) + 1
        return Allowance(allowed, int(tokens), wait_s)

"""What devices that are told to go let go in time with a given certainty: the binomial's quantile.

Per group of like devices the number that is down in time is binomial; its lower bound, with the
lower bound of the group's share, times the draw of the least drawing ones. The error is split
evenly over the groups, so that the sum holds whatever hangs together. Figures stand in the state,
so the arithmetic gives the same bits on any machine.
"""

from math import frexp, sqrt

import numpy as np

from edge_agent.core.power import total
from edge_agent.core.response import groups, response_of, share_low
from edge_agent.core.site import FlagColumn, FloatColumn, Site
from edge_agent.core.site_state import SiteState

ERROR = 0.01
_EXACT_MAX = 400
_LN_2 = 0.693_147_180_559_945_3


def sure_w(
    site: Site, state: SiteState, may: FlagColumn, freed_w: FloatColumn, within_s: float
) -> float:
    """Give the site watts that go within a time with 99 %, if these devices are told now.

    Args:
        may: devices that can be told. freed_w: what each frees.
    """
    keys, of_device = groups(site)
    present = np.flatnonzero(np.bincount(of_device[may], minlength=len(keys))).tolist()
    out = 0.0
    for at in present:
        share = share_low(response_of(site, state, keys[at]), within_s)
        out += least_w(np.sort(freed_w[may & (of_device == at)]), share, ERROR / len(present))
    return out


def least_w(watts: FloatColumn, share: float, error: float) -> float:
    """Give what the surely gone ones of a group draw at least; ``watts`` ascend."""
    return total(watts[: sure_count(len(watts), share, error)])


def sure_count(count: int, share: float, error: float) -> int:
    """Give the most devices that are down in time with a probability of at least ``1 - error``."""
    if share <= 0.0 or count == 0:
        return 0
    if share >= 1.0:
        return count
    if count > _EXACT_MAX:
        # With the continuity correction, and one device for the skew of the tail.
        spread = _z(error) * sqrt(count * share * (1.0 - share))
        return max(min(int(count * share - spread - 1.5), count), 0)
    return _exact(count, share, error)


def _exact(count: int, share: float, error: float) -> int:
    """Sum the lower tail of the binomial, scaled so that no term leaves the range of a float."""
    terms = [1.0]
    odds = share / (1.0 - share)
    for done in range(count):
        terms.append(terms[-1] * odds * (count - done) / (done + 1))
        if terms[-1] > 1e200:
            terms = [term * 1e-200 for term in terms]
    whole = sum(terms)
    below = 0.0
    for number, term in enumerate(terms):
        below += term
        if below > error * whole:
            return number
    return count


def _z(error: float) -> float:
    """Give a z beyond which the normal tail holds no more than a small error (Chernoff's bound)."""
    return sqrt(-2.0 * _ln(2.0 * error))


def _ln(x: float) -> float:
    """Give the natural logarithm by its series: the library's may differ between machines."""
    part, power = frexp(x)
    ratio = (part - 1.0) / (part + 1.0)
    square, term, out = ratio * ratio, ratio, 0.0
    for odd in range(1, 60, 2):
        out += term / odd
        term *= square
    return 2.0 * out + power * _LN_2

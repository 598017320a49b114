"""What a restart truly costs, learnt from the restarts that happened.

Seen at each wake-up: the time from power to hash rate, and the energy used without hashing. The
assumed cost is scaled by how these compare with what was assumed. Wear shows at no single restart:
a unit that starts hard is taken to wear as hard, and one that starts easily to wear as assumed.
Arithmetic is plain, so that a replay gives the same bits.
"""

from typing import TypeVar

from msgspec import Struct

from edge_agent.core.site import FloatColumn

# Devices' worth of trust in the assumed cost, and for how many devices the past counts at most.
PRIOR, WINDOW = 5.0, 500.0
FACTOR_MIN, FACTOR_MAX = 0.2, 5.0
_GRAIN = 32.0


Amount = TypeVar("Amount", float, FloatColumn)


class RestartBelief(Struct, frozen=True, kw_only=True):
    """What is believed of one class: true cost over the assumed one, and devices behind it."""

    factor: float = 1.0
    seen: float = 0.0

    @property
    def used(self) -> float:
        """Give the factor as decisions take it: in steps, so that noise moves nothing."""
        return max(round(self.factor * _GRAIN), 1) / _GRAIN


class ClassBelief(Struct, frozen=True, array_like=True):
    """The belief about one class, by its name: it outlives a changed site file."""

    class_name: str
    belief: RestartBelief


def belief_of(beliefs: tuple[ClassBelief, ...], class_name: str) -> RestartBelief:
    """Give what is believed of a class; nothing was seen: as assumed."""
    return next((row.belief for row in beliefs if row.class_name == class_name), RestartBelief())


def with_belief(
    beliefs: tuple[ClassBelief, ...], class_name: str, belief: RestartBelief
) -> tuple[ClassBelief, ...]:
    """Give the beliefs with one class's replaced or added."""
    others = tuple(row for row in beliefs if row.class_name != class_name)
    return (*others, ClassBelief(class_name, belief))


def believed_usd(wear_usd: float, start_usd: Amount, factor: float) -> Amount:
    """Give the believed cost of a restart from its assumed parts: wear, and revenue not earned."""
    return wear_usd * max(factor, 1.0) + start_usd * factor


def lost_s(warm_s: float, idle_wh: float, mine_w: float) -> float:
    """Give the time that a restart lost: the longer one by the clock and by the energy.

    Args:
        warm_s: from power to hash rate. idle_wh: energy used until then. mine_w: full power.
    """
    by_energy_s = idle_wh * 3_600.0 / mine_w if mine_w > 0.0 else 0.0
    return max(warm_s, by_energy_s)


def learn(
    belief: RestartBelief, assumed_s: float, seen_s: float, devices: float = 1.0
) -> RestartBelief:
    """Give the belief after restarts of so many devices that lost ``seen_s`` each."""
    if assumed_s <= 0.0 or devices <= 0.0 or not seen_s >= 0.0:
        return belief
    ratio = min(max(seen_s / assumed_s, FACTOR_MIN), FACTOR_MAX)
    seen = min(belief.seen + devices, WINDOW)
    weight = min(devices, WINDOW) / (seen + PRIOR)
    return RestartBelief(factor=belief.factor + (ratio - belief.factor) * weight, seen=seen)

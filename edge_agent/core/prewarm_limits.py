"""How much may be held ready for likely switches, and from which chance on."""

from msgspec import Struct


class PrewarmLimits(Struct, frozen=True, kw_only=True):
    """Bounds of pre-warming; the default of a site is none.

    Args:
        per_node: engines held ready at a time on one node; 0: none, and nothing is learnt.
        start_chance, keep_chance: an engine is made ready from the first on, and let go below the
            second.
        horizon_s: how far ahead the next lease and the end of running ones are looked for.
        expire_s: longest time to hold what is not used. rest_s: after that, after a refusal or a
            failure, the device is left alone for so long.
    """

    per_node: int = 0
    start_chance: float = 0.5
    keep_chance: float = 0.3
    horizon_s: float = 600.0
    expire_s: float = 1_800.0
    rest_s: float = 600.0

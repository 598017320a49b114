"""Switches that an agent found open at its start and does not carry on before it knows the site."""

from msgspec import Struct
from msgspec.structs import replace


class HeldSwitch(Struct, frozen=True, array_like=True):
    """An open switch that may raise the site's power, and waits; or was turned back.

    Args:
        no: of its entry among the switches. since_ns: boottime at which the agent started, or at
            which it was turned back. back: it is being undone.
    """

    no: int
    since_ns: int
    back: bool = False


def shift_held(held: tuple[HeldSwitch, ...], shift_ns: int) -> tuple[HeldSwitch, ...]:
    """Give the rows by the clock of another boot."""
    return tuple(replace(row, since_ns=row.since_ns + shift_ns) for row in held)


def not_held(held: tuple[HeldSwitch, ...], no: int) -> tuple[HeldSwitch, ...]:
    """Give the rows without one switch."""
    return tuple(row for row in held if row.no != no)


def turned(held: tuple[HeldSwitch, ...], no: int) -> bool:
    """Tell whether the agent itself turned a switch back: no device of it has failed."""
    return any(row.no == no and row.back for row in held)

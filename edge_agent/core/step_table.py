"""The power steps of the classes whose modes the agent sets, as tables over class and step.

Step 0 is an unknown one; steps 1, 2 .. are the modes on the curve's hull, the lowest power first.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from edge_agent.core.curve import ModePoint, hull
from protocol.resource import DeviceModel

# One bit of a column for each: steps that a miner refused.
STEPS_MAX = 8


class _Class(Protocol):
    @property
    def model(self) -> DeviceModel: ...
    @property
    def modes(self) -> tuple[ModePoint, ...]: ...
    @property
    def set_modes(self) -> bool: ...


class StepTable(Struct, frozen=True, eq=False):
    """What each step of each class draws and hashes.

    Args:
        names: of the steps by class, the lowest power first; a class without steps has none.
        power_w, rate_ths: (class, step), at the device; at step 0 what an unknown step counts for,
            and no rate. Steps that a class has not got repeat its highest.
        rise_w, rise_ths: (class, step - 1), what each step adds to the one below it, or to off.
    """

    names: tuple[tuple[str, ...], ...]
    power_w: npt.NDArray[np.float64]
    rate_ths: npt.NDArray[np.float64]
    rise_w: npt.NDArray[np.float64]
    rise_ths: npt.NDArray[np.float64]

    @property
    def most(self) -> int:
        """Give the most steps that a class has."""
        return int(self.power_w.shape[1]) - 1

    def step_of(self, place: int, mode: str) -> int:
        """Give the step that a mode of a class is; 0 when it is none."""
        names = self.names[place]
        return names.index(mode) + 1 if mode in names else 0

    def nearest(
        self, classes: npt.NDArray[np.int64], power_w: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.uint8]:
        """Give the step of each device whose power is nearest; the lower one of two."""
        out = np.ones(len(classes), dtype=np.uint8)
        least = np.abs(self.power_w[:, 1].take(classes) - power_w)
        # By step, of which there are few: numpy takes long to seek in short rows.
        for step in range(2, self.most + 1):
            apart = np.abs(self.power_w[:, step].take(classes) - power_w)
            closer = apart < least
            out[closer] = step
            np.minimum(apart, least, out=least)
        return out


def step_points(row: _Class) -> tuple[ModePoint, ...]:
    """Give the modes of a class that the agent may set, the lowest power first."""
    return hull(row.modes, row.model.curtailed_w) if row.set_modes else ()


def mine_w_max(row: _Class) -> float:
    """Give what a device of a class may draw while it mines, whatever its step."""
    return max([row.model.mine_w, *(point.power_w for point in step_points(row))])


def step_table(classes: Sequence[_Class]) -> StepTable | None:
    """Build the table; None when the agent sets no modes on this site."""
    points = [step_points(row) for row in classes]
    most = max((len(row) for row in points), default=0)
    if not most:
        return None
    power = np.zeros((len(points), most + 1))
    rate = np.zeros((len(points), most + 1))
    for at, (row, own) in enumerate(zip(classes, points, strict=True)):
        power[at, :] = mine_w_max(row)
        rate[at, 1:] = row.model.hashrate_ths
        for step in range(1, most + 1) if own else ():
            point = own[min(step, len(own)) - 1]
            power[at, step], rate[at, step] = point.power_w, point.rate_ths
    off = np.array([row.model.curtailed_w for row in classes])[:, None]
    rise_w = np.diff(np.concatenate((off, power[:, 1:]), axis=1), axis=1)
    tables = power, rate, rise_w, np.diff(rate, axis=1)
    for table in tables:
        table.flags.writeable = False
    return StepTable(tuple(tuple(point.mode for point in own) for own in points), *tables)

"""Which feeders of a site can bind, and who hangs on them.

A feeder that all its devices together cannot fill binds nothing and is left out, so that a site
with such feeders alone is settled as one without any. What counts is what counts live: each device
at the most that a course can let it draw, at the highest PUE of its class.
"""

import numpy as np
from msgspec import Struct

from edge_agent.core.curve import hull
from edge_agent.core.site import DeviceClass, FloatColumn, IndexColumn, Site


class Feeding(Struct, frozen=True, eq=False, kw_only=True):
    """The feeders that can bind.

    Args:
        names, caps_w: of each feeder; caps at its meter. of_device: place of each device's feeder;
            -1: only the site's cap binds it.
    """

    names: tuple[str, ...]
    caps_w: FloatColumn
    of_device: IndexColumn

    def __len__(self) -> int:
        return len(self.names)


NO_FEEDERS = Feeding(names=(), caps_w=np.zeros(0), of_device=np.zeros(0, dtype=np.int32))


def feeding_of(site: Site) -> Feeding:
    """Give the feeders of a site that its devices can fill, in the site's order."""
    most = np.array([most_w(row) for row in site.classes])[site.class_of]
    drawn = np.bincount(site.feeder_of + 1, weights=most, minlength=len(site.feeders) + 1)[1:]
    binding = [at for at, row in enumerate(site.feeders) if drawn[at] > row.power_cap_w]
    place = np.full(len(site.feeders) + 1, -1, dtype=np.int32)  # the last one: of no feeder
    place[binding] = np.arange(len(binding))
    return Feeding(
        names=tuple(site.feeders[at].name for at in binding),
        caps_w=np.array([site.feeders[at].power_cap_w for at in binding]),
        of_device=place[site.feeder_of],
    )


def most_w(row: DeviceClass) -> float:
    """Give the most that a course lets a device of a class draw, in site watts."""
    model = row.model
    points = hull(row.modes, model.curtailed_w)
    mine_w = points[-1].power_w if points else model.mine_w
    return max(mine_w, model.serve_w, model.idle_w, model.curtailed_w) * row.pue_max


def caps_bind(site: Site) -> bool:
    """Say whether the devices of a site can pass its cap, or that of a feeder."""
    most = np.array([most_w(row) for row in site.classes])[site.class_of]
    return float(most.sum()) > site.limits.power_cap_w or len(feeding_of(site)) > 0

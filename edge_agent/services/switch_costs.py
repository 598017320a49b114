"""Learns what GPU switches cost from those that end, and says it as a fact when it has moved.

The book of latencies lives here; the decision knows only facts. A fact carries the cells that it
was made from, so that a restarted agent goes on learning where the journal stands; what was seen
since the last fact is then lost: it had moved the number by less than a twentieth.
"""

import logging
from collections.abc import Iterable

from edge_agent.core.economics import COST_SAMPLES_MIN
from edge_agent.core.facts import SwitchCost, SwitchCostReady
from edge_agent.core.site import CODE_OF, NS_PER_S, Site
from edge_agent.core.switching import Status, Switch
from edge_agent.workloads.switching.errors import BookError
from edge_agent.workloads.switching.latency import (
    Book,
    Key,
    decode_book,
    encode_book,
    estimate_all,
    merge,
    observe,
    part,
    size_of,
)
from protocol.resource import Activity, DeviceKind

logger = logging.getLogger(__name__)

# A fact is due when the number has moved by this share, or rests on this share more switches.
BAND_SHARE = 0.05
J_PER_WH = 3_600.0
# What the agent sees of a switch is the node's doing, whatever engines stand behind it.
DRIVER = "node"


class CostLearner:
    """Owns the book.

    Args:
        told: the facts in force, as recovered.
    """

    def __init__(self, site: Site, told: Iterable[SwitchCost]) -> None:
        self._site = site
        self.book = Book()
        self._told: dict[tuple[str, str], SwitchCost] = {}
        for fact in told:
            move = _move(fact.from_activity, fact.to_activity, ready=fact.ready)
            self._told[move, fact.device_class] = fact
            try:
                self.book = merge(self.book, decode_book(fact.learnt))
            except BookError as exc:
                logger.warning("switch costs start anew: class=%s: %s", fact.device_class, exc)

    def take(self, switch: Switch, now_ns: int) -> SwitchCost | None:
        """Learn from a switch that is over; gives a fact when there is something new to say.

        A switch that a restart of the agent lies in says nothing: the agent's absence is no cost of
        the switch. Nor does one of several moves at once, or of devices of which some were ready.
        """
        moves = {(device.from_activity, device.ready) for device in switch.devices}
        if switch.kind is DeviceKind.ASIC or switch.resumed or len(moves) != 1:
            return None
        from_activity, ready = next(iter(moves))
        seconds = max(now_ns - switch.opened_ns, 0) / NS_PER_S
        move = _move(from_activity, switch.to_activity, ready=ready)
        told = {(device.strategy, device.moved_mib) for device in switch.devices}
        strategy, moved_mib = next(iter(told)) if len(told) == 1 else ("", 0)
        self.book = observe(
            self.book,
            Key(DRIVER, strategy, move, size_of(moved_mib), switch.device_class),
            seconds,
            done=all(device.status is Status.COMMITTED for device in switch.devices),
            energy_j=self._energy_j(switch, seconds),
        )
        return self._fact(switch, move)

    def _fact(self, switch: Switch, move: str) -> SwitchCost | None:
        cells = part(self.book, move, switch.device_class)
        found = estimate_all(cells)
        if found is None or found.learnt < COST_SAMPLES_MIN:
            return None
        before = self._told.get((move, switch.device_class))
        if before is not None and not _moved(before, found.expected_s, found.learnt):
            return None
        kind = SwitchCostReady if switch.devices[0].ready else SwitchCost
        fact = kind(
            switch.device_class,
            switch.devices[0].from_activity,
            switch.to_activity,
            found.expected_s,
            found.learnt,
            None if found.energy_j is None else found.energy_j / J_PER_WH,
            encode_book(cells),
        )
        self._told[move, switch.device_class] = fact
        return fact

    def _energy_j(self, switch: Switch, seconds: float) -> float | None:
        """Give what one device counts for meanwhile: the dearer of both sides, as under the cap."""
        at = self._site.class_index(switch.device_class)
        if at is None:
            return None
        codes = (CODE_OF[switch.devices[0].from_activity], CODE_OF[switch.to_activity])
        return max(float(self._site.nameplate_w[at, code]) for code in codes) * seconds


def _move(from_activity: Activity, to_activity: Activity, *, ready: bool) -> str:
    return f"{from_activity.value}-{to_activity.value}{'-ready' if ready else ''}"


def _moved(before: SwitchCost, seconds: float, samples: float) -> bool:
    off = abs(seconds - before.seconds) > BAND_SHARE * before.seconds
    return off or samples > (1.0 + BAND_SHARE) * before.samples + 1.0

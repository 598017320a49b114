"""How long phases of switches take, as Prometheus histograms; bounded, counted from the start."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from edge_agent.core.facts import SwitchCost
from edge_agent.core.switching import Status, Switch
from edge_agent.workloads.engine import Strategy
from edge_agent.workloads.switching.saved import SavedUse

BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
# What a node names that we do not know is one series, not many.
_STRATEGIES = frozenset(strategy.value for strategy in Strategy) | {""}
_SAVED = frozenset(use.value for use in SavedUse)
# The worst device says how the switch ended.
_WORST = (Status.QUARANTINED, Status.ROLLED_BACK, Status.COMMITTED)
Labels = tuple[tuple[str, str], ...]


class _Series(Struct):
    """One histogram; mutable, inside ``SwitchMetrics`` only."""

    counts: list[int]
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


class SwitchMetrics:
    """Histograms of phases by (phase, strategy, outcome), and of whole switches."""

    def __init__(self) -> None:
        self._phases: dict[Labels, _Series] = {}
        self._switches: dict[Labels, _Series] = {}
        self._saved: Counter[str] = Counter()

    def take(self, switch: Switch, now_ns: int) -> None:
        """Count a switch that is over; one that a restart lies in says nothing about its phases."""
        words = (device.saved for device in switch.devices if device.saved)
        self._saved.update(word if word in _SAVED else "other" for word in words)
        if switch.resumed:
            return
        told = {device.strategy for device in switch.devices}
        strategy = told.pop() if len(told) == 1 else ""
        shared = (
            ("strategy", strategy if strategy in _STRATEGIES else "other"),
            ("outcome", _outcome(switch)),
        )
        for span in switch.spans:
            labels = (("phase", span.phase.value), *shared)
            _series(self._phases, labels).add(span.took_us / 1e6)
        whole = (("kind", switch.kind.value), ("to", switch.to_activity.value), *shared)
        _series(self._switches, whole).add(max(now_ns - switch.opened_ns, 0) / 1e9)

    def text(self, costs: Iterable[SwitchCost] = ()) -> str:
        """Give everything in the text form of Prometheus.

        Args:
            costs: learnt costs in force, shown beside.
        """
        lines = [
            *_histogram("hcp_switch_phase_seconds", "Time of a phase of a switch.", self._phases),
            *_histogram("hcp_switch_seconds", "Time of a whole switch.", self._switches),
            "# HELP hcp_switch_saved_state_total What became of states saved of workloads.",
            "# TYPE hcp_switch_saved_state_total counter",
            *(
                f'hcp_switch_saved_state_total{{outcome="{word}"}} {count}'
                for word, count in sorted(self._saved.items())
            ),
            "# HELP hcp_switch_cost_seconds Learnt time of a switch, failed tries paid for.",
            "# TYPE hcp_switch_cost_seconds gauge",
        ]
        for cost in costs:
            labels = (
                ("device_class", cost.device_class),
                ("from", cost.from_activity.value),
                ("to", cost.to_activity.value),
                *((("ready", "true"),) if cost.ready else ()),
            )
            lines.append(f"hcp_switch_cost_seconds{_braces(labels)} {cost.seconds:.6g}")
        return "\n".join(lines) + "\n"


def _series(held: dict[Labels, _Series], labels: Labels) -> _Series:
    return held.setdefault(labels, _Series([0] * (len(BOUNDS_S) + 1)))


def _outcome(switch: Switch) -> str:
    ends = {device.status for device in switch.devices}
    return next((status.value for status in _WORST if status in ends), "none")


def _histogram(name: str, help_text: str, held: dict[Labels, _Series]) -> list[str]:
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} histogram"]
    for labels, series in sorted(held.items()):
        passed = 0
        for bound, count in zip((*BOUNDS_S, float("inf")), series.counts, strict=True):
            passed += count
            le = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f"{name}_bucket{_braces((*labels, ('le', le)))} {passed}")
        lines.append(f"{name}_sum{_braces(labels)} {series.total_s:.6f}")
        lines.append(f"{name}_count{_braces(labels)} {passed}")
    return lines


def _braces(labels: Labels) -> str:
    told = (f'{name}="{_escaped(value)}"' for name, value in labels)
    return "{" + ",".join(told) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

"""What the host counts and times, as Prometheus text.

Source: Prometheus text exposition format 0.0.4. Figures of the cards themselves are the sensors'.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping

# From a gate (well under a millisecond) to an engine that is loaded from disk.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Labels = Mapping[str, str]


class Histogram:
    """Durations by upper bound."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def observe(self, took_s: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(BOUNDS_S, took_s)] += 1
        self._sum_s += took_s

    def lines(self, name: str, labels: Labels) -> Iterable[str]:
        """Give its samples."""
        total = 0
        for bound, count in zip((*BOUNDS_S, float("inf")), self._counts, strict=True):
            total += count
            text = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield _sample(f"{name}_bucket", {**labels, "le": text}, total)
        yield _sample(f"{name}_sum", labels, round(self._sum_s, 9))
        yield _sample(f"{name}_count", labels, total)


class PhaseTimes:
    """How long acts took, by act, GPU and outcome."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[str, str, str], Histogram] = {}

    def observe(self, act: str, gpu: str, outcome: str, took_s: float) -> None:
        """Count one act."""
        self._histograms.setdefault((act, gpu, outcome), Histogram()).observe(took_s)

    def lines(self) -> Iterable[str]:
        """Give the samples of all."""
        name = "hcp_host_act_seconds"
        if self._histograms:
            yield from header(name, "histogram", "time of one act on a GPU")
        for (act, gpu, outcome), one in sorted(self._histograms.items()):
            yield from one.lines(name, {"act": act, "gpu": gpu, "outcome": outcome})


def header(name: str, kind: str, text: str) -> Iterable[str]:
    """Give the two lines before a metric."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def family(
    name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float | None]]
) -> Iterable[str]:
    """Give one metric with its samples; those that are unknown are left out."""
    yield from header(name, kind, text)
    for labels, value in samples:
        if value is not None:
            yield _sample(name, labels, value)


def _sample(name: str, labels: Labels, value: float) -> str:
    value = int(value) if isinstance(value, bool) else value
    if not labels:
        return f"{name} {value}"
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

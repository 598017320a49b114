"""What pre-warming came to in this run: counts of what was decided, and how it stands now."""

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from edge_agent.core import facts as f
from edge_agent.core.ready import PrepareEntry

PREPARE_ACTS = (f.PrepareAsked, f.PrepareEnded)


class PrewarmView(Struct, frozen=True, kw_only=True):
    """What ``hcp-agent status`` tells of it; counts are of this run.

    Args:
        asked, ready: now. starting: now, counted as starts: not known yet to be ready, or to be
            gone. used: switches to what was ready. late: the switch came first. wasted:
            ready, and let go unused. failed: refused by its node, or not come.
    """

    asked: int
    ready: int
    starting: int
    used: int
    late: int
    wasted: int
    failed: int


class PrewarmMetrics:
    """Counts the acts of pre-warming."""

    def __init__(self) -> None:
        self._asked = 0
        self._ended: Counter[tuple[str, bool]] = Counter()

    def take(self, acts: Iterable[f.Fact]) -> None:
        """Count what a pass decided."""
        for fact in acts:
            if isinstance(fact, f.PrepareAsked):
                self._asked += 1
            elif isinstance(fact, f.PrepareEnded):
                self._ended[fact.outcome.value, fact.ready] += 1

    def view(self, prepares: tuple[PrepareEntry, ...]) -> PrewarmView:
        """Give the counts, with what stands now."""
        ended, live = self._ended, [row for row in prepares if row.live]
        never = (f.PrepareOutcome.REFUSED, f.PrepareOutcome.FAILED)
        return PrewarmView(
            asked=len(live),
            ready=sum(row.ready for row in live),
            starting=sum(row.draws for row in prepares),
            used=ended[f.PrepareOutcome.USED.value, True],
            late=ended[f.PrepareOutcome.LATE.value, False],
            wasted=sum(
                count
                for (outcome, ready), count in ended.items()
                if ready and outcome != f.PrepareOutcome.USED.value
            ),
            failed=sum(ended[outcome.value, ready] for outcome in never for ready in (False, True)),
        )

    def text(self, prepares: tuple[PrepareEntry, ...]) -> str:
        """Give everything in the text form of Prometheus."""
        said = self.view(prepares)
        lines = [
            "# HELP hcp_prewarm_held Engines asked for ahead of a switch, and ready.",
            "# TYPE hcp_prewarm_held gauge",
            f'hcp_prewarm_held{{stage="asked"}} {said.asked}',
            f'hcp_prewarm_held{{stage="ready"}} {said.ready}',
            "# HELP hcp_prewarm_asked_total Engines asked for ahead of a switch.",
            "# TYPE hcp_prewarm_asked_total counter",
            f"hcp_prewarm_asked_total {self._asked}",
            "# HELP hcp_prewarm_ended_total How that ended, and whether they were ready.",
            "# TYPE hcp_prewarm_ended_total counter",
        ]
        for (outcome, ready), count in sorted(self._ended.items()):
            labels = f'outcome="{outcome}",ready="{str(ready).lower()}"'
            lines.append(f"hcp_prewarm_ended_total{{{labels}}} {count}")
        return "\n".join(lines) + "\n"

"""Counts of what happened, by name; what is counted here is never an error of the caller."""

from collections import Counter


class Counters:
    """Named counts since the start; names come from code, so their number is bounded."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str, count: int = 1) -> None:
        """Add to a count."""
        self._counts[name] += count

    def get(self, name: str) -> int:
        """Read one count."""
        return self._counts[name]

    def snapshot(self) -> tuple[tuple[str, int], ...]:
        """Read all counts, by name."""
        return tuple(sorted(self._counts.items()))

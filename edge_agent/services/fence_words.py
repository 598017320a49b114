"""Fences of GPUs as their nodes told them last, and an operator's word on them.

A node tells each second whether a fence still stands, so the operator is refused here and at once,
by what was seen a second ago; the host looks again itself. The word is not stored: it was said to
the people's desk, and an agent that starts anew within its half minute is told again.
"""

from collections.abc import Callable, Iterable

from edge_agent.core.errors import ActError
from edge_agent.core.site import NS_PER_S
from protocol.node import (
    FENCE_UNREADABLE,
    PREPARE_MAX,
    RELEASE_LAPSES_S,
    GpuFence,
    GpuRelease,
    GpuSample,
)


class FenceWords:
    """What is fenced, and what an operator releases.

    Args:
        now_ns: CLOCK_BOOTTIME.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._told: dict[str, dict[str, GpuFence]] = {}
        self._words: dict[str, tuple[int, GpuRelease]] = {}

    def take(self, node_id: str, samples: Iterable[GpuSample]) -> tuple[str, ...]:
        """Take what a node says of all its devices; a word on a fence that is gone is over.

        Returns:
            The devices that are fenced, as is new, because their host cannot read its record.
        """
        told = {one.device_id: one.fence for one in samples if one.fence is not None}
        known = self._told.get(node_id, {})
        self._told[node_id] = told
        return tuple(
            name
            for name, fence in told.items()
            if _is_unreadable(fence) and not _is_unreadable(known.get(name))
        )

    def release(self, device_id: str) -> None:
        """Take an operator's word on a device; of one that is not fenced there is none to take.

        Raises:
            ActError: ``fence_stands``: the cause of its fence is still seen.
        """
        fence = self._of(device_id)
        if fence is None:
            return
        if fence.stands:
            detail = f"{device_id}: no longer held, but fenced by {fence.code}: {fence.stands}"
            raise ActError("fence_stands", detail)
        until_ns = self._now_ns() + round(RELEASE_LAPSES_S * NS_PER_S)
        word = GpuRelease(device_id=device_id, code=fence.code, since=fence.since)
        self._words[device_id] = (until_ns, word)

    def words(self, node_id: str) -> tuple[GpuRelease, ...]:
        """Give what is to be released on a node now."""
        now_ns, told = self._now_ns(), self._told.get(node_id, {})
        self._words = {name: row for name, row in self._words.items() if now_ns < row[0]}
        rows = (word for _, word in self._words.values() if word.device_id in told)
        return tuple(rows)[:PREPARE_MAX]

    def text(self, device_id: str) -> str | None:
        """Say by what a device is fenced, since when, and what ends it; None: by nothing."""
        fence = self._of(device_id)
        if fence is None:
            return None
        stands = f"; still seen: {fence.stands}" if fence.stands else ""
        since = f"{fence.since:%Y-%m-%dT%H:%M:%SZ}"
        return f"{fence.code} since {since}; ends by {fence.ends_by} (`undrain`){stands}"

    def _of(self, device_id: str) -> GpuFence | None:
        rows = (told[device_id] for told in self._told.values() if device_id in told)
        return next(rows, None)


def _is_unreadable(fence: GpuFence | None) -> bool:
    return fence is not None and FENCE_UNREADABLE in fence.code.split("+")

"""Fences of GPUs as their nodes told them last, an operator's word on them, and what came of it.

A node tells each second whether a fence still stands, so the operator is refused here and at once,
by what was seen a second ago; the host looks again itself, and its reason comes back with the next
facts. A node that is away is told nothing later: nobody would expect it then. The word is not
stored: it was said to the people's desk, and an agent that starts anew within its half minute is
told again.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core.site import NS_PER_S
from protocol.node import (
    FENCE_UNREADABLE,
    PREPARE_MAX,
    RELEASE_LAPSES_S,
    GpuFence,
    GpuRelease,
    GpuSample,
)

# A node that has told nothing for so long, of facts each second, is away.
SILENT_S = 5.0


class ReleaseOutcome(StrEnum):
    """What came of an operator's word on a fence; all but ``asked`` are final.

    ``away``: its node was not there, and nothing was done. ``unknown``: its node was asked, may
    have done it, and told nothing more of it.
    """

    ASKED = "asked"
    DONE = "done"
    REFUSED = "refused"
    AWAY = "away"
    UNKNOWN = "unknown"


class Released(Struct, frozen=True, kw_only=True):
    """What came of the last word on a device's fence, with a sentence for a person."""

    device_id: str
    outcome: ReleaseOutcome
    detail: str


class _Word(Struct, frozen=True, kw_only=True):
    """One word: until when it is said, and where."""

    node_id: str
    until_ns: int
    release: GpuRelease
    said: Released


class FenceWords:
    """What is fenced, and what an operator releases.

    Args:
        now_ns: CLOCK_BOOTTIME.
    """

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._told: dict[str, dict[str, GpuFence]] = {}
        self._heard_ns: dict[str, int] = {}
        self._words: dict[str, _Word] = {}

    def take(self, node_id: str, samples: Iterable[GpuSample]) -> tuple[str, ...]:
        """Take what a node says of all its devices; it may end a word on one of them.

        Returns:
            The devices that are fenced, as is new, because their host cannot read its record.
        """
        rows = {one.device_id: one for one in samples}
        told = {name: one.fence for name, one in rows.items() if one.fence is not None}
        known = self._told.get(node_id, {})
        self._told[node_id] = told
        self._heard_ns[node_id] = self._now_ns()
        for name, word in self._words.items():
            if word.node_id == node_id and name in rows:
                self._words[name] = _answered(word, rows[name])
        return tuple(
            name
            for name, fence in told.items()
            if _is_unreadable(fence) and not _is_unreadable(known.get(name))
        )

    def lose(self, node_id: str) -> None:
        """Take that a node cannot be reached: what it told last is no longer news."""
        self._heard_ns.pop(node_id, None)

    def release(self, device_id: str, node_id: str | None) -> Released | None:
        """Take an operator's word on a device; None: it is not fenced, so there is none to take.

        Args:
            node_id: of the device; None: it has none.
        """
        if node_id is None:
            return None
        fence = self._told.get(node_id, {}).get(device_id)
        self._words.pop(device_id, None)
        if self._is_away(node_id):
            fenced = "not known whether it is fenced" if fence is None else f"still {fence.code}"
            detail = (
                f"its node {node_id} is away: nothing was done there, {fenced}; ask again later"
            )
            return Released(device_id=device_id, outcome=ReleaseOutcome.AWAY, detail=detail)
        if fence is None:
            return None
        release = GpuRelease(device_id=device_id, code=fence.code, since=fence.since)
        detail = f"its node {node_id} is asked to release {fence.code}"
        said = Released(device_id=device_id, outcome=ReleaseOutcome.ASKED, detail=detail)
        if fence.stands:
            said = _refused(said, f"still seen: {fence.stands}")
        until_ns = self._now_ns() + round(RELEASE_LAPSES_S * NS_PER_S)
        word = _Word(node_id=node_id, until_ns=until_ns, release=release, said=said)
        self._words[device_id] = word
        return said

    def words(self, node_id: str) -> tuple[GpuRelease, ...]:
        """Give what is to be released on a node now."""
        now_ns = self._now_ns()
        rows = (
            word.release
            for word in self._words.values()
            if word.node_id == node_id
            and word.said.outcome is ReleaseOutcome.ASKED
            and now_ns < word.until_ns
        )
        return tuple(rows)[:PREPARE_MAX]

    def released(self, device_id: str) -> Released | None:
        """Give what came of the last word on a device; None: there was none."""
        word = self._words.get(device_id)
        if word is None:
            return None
        if word.said.outcome is not ReleaseOutcome.ASKED or self._now_ns() < word.until_ns:
            return word.said
        if self._is_away(word.node_id) or device_id not in self._told[word.node_id]:
            detail = f"its node {word.node_id} tells nothing of it any more; look again with `why`"
            return replace(word.said, outcome=ReleaseOutcome.UNKNOWN, detail=detail)
        return _refused(word.said, f"not within {RELEASE_LAPSES_S:.0f} s, and no reason was told")

    def text(self, device_id: str) -> str | None:
        """Say by what a device is fenced, since when, and what ends it; None: by nothing."""
        rows = (told[device_id] for told in self._told.values() if device_id in told)
        fence = next(rows, None)
        if fence is None:
            return None
        stands = f"; still seen: {fence.stands}" if fence.stands else ""
        since = f"{fence.since:%Y-%m-%dT%H:%M:%SZ}"
        return f"{fence.code} since {since}; ends by {fence.ends_by} (`undrain`){stands}"

    def _is_away(self, node_id: str) -> bool:
        heard_ns = self._heard_ns.get(node_id)
        return heard_ns is None or self._now_ns() - heard_ns > SILENT_S * NS_PER_S


def _is_unreadable(fence: GpuFence | None) -> bool:
    return fence is not None and FENCE_UNREADABLE in fence.code.split("+")


def _answered(word: _Word, sample: GpuSample) -> _Word:
    """Take what a node tells of a device after it was asked to release its fence."""
    if word.said.outcome is not ReleaseOutcome.ASKED:
        return word
    fence, asked = sample.fence, word.release
    if fence is None:
        if not sample.healthy:
            return word  # its host tells nothing of it just now: that is no release
        detail = f"{asked.code} is released"
        return replace(word, said=replace(word.said, outcome=ReleaseOutcome.DONE, detail=detail))
    if (fence.code, fence.since) != (asked.code, asked.since):
        return replace(word, said=_refused(word.said, f"it is fenced anew, by {fence.code}"))
    if fence.stands:
        return replace(word, said=_refused(word.said, f"seen again: {fence.stands}"))
    if sample.unreleased:
        return replace(word, said=_refused(word.said, sample.unreleased))
    return word


def _refused(said: Released, why: str) -> Released:
    return replace(said, outcome=ReleaseOutcome.REFUSED, detail=why)

"""Engines that a simulated host holds ready ahead of a switch, as a function of the clock.

A miner here is always there and paused at once. A server is too, unless its host is told that it
takes ``cold_s`` to start: then it starts with its instance and ends with it, and what was wished
for in time is already there. Nothing here has a part in a gate, a meter or the truth.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from msgspec import Struct

from protocol.node import STANDING, PrepareStage
from protocol.resource import Activity

# A node says its wishes again before this; of a longer time it is not believed.
FOR_S_MAX = 60.0
# What failed is not begun again before this.
RETRY_S = 30.0
_NS_PER_S = 1_000_000_000


class Wish(Struct, frozen=True, kw_only=True):
    """One line of a node's wishes, as far as a simulated host cares."""

    gpu: str
    enters: Activity
    begin: bool = True
    anew: bool = True


class Ready(Struct, frozen=True, kw_only=True):
    """How a wish stands."""

    gpu: str
    enters: Literal[Activity.MINE, Activity.SERVE]
    stage: PrepareStage
    code: str = ""
    detail: str = ""


class Gpu(Struct, frozen=True, kw_only=True):
    """What is to be known of a GPU to judge a wish."""

    mines: bool
    serves: bool
    healthy: bool


class _Held:
    """What is wished for on one GPU, and since when its server has been starting."""

    def __init__(self) -> None:
        self.wish: Wish | None = None
        self.until_ns = 0
        self.since_ns: int | None = None
        self.failed_ns: int | None = None


class ReadyBook:
    """The wishes of one host.

    Args:
        gpus: their names. cold_s: that a server takes to start; 0 = it is always there.
    """

    def __init__(self, gpus: tuple[str, ...], cold_s: float) -> None:
        self._cold_ns = round(cold_s * _NS_PER_S)
        self._held = {name: _Held() for name in gpus}
        self._to_fail: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()

    def fail_next(self, gpu: str, times: int) -> None:
        """Have so many of the next starts on a GPU fail."""
        self._to_fail[gpu] = times

    def take(self, wishes: tuple[Wish, ...], for_s: float, now_ns: int) -> None:
        """Take all that is wanted now, in place of what was."""
        until_ns = now_ns + round(min(max(for_s, 0.0), FOR_S_MAX) * _NS_PER_S)
        by_gpu = {wish.gpu: wish for wish in wishes}
        for name, held in self._held.items():
            wish = by_gpu.get(name)
            self._lapse(name, held, now_ns)
            if held.wish is not None and (wish is None or wish.enters is not held.wish.enters):
                self._let_go(name, held)
            held.wish, held.until_ns = wish, until_ns

    def row(self, name: str, gpu: Gpu, now_ns: int) -> Ready | None:
        """Give how the wish of a GPU stands, and begin what it asks for; None: nothing to say."""
        held = self._held[name]
        self._lapse(name, held, now_ns)
        wish = held.wish
        if wish is None or wish.enters not in (Activity.MINE, Activity.SERVE):
            return None
        if gpu.mines if wish.enters is Activity.MINE else gpu.serves:
            return None  # it is at work: the switch has it
        if wish.enters is Activity.MINE or not self._cold_ns:
            return _said(wish, PrepareStage.PREPARED, STANDING)
        return self._server(name, held, wish, gpu, now_ns)

    def is_ready(self, name: str, now_ns: int) -> bool:
        """Tell whether a server that has to be started is there."""
        held = self._held[name]
        self._lapse(name, held, now_ns)
        return held.since_ns is not None and now_ns - held.since_ns >= self._cold_ns

    def left_s(self, name: str, now_ns: int) -> float:
        """Give how long the start of a server still takes."""
        held = self._held[name]
        self._lapse(name, held, now_ns)
        begun_ns = now_ns if held.since_ns is None else held.since_ns
        return max(0, begun_ns + self._cold_ns - now_ns) / _NS_PER_S

    def use(self, name: str, now_ns: int) -> None:
        """Note that a switch takes the server, ready or not."""
        held = self._held[name]
        if self._cold_ns and self.is_ready(name, now_ns):
            self.counts[name, "used"] += 1
        held.since_ns = None

    def _server(self, name: str, held: _Held, wish: Wish, gpu: Gpu, now_ns: int) -> Ready | None:
        if held.failed_ns is not None and now_ns - held.failed_ns < RETRY_S * _NS_PER_S:
            return _said(wish, PrepareStage.FAILED, "not_ready", "asked to fail")
        if held.since_ns is None:
            if not gpu.healthy:
                return _said(wish, PrepareStage.REFUSED, "gpu_lost", name)
            if not wish.begin or not wish.anew:
                return None
            self.counts[name, "begun"] += 1
            held.since_ns = now_ns
        if now_ns - held.since_ns < self._cold_ns:
            return _said(wish, PrepareStage.PREPARING)
        if self._to_fail[name]:
            self._to_fail[name] -= 1
            self.counts[name, "failed"] += 1
            held.since_ns, held.failed_ns = None, now_ns
            return _said(wish, PrepareStage.FAILED, "not_ready", "asked to fail")
        return _said(wish, PrepareStage.PREPARED)

    def _lapse(self, name: str, held: _Held, now_ns: int) -> None:
        if held.wish is not None and now_ns >= held.until_ns:
            self._let_go(name, held)

    def _let_go(self, name: str, held: _Held) -> None:
        if held.since_ns is not None:
            self.counts[name, "let_go"] += 1
        held.wish = held.since_ns = held.failed_ns = None


def _said(wish: Wish, stage: PrepareStage, code: str = "", detail: str = "") -> Ready:
    assert wish.enters in (Activity.MINE, Activity.SERVE), "no other engine is held ready"
    return Ready(gpu=wish.gpu, enters=wish.enters, stage=stage, code=code, detail=detail)

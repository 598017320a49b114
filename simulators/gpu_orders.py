"""Orders of a simulated GPU host: acts of one GPU, one after the other, until one is not done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

ACTS = frozenset({"mine", "prepare", "activate", "canary", "gate", "stop"})
Answer = dict[str, Any]


class Act(Protocol):
    """What an order needs to know of its acts."""

    @property
    def id(self) -> int:
        """Its number."""
        ...

    @property
    def op(self) -> str:
        """What is to be done."""
        ...

    @property
    def on(self) -> bool | None:
        """Whether a miner is to work."""
        ...

    @property
    def open(self) -> bool | None:
        """Whether a gate is to be open."""
        ...


class _Line:
    """Orders that follow each other; `last` is the newest one's connection and number."""

    def __init__(self) -> None:
        self.last: tuple[object, int] | None = None
        self.turn = asyncio.Lock()
        self.good = True


class OrderBook:
    """Which order of each GPU may go on: the last word of its clients counts."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def interrupt(self, gpu: str) -> None:
        """End what goes on at a GPU, after its present act."""
        self._lines.pop(gpu, None)

    def enter(self, gpu: str, peer: object, number: int, after: int | None) -> _Line:
        """Return the line of an order; one whose forerunner is not the last word is over."""
        line = self._lines.get(gpu) or _Line()
        if after is None or line.last != (peer, after):
            line = _Line()
            line.good = after is None
        if line.good or after is None:
            self._lines[gpu] = line
            line.last = (peer, number)
        return line

    async def carry_out(
        self,
        line: _Line,
        gpu: str,
        acts: tuple[Act, ...],
        perform: Callable[[Any], Awaitable[Answer]],
        tell: Callable[[Answer], Awaitable[bool]],
    ) -> None:
        """Perform acts and tell of each; `tell` says whether somebody listens still."""
        async with line.turn:
            before: Answer = {}
            for act in acts:
                if not line.good or self._lines.get(gpu) is not line:
                    detail = "the order is over"
                    await tell({"id": act.id, "error": "not_begun", "detail": detail})
                    continue
                answer = await perform(act)
                listened = await tell({"id": act.id} | answer)
                if not (listened and _as_asked(act, answer, before)):
                    line.good = False
                before = answer


def _as_asked(act: Act, answer: Answer, before: Answer) -> bool:
    """Tell whether an act was done: a gate is where it should be, a miner asked twice stands."""
    if "error" in answer:
        return False
    if act.op == "gate":
        return answer["open"] is act.open
    twice = act.on is False and "hashes" in before
    return not twice or before["hashes"] == answer["hashes"]

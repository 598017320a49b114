"""What the child's threads have to say, until its one writer takes it: bounded by its shape.

A row replaces the older row of its card, a beat the older beat; only events and answers queue, and
when those are too many the oldest events go and are counted.
"""

import threading
from collections import deque
from typing import Final

from firmware_bridges.nvml.samples import Beat, FromChild, GpuEvent, Row

EVENTS_MAX: Final = 4_096
ANSWERS_MAX: Final = 64


class Outbox:
    """Filled by any thread, emptied by one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._answers: deque[FromChild] = deque(maxlen=ANSWERS_MAX)
        self._events: deque[GpuEvent] = deque()
        self._rows: dict[int, Row] = {}
        self._beat: Beat | None = None
        self._events_lost = 0

    @property
    def events_lost(self) -> int:
        """Count the events that were dropped because nobody took them."""
        return self._events_lost

    def row(self, index: int, row: Row) -> None:
        """Put a card's newest row."""
        with self._changed:
            self._rows[index] = row
            self._changed.notify()

    def event(self, event: GpuEvent) -> None:
        """Put one event."""
        with self._changed:
            self._events.append(event)
            if len(self._events) > EVENTS_MAX:
                self._events.popleft()
                self._events_lost += 1
            self._changed.notify()

    def answer(self, answer: FromChild) -> None:
        """Put an answer, or a word about the child itself."""
        with self._changed:
            self._answers.append(answer)
            self._changed.notify()

    def beat(self, beat: Beat) -> None:
        """Put the newest beat."""
        with self._changed:
            self._beat = beat
            self._changed.notify()

    def take(self, wait_s: float) -> list[FromChild]:
        """Give all there is, waiting at most `wait_s` for something."""
        with self._changed:
            if not (self._answers or self._events or self._rows or self._beat):
                self._changed.wait(wait_s)
            taken: list[FromChild] = [*self._answers, *self._events, *self._rows.values()]
            if self._beat is not None:
                taken.append(self._beat)
            self._answers.clear()
            self._events.clear()
            self._rows.clear()
            self._beat = None
            return taken

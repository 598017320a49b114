"""Which card is silent, and when a child is started, killed or tried again. Pure: `now` is given.

Theory of operation. The main child reads every card, one thread each. A card whose row is old, or
whose thread has been in one call for too long, is *silent*: that card alone is fenced, the others'
rows go on. Its thread cannot be freed, so that card is tried by a *probe*, a second child that
reads nothing else, at growing intervals; when the probe hears it, the main child is started anew
with all cards. A card that was read before and that the driver has lost, or no longer counts, is
tried in the same way: a process may never see a card again that comes back to a later one. When
every card of the main child is silent, the hanging call holds the driver's lock: the child is
killed, and the card whose call began first is left out of the next one and probed like any other;
when that was not the one, the next round finds another, and the first comes back by its probe. A
probe that makes other cards hang is killed at once: its card holds the lock again. A child that
says nothing at all is killed and started again, at growing intervals. A killed process may stay for
as long as its call hangs; of such there are few at most.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from firmware_bridges.nvml.samples import (
    Beat,
    Failed,
    FaultKind,
    FromChild,
    GpuFault,
    GpuInfo,
    GpuSample,
    Hello,
    Row,
    Worker,
)
from firmware_bridges.nvml.states import Bounds, Effect, GpuState, GpuView, Kill, Start

NS_PER_S: Final = 1_000_000_000


class _Card(Struct):
    key: str
    since_ns: int
    row: Row | None = None
    sample: GpuSample | None = None
    info: GpuInfo | None = None
    call: str = ""
    busy_ns: int | None = None
    is_stuck: bool = False
    left_out: bool = False
    probes: int = 0
    probe_due_ns: int | None = None
    back_ns: int | None = None


class _Child(Struct):
    number: int
    cards: tuple[str, ...] | None
    started_ns: int
    heard_ns: int
    greeted: bool = False
    events_stuck: bool = False
    in_hurry: bool = False
    trusted_ns: int = 0
    stuck_before: frozenset[str] = frozenset()
    # of a probe: its card does not hang but is gone; it read it; it found it still gone
    seeks: bool = False
    has_read: bool = False
    in_vain: bool = False


_STATE_OF: Final = {
    FaultKind.LOST: GpuState.LOST,
    FaultKind.RESET_REQUIRED: GpuState.RESET_REQUIRED,
    FaultKind.UNREADABLE: GpuState.UNREADABLE,
}


class Overseer:
    """Decides over the children; does nothing itself."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._cards: dict[str, _Card] = {}
        self._main: _Child | None = None
        self._probe: _Child | None = None
        self._next_child = 0
        self._failures = 0
        self._main_due_ns = 0
        self._in_hurry = False
        self._answering = ""
        self.problem = ""

    # --- what is heard -----------------------------------------------------------------------

    def heard(self, child: int, message: FromChild, now_ns: int) -> None:
        """Take one message of a child; those of a child already given up are ignored."""
        speaker = self._child(child)
        if speaker is None:
            return
        speaker.heard_ns = now_ns
        match message:
            case Hello():
                speaker.greeted = True
            case GpuSample() | GpuFault():
                self._take_row(speaker, message, now_ns)
            case Beat():
                self._take_beat(speaker, message, now_ns)
            case Failed():
                self.problem = message.detail
            case _:
                pass

    def ended(self, child: int, now_ns: int) -> None:
        """Take note that a child is gone."""
        if self._main is not None and self._main.number == child:
            self._lose_main(now_ns)
        elif self._probe is not None and self._probe.number == child:
            self._lose_probe(now_ns)

    def _child(self, number: int) -> _Child | None:
        for child in (self._main, self._probe):
            if child is not None and child.number == number:
                return child
        return None

    def _take_row(self, speaker: _Child, row: Row, now_ns: int) -> None:
        card = self._card_of(row, speaker, now_ns)
        if speaker.seeks and isinstance(row, GpuFault):
            # what the main child says of it stands
            speaker.in_vain = True
            return
        speaker.has_read = speaker.has_read or isinstance(row, GpuSample)
        card.row = row
        if isinstance(row, GpuSample):
            card.sample = row
            card.info = row.info
            self.problem = ""
        if speaker is self._main:
            card.back_ns = now_ns if card.is_stuck or card.back_ns is None else card.back_ns
            card.is_stuck = card.left_out = False
            if isinstance(row, GpuSample):
                card.probe_due_ns = None

    def _card_of(self, row: Row, speaker: _Child, now_ns: int) -> _Card:
        key = row.uuid
        if key is None:
            assert isinstance(row, GpuFault), "a sample names its card"
            key = _key_at(row.index, speaker.cards)
        elif isinstance(row, GpuSample):
            # it has told its name: what stood for it until now goes
            self._cards.pop(f"index:{row.info.index}", None)
        return self._cards.setdefault(key, _Card(key=key, since_ns=now_ns))

    def _take_beat(self, speaker: _Child, beat: Beat, now_ns: int) -> None:
        stuck_s = _age_s(beat.events_call_ns, beat.at_ns)
        speaker.events_stuck = stuck_s is not None and stuck_s > self._bounds.beat_s
        if speaker is not self._main:
            return
        for worker in beat.workers:
            self._take_worker(worker, speaker, beat.at_ns, now_ns)

    def _take_worker(self, worker: Worker, speaker: _Child, at_ns: int, now_ns: int) -> None:
        key = worker.uuid or _key_at(worker.index, speaker.cards)
        if key not in self._cards and worker.call is None:
            return
        card = self._cards.setdefault(key, _Card(key=key, since_ns=now_ns))
        busy_s = _age_s(worker.since_ns, at_ns)
        card.call = worker.call or ""
        card.busy_ns = worker.since_ns
        limit_s = self._bounds.start_s if card.back_ns is None else self._bounds.hang_s
        card.is_stuck = busy_s is not None and busy_s >= limit_s

    # --- what follows ------------------------------------------------------------------------

    def step(self, now_ns: int, dying: int) -> tuple[Effect, ...]:
        """Give what is to be done now.

        Args:
            dying: killed children that are still there.
        """
        effects: list[Effect] = []
        # the probe first: what it does to the others is no fault of the main child
        self._watch_probe(now_ns, effects)
        self._watch_main(now_ns, effects)
        self._settle(now_ns)
        room = self._bounds.dying_max - dying
        if self._main is None and now_ns >= self._main_due_ns and room > 0:
            room -= self._start_main(now_ns, effects)
        if self._probe is None and room > 0 and self._main_reads(now_ns):
            self._start_probe(now_ns, effects)
        if self._probe is None and self._main is not None and self._answering:
            # once for all of them that have been heard
            effects.append(Kill(self._main.number, f"{self._answering} answers again"))
            self._lose_main(now_ns, anew=True)
        return tuple(effects)

    def _watch_main(self, now_ns: int, effects: list[Effect]) -> None:
        main = self._main
        if main is None:
            return
        reason = self._trouble(main, now_ns)
        read = self._read_by(main)
        hanging = [card for card in read if card.is_stuck]
        is_all = len(hanging) == len(read)
        if not reason and self._all_stale(main, now_ns):
            reason, is_all = "every card is silent", True
            hanging = [card for card in read if card.busy_ns is not None]
        if reason:
            reason += self._leave_out(hanging, is_all=is_all)
            effects.append(Kill(main.number, reason))
            self._lose_main(now_ns)
            if self._probe is not None:
                effects.append(Kill(self._probe.number, "the other child starts anew"))
                self._lose_probe(now_ns)

    def _leave_out(self, hanging: list[_Card], *, is_all: bool) -> str:
        """Leave out who hangs; of cards that all hang, only the one that the others wait for."""
        if is_all:
            self._in_hurry = True
            hanging = sorted(hanging, key=lambda card: card.busy_ns or 0)[:1]
        for card in hanging:
            card.left_out = True
        return "".join(f", {card.key} is left out" for card in hanging)

    def _trouble(self, child: _Child, now_ns: int) -> str:
        """Say what is wrong with a child as a whole."""
        if not child.greeted and now_ns - child.started_ns > self._bounds.start_s * NS_PER_S:
            return "the driver does not answer"
        if child.greeted and now_ns - child.heard_ns > self._bounds.beat_s * NS_PER_S:
            return "no beat"
        return "the wait for events hangs" if child.events_stuck else ""

    def _all_stale(self, main: _Child, now_ns: int) -> bool:
        read = [card for card in self._read_by(main) if card.row is not None]
        # a driver that is only now setting its cards up takes seconds for each; but not one that
        # hung a moment ago
        began = any(card.back_ns is not None for card in read)
        patience_s = self._bounds.stale_s if began or main.in_hurry else self._bounds.start_s
        if not read or now_ns - main.trusted_ns < patience_s * NS_PER_S:
            return False
        return all(self._is_stale(card, now_ns) for card in read)

    def _read_by(self, main: _Child) -> list[_Card]:
        return [
            card
            for card in self._cards.values()
            if (card.key in main.cards if main.cards is not None else True)
        ]

    def _lose_main(self, now_ns: int, *, anew: bool = False) -> None:
        self._main = None
        self._answering = ""
        self._failures = 0 if anew else self._failures + 1
        # once at once; then at growing intervals
        wait_s = self._retry_s() if self._failures > 1 else 0.0
        self._main_due_ns = now_ns + round(wait_s * NS_PER_S)
        for card in self._cards.values():
            card.is_stuck = False
            card.busy_ns = card.back_ns = None

    def _retry_s(self) -> float:
        bounds = self._bounds
        return _backoff_s(bounds.retry_s_min, bounds.retry_s_max, self._failures - 2)

    def _start_main(self, now_ns: int, effects: list[Effect]) -> int:
        cards = self._roster()
        if cards == ():
            return 0
        self._main = self._new_child(cards, now_ns)
        self._main.in_hurry, self._in_hurry = self._in_hurry, False
        effects.append(Start(self._main.number, cards, events=True))
        return 1

    def _roster(self) -> tuple[str, ...] | None:
        """Give whom the main child reads; None: whoever is there."""
        if not any(card.left_out for card in self._cards.values()):
            return None
        return tuple(card.key for card in self._cards.values() if not card.left_out)

    def _new_child(self, cards: tuple[str, ...] | None, now_ns: int) -> _Child:
        self._next_child += 1
        return _Child(
            number=self._next_child,
            cards=cards,
            started_ns=now_ns,
            heard_ns=now_ns,
            trusted_ns=now_ns,
        )

    # --- probes ------------------------------------------------------------------------------

    def _watch_probe(self, now_ns: int, effects: list[Effect]) -> None:
        probe = self._probe
        if probe is None:
            return
        assert probe.cards is not None, "a probe reads one card"
        card = self._cards.get(probe.cards[0])
        row = None if card is None else card.row
        answered = row is not None and row.at_ns >= probe.started_ns
        if card is not None and answered and (not probe.seeks or isinstance(row, GpuSample)):
            effects.append(Kill(probe.number, "it has answered"))
            self._probe = None
            card.left_out = False
            self._schedule_probe(card, now_ns)
            if self._main is None:
                self._main_due_ns = now_ns
            elif (probe.seeks and probe.has_read) or self._main_lacks(card):
                self._answering = card.key
        elif probe.in_vain:
            effects.append(Kill(probe.number, "the card is still gone"))
            self._lose_probe(now_ns)
        elif now_ns - probe.started_ns > self._bounds.probe_s * NS_PER_S:
            effects.append(Kill(probe.number, "the card does not answer"))
            self._lose_probe(now_ns)
        elif self._stuck() - probe.stuck_before:
            effects.append(Kill(probe.number, "it makes other cards hang"))
            self._lose_probe(now_ns)
            if self._main is not None:
                self._main.trusted_ns = now_ns

    def _stuck(self) -> frozenset[str]:
        return frozenset(card.key for card in self._cards.values() if card.is_stuck)

    def _main_lacks(self, card: _Card) -> bool:
        main = self._main
        if main is None:
            return False
        return card.is_stuck or (main.cards is not None and card.key not in main.cards)

    def _lose_probe(self, now_ns: int) -> None:
        assert self._probe is not None
        assert self._probe.cards is not None
        card = self._cards.get(self._probe.cards[0])
        self._probe = None
        if card is not None:
            self._schedule_probe(card, now_ns)

    def _schedule_probe(self, card: _Card, now_ns: int) -> None:
        bounds = self._bounds
        wait_s = _backoff_s(bounds.probe_s_min, bounds.probe_s_max, card.probes)
        card.probes += 1
        card.probe_due_ns = now_ns + round(wait_s * NS_PER_S)

    def _main_reads(self, now_ns: int) -> bool:
        """Tell whether it would show that a probe disturbs the others."""
        main = self._main
        if main is None:
            return True
        if now_ns - main.started_ns > self._bounds.start_s * NS_PER_S:
            return True
        readable = [card for card in self._read_by(main) if not card.is_stuck]
        return main.greeted and all(card.back_ns is not None for card in readable)

    def _start_probe(self, now_ns: int, effects: list[Effect]) -> None:
        due = [card for card in self._cards.values() if self._probe_is_due(card, now_ns)]
        if not due:
            return
        card = min(due, key=lambda one: one.probe_due_ns or 0)
        self._probe = self._new_child((card.key,), now_ns)
        self._probe.stuck_before = self._stuck()
        self._probe.seeks = not (card.left_out or card.is_stuck)
        effects.append(Start(self._probe.number, (card.key,), events=False))

    def _probe_is_due(self, card: _Card, now_ns: int) -> bool:
        """Tell whether a card that is silent, though its child lives, is to be tried now."""
        alone = self._main is not None and self._main.greeted and card.is_stuck
        if not (card.left_out or alone or self._is_gone(card, now_ns)):
            return False
        if card.probe_due_ns is None:
            self._schedule_probe(card, now_ns)
        return card.probe_due_ns is not None and now_ns >= card.probe_due_ns

    def _is_gone(self, card: _Card, now_ns: int) -> bool:
        """Tell whether a card that was read before is one that the main child cannot read."""
        if self._main is None or not self._main.greeted or card.info is None:
            return False
        return isinstance(card.row, GpuFault) or self._is_stale(card, now_ns)

    def _settle(self, now_ns: int) -> None:
        settled_ns = round(self._bounds.settled_s * NS_PER_S)
        if self._main is not None and now_ns - self._main.started_ns > settled_ns:
            self._failures = 0
        for card in self._cards.values():
            answers = isinstance(card.row, GpuSample) and not card.is_stuck
            reads_well = card.back_ns is not None and answers
            if reads_well and now_ns - (card.back_ns or 0) > settled_ns:
                card.probes = 0

    # --- the view ----------------------------------------------------------------------------

    def view(self, now_ns: int) -> tuple[GpuView, ...]:
        """Give every card as it stands, in the order of their UUIDs."""
        return tuple(self._view(self._cards[key], now_ns) for key in sorted(self._cards))

    def _view(self, card: _Card, now_ns: int) -> GpuView:
        age_s = None if card.row is None else (now_ns - card.row.at_ns) / NS_PER_S
        state, detail = self._state(card, now_ns)
        return GpuView(
            card=card.key,
            state=state,
            info=card.info,
            sample=card.sample,
            age_s=age_s,
            detail=detail,
            hangs=card.left_out or card.is_stuck,
        )

    def _state(self, card: _Card, now_ns: int) -> tuple[GpuState, str]:
        if card.left_out or card.is_stuck:
            return GpuState.SILENT, f"hangs in {card.call}" if card.call else "left out"
        if self._is_stale(card, now_ns):
            return GpuState.SILENT, self.problem or "no row"
        if isinstance(card.row, GpuFault):
            return _STATE_OF[card.row.kind], card.row.detail
        return (GpuState.UNKNOWN if card.row is None else GpuState.LIVE), ""

    def _is_stale(self, card: _Card, now_ns: int) -> bool:
        at_ns = card.since_ns if card.row is None else card.row.at_ns
        limit_s = self._bounds.start_s if card.row is None else self._bounds.stale_s
        return now_ns - at_ns > limit_s * NS_PER_S


def _key_at(place: int, cards: Sequence[str] | None) -> str:
    if cards is None or place >= len(cards):
        return f"index:{place}"
    return cards[place]


def _age_s(since_ns: int | None, now_ns: int) -> float | None:
    return None if since_ns is None else (now_ns - since_ns) / NS_PER_S


def _backoff_s(least_s: float, most_s: float, times: int) -> float:
    # the exponent is bounded: a power of a large count is a large number indeed
    return min(least_s * float(1 << min(times, 20)), most_s)

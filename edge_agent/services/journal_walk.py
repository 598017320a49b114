"""Stepping through the journal: each row by the site of then, with the state on both sides."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from msgspec import Struct

from edge_agent.core import facts as f
from edge_agent.core.errors import JournalError
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import act, enter
from edge_agent.core.plan import Plan
from edge_agent.core.site import Site
from edge_agent.core.site_file import decode_site
from edge_agent.core.site_state import SiteState, new_state
from edge_agent.core.snapshot import decode_state
from edge_agent.ports import JournalSource, StoredRow
from edge_agent.services.replay_compare import Difference
from protocol.sync import digest_of
from protocol.units import to_ms


class Step(Struct, frozen=True, kw_only=True, eq=False):
    """One journal row, replayed.

    Args:
        before: state before the row. entered: after its facts. state: after its acts.
        made: the plan, made from ``entered``; None in a row without one, or where none was asked
            for. checked: False where the state was taken over from a snapshot of the same row.
    """

    seq: int
    site: Site
    row: f.TickRow
    before: SiteState
    entered: SiteState
    made: Plan | None
    state: SiteState
    checked: bool = True

    @property
    def planned(self) -> bool:
        """Tell whether a plan belongs to the row."""
        return self.row.planned and self.checked

    def acts(self) -> Plan | None:
        """Give what was planned; in a walk without plans, what acts come of alone."""
        if self.made is not None or not self.planned:
            return self.made
        return plan(self.site, self.entered, acts_only=True)


class Walk:
    """Steps through the journal.

    A row or snapshot that was changed is noted in ``problems`` and gone past: what it does to a
    decision comes next.

    Args:
        otherwise: the site to take where the journal does not say by which it was decided.

    Raises:
        JournalError: the journal is empty, or does not say the site and nobody else does.
    """

    def __init__(self, source: JournalSource, otherwise: Site | None = None) -> None:
        self._source = source
        self._sites = [(seq, *decode_site(body)) for seq, body in source.sites()]
        self._otherwise = otherwise
        self.problems: list[Difference] = []
        self.programs: list[str] = []
        self.sites = 0

    def steps(self, from_at: datetime | None = None, *, plans: bool = True) -> Iterator[Step]:
        """Step from the newest snapshot before ``from_at`` (None: from the oldest) to the end.

        Args:
            plans: make the plan of each row; what was done stands in the row.
        """
        seq, state = self._start(from_at)
        site = None if state is None else self._site_at(seq)
        self.sites = 0 if site is None else 1
        before: StoredRow | None = next(iter(self._source.rows(seq - 1)), None) if seq else None
        if before is not None and before.seq != seq:
            before = None  # trimmed: the chain begins with the next row
        for stored in self._source.rows(seq):
            self._check_place(stored, seq, before)
            row = self._decode(stored)
            new_site = site is None or any(at == stored.seq for at, _, _ in self._sites)
            seq, before = stored.seq, stored
            if row is None:
                continue
            if new_site:
                site, taken = self._changed(stored.seq, state)
                if taken is not None and taken[0] == stored.seq:
                    state = taken[1]
                    yield _taken_over(stored.seq, site, row, state)
                    continue
                state = taken[1] if taken is not None else state
            assert site is not None, "the first row names its site"
            state = new_state(site, row.instant) if state is None else state
            step = _step(stored.seq, site, state, row, plans=plans)
            state = step.state
            yield step

    def first_site(self, from_at: datetime | None = None) -> Site:
        """Give the site by which the first decision of a span was made."""
        return self._site_at(self._start(from_at)[0] or 1)

    def _start(self, from_at: datetime | None) -> tuple[int, SiteState | None]:
        """Give the row to start after, and the state there (None: before the first row ever)."""
        marks = self._source.snapshots()
        first = next(iter(self._source.rows(0)), None)
        if first is None:
            raise JournalError("empty_journal", "no decision has been journalled yet")
        wanted = [row for row in marks if from_at is not None and row.at_ms <= to_ms(from_at)]
        order = list(reversed(wanted))
        if first.seq > 1:
            order += [row for row in marks if row not in wanted]
        for mark in order:
            state = self._state_at(mark.fact_seq, self._site_at(mark.fact_seq))
            if state is not None:
                return mark.fact_seq, state
        if first.seq > 1:
            raise JournalError("no_snapshot", "the journal has no snapshot to start from")
        return 0, None

    def _state_at(self, fact_seq: int, site: Site) -> SiteState | None:
        body = self._source.snapshot(fact_seq)
        if body is None:
            return None
        digest = self._source.state_digest(fact_seq)
        try:
            state = decode_state(site, body)
        except JournalError as exc:
            self._problem("snapshot", fact_seq, None, detail=str(exc))
            return None
        if digest is not None and digest_of(body) != digest:
            self._problem(
                "snapshot", fact_seq, state.instant.wall,
                was=digest.hex(), told=digest_of(body).hex(),
                detail="the snapshot was changed after it was written",
            )  # fmt: skip
        return state

    def _site_at(self, seq: int) -> Site:
        found = [row for row in self._sites if row[0] <= seq]
        if not found and self._otherwise is not None:
            return self._otherwise
        if not found:
            found = self._sites[:1]
        if not found:
            raise JournalError(
                "no_site", "the journal does not say by which site it was decided; give --config"
            )
        if found[-1][2] not in self.programs:
            self.programs.append(found[-1][2])
        return found[-1][1]

    def _changed(
        self, seq: int, state: SiteState | None
    ) -> tuple[Site, tuple[int, SiteState] | None]:
        """Give the site in force from a row on, and the state as its start rebuilt it.

        A start with another site takes the newest snapshot, maps it, and applies the rows after it
        by the new site; its first pass then takes a snapshot, which is kept.
        """
        self.sites += 1
        site = self._site_at(seq)
        if state is None:
            return site, None
        marks = [mark.fact_seq for mark in self._source.snapshots() if mark.fact_seq <= seq]
        for fact_seq in reversed(marks):
            taken = self._state_at(fact_seq, site)
            if taken is None:
                continue
            for stored in self._source.rows(fact_seq):
                row = self._decode(stored, told=True) if stored.seq < seq else None
                if stored.seq >= seq:
                    break
                if row is not None:
                    taken = _step(stored.seq, site, taken, row, plans=False).state
            return site, (fact_seq, taken)
        return site, None

    def _check_place(self, stored: StoredRow, after: int, before: StoredRow | None) -> None:
        if stored.seq != after + 1 and after:
            text = f"rows {after + 1}..{stored.seq - 1} are missing"
            self._problem("gap", stored.seq, _wall_of(stored.body), detail=text)
            return
        if stored.digest is None or (before is None and stored.seq > 1):
            return
        chain = b"" if before is None else before.digest or b""
        told = digest_of(chain + stored.body)
        if told != stored.digest:
            self._problem(
                "row", stored.seq, _wall_of(stored.body),
                was=stored.digest.hex(), told=told.hex(),
                detail="the row was changed after it was written",
            )  # fmt: skip

    def _decode(self, stored: StoredRow, *, told: bool = False) -> f.TickRow | None:
        try:
            return f.decode_row(stored.body)
        except JournalError as exc:
            if not told:
                self._problem("row", stored.seq, None, detail=f"cannot be read: {exc}")
            return None

    def _problem(
        self,
        kind: Literal["row", "gap", "snapshot"],
        seq: int,
        at: datetime | None,
        *,
        was: str | None = None,
        told: str | None = None,
        detail: str,
    ) -> None:
        self.problems.append(
            Difference(
                kind=kind,
                at=at,
                seq=seq,
                device_id=None,
                column=kind,
                journalled=was,
                replayed=told,
                detail=detail,
            )
        )


def _step(seq: int, site: Site, state: SiteState, row: f.TickRow, *, plans: bool) -> Step:
    entered = enter(site, state, row.instant, row.facts)
    made = plan(site, entered) if plans and row.planned else None
    return Step(
        seq=seq,
        site=site,
        row=row,
        before=state,
        entered=entered,
        made=made,
        state=act(site, entered, row.acts),
    )


def _taken_over(seq: int, site: Site, row: f.TickRow, state: SiteState) -> Step:
    return Step(
        seq=seq, site=site, row=row, before=state, entered=state, made=None, state=state,
        checked=False,
    )  # fmt: skip


def _wall_of(body: bytes) -> datetime | None:
    try:
        return f.decode_row(body).instant.wall
    except JournalError:
        return None

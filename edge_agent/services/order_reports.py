"""Tells the hub what becomes of grid orders, whoever gave them, when that changes.

What was told is not kept over a restart: then every order that is open, or over since a day, is
told again, and the hub takes the newest word on each.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime

from edge_agent.core.order_facts import wall_ms
from edge_agent.core.site_state import OrderEntry, SiteState
from edge_agent.ports import CommitBatch
from edge_agent.services.journal import Journal
from protocol.order import OrderReport
from protocol.units import from_ms

_DAY_MS = 86_400_000
# Orders change in seconds; a burst of them is one commit.
_GAP_S = 1.0
_Mark = tuple[str, int, int, int]


class OrderReports:
    """Remembers what was told of each order.

    Args:
        wall: the present time.
    """

    def __init__(self, journal: Journal, wall: Callable[[], datetime]) -> None:
        self._journal = journal
        self._wall = wall
        self._told: dict[str, _Mark] = {}
        self._due = asyncio.Event()

    def look(self) -> None:
        """Have the changes told, if there are any; called after each pass."""
        if self._changed():
            self._due.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            rows, at = self._changed(), self._wall()
            if rows:
                events = tuple(order_report(row, at) for row in rows)
                await self._journal.commit(CommitBatch(events=events))
                self._told |= {row.order.order_id: _mark(row) for row in rows}
            kept = {row.order.order_id for row in self._journal.state.orders}
            self._told = {key: mark for key, mark in self._told.items() if key in kept}
            await asyncio.sleep(_GAP_S)

    def _changed(self) -> tuple[OrderEntry, ...]:
        state = self._journal.state
        return tuple(
            row
            for row in state.orders
            if self._told.get(row.order.order_id) != _mark(row) and _is_news(state, row)
        )


def order_report(row: OrderEntry, at: datetime) -> OrderReport:
    """Give what the hub is told of an order."""
    order = row.order
    return OrderReport(
        order_id=order.order_id,
        at=at,
        status=row.status.value,
        by=order.by,
        limit_mw=order.limit_w / 1e6,
        due_at=from_ms(order.due_ms),
        until_at=from_ms(order.until_ms),
        promised_mw=None if row.promised_w < 0.0 else row.promised_w / 1e6,
        load_mw=row.samples[-1].load_w / 1e6 if row.samples else None,
        worst_mw=row.worst_w / 1e6,
        over_s=row.over_s,
        reached_at=_time(row.reached_ms),
        missed_at=_time(row.missed_ms),
        ended_at=_time(row.end_ms),
        why=row.why,
    )


def _mark(row: OrderEntry) -> _Mark:
    return (row.status.value, row.reached_ms, row.missed_ms, row.end_ms)


def _is_news(state: SiteState, row: OrderEntry) -> bool:
    # One that no row has followed yet is told with what it promises.
    return row.promised_w >= 0.0 if row.open else wall_ms(state) - row.end_ms < _DAY_MS


def _time(at_ms: int) -> datetime | None:
    return None if at_ms < 0 else from_ms(at_ms)

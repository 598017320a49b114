"""Routes of the grid desk: market, power, and the orders to curtail."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

import msgspec
from msgspec import Struct

from edge_agent.local_api.http import LocalError, LocalRequest
from edge_agent.ports import Clock
from edge_agent.services.grid_desk import MarketView, OrderLine, OrderLines, PowerReport
from protocol.units import check_utc

_T = TypeVar("_T", bound=Struct)


class Grid(Protocol):
    """What the routes need of the desk."""

    def market(self) -> MarketView:
        """Give what every feed told last."""
        ...

    def power(self) -> PowerReport:
        """Give what the site draws and can let go."""
        ...

    def orders(self) -> OrderLines:
        """Give the orders."""
        ...

    async def add_order(
        self, limit_mw: float, due_at: datetime, until_at: datetime, order_id: str, by: str
    ) -> OrderLine:
        """Take an order."""
        ...

    async def cancel_order(self, order_id: str, by: str) -> OrderLine:
        """Take an order back."""
        ...


class OrderBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order: each end as a time or in seconds from now (``until`` from the deadline)."""

    limit_mw: float
    due_at: datetime | None = None
    due_in_s: float | None = None
    until_at: datetime | None = None
    for_s: float | None = None
    order_id: str = ""
    by: str = ""


class CancelBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which order to take back."""

    order_id: str


class Ordered(Struct, frozen=True, kw_only=True):
    """The order as taken."""

    v: int
    order: OrderLine


class GridRoutes:
    """Answers the requests that concern the grid; the control socket alone takes orders."""

    def __init__(self, grid: Grid, clock: Clock) -> None:
        """Keep desk and clock."""
        self._grid = grid
        self._clock = clock
        self.reads: dict[str, Callable[[LocalRequest], object]] = {
            "/v1/market": lambda _: grid.market(),
            "/v1/power": lambda _: grid.power(),
            "/v1/orders": lambda _: grid.orders(),
        }
        self.acts: dict[str, Callable[[LocalRequest], Awaitable[object]]] = {
            "/v1/orders/add": self._add,
            "/v1/orders/cancel": self._cancel,
        }

    async def _add(self, request: LocalRequest) -> Ordered:
        body = _decoded(request, OrderBody)
        due_at = self._time(body.due_at, body.due_in_s, self._clock.wall(), "due")
        until_at = self._time(body.until_at, body.for_s, due_at, "until")
        by = f"{body.by} (uid {request.peer.uid})".strip()
        line = await self._grid.add_order(body.limit_mw, due_at, until_at, body.order_id, by)
        return Ordered(v=1, order=line)

    async def _cancel(self, request: LocalRequest) -> Ordered:
        body = _decoded(request, CancelBody)
        line = await self._grid.cancel_order(body.order_id, f"uid {request.peer.uid}")
        return Ordered(v=1, order=line)

    def _time(
        self, at: datetime | None, after_s: float | None, base: datetime, name: str
    ) -> datetime:
        if (at is None) == (after_s is None):
            raise LocalError(400, "bad_request", f"{name}: give a time or seconds, not both")
        try:
            if at is not None:
                check_utc(name, at)
                return at
            return base + timedelta(seconds=after_s or 0.0)
        except (ValueError, OverflowError) as exc:
            raise LocalError(400, "bad_request", f"{name}: {exc}") from exc


def _decoded(request: LocalRequest, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.MsgspecError as exc:
        raise LocalError(400, "bad_request", str(exc)) from exc

"""Routes of grid orders: staff give one to a site, see what becomes of it, take it back."""

import sqlite3
from typing import Any

from litestar import Request, delete, get, post
from litestar.params import FromPath

from hub.api.bodies import ORDER, read_body
from hub.api.deps import Deps, HubDeps, caller_of
from hub.api.problems import ApiProblem, bad_field
from hub.api.schemas import OrdersAnswer, OrderView
from hub.api.workloads import now_of
from hub.core.orders import order_fault
from hub.errors import HubError
from hub.store import orders, sites
from hub.store.orders import OrderRow
from protocol.order import GridOrder, OrderState
from protocol.units import from_ms, to_ms


@post("/sites/{site_id:str}/orders", status_code=201)
async def give_order(
    request: Request[Any, Any, Any], deps: HubDeps, site_id: FromPath[str]
) -> OrderView:
    """Give a site a grid order; the same id with the same content is the same order."""
    caller = caller_of(request.scope)
    data = await read_body(request, ORDER)
    _known_site(deps, site_id)
    now = now_of(deps)
    # Whole milliseconds, as stored: told again, it compares equal.
    due_at, until_at = from_ms(to_ms(data.due_at)), from_ms(to_ms(data.until_at))
    fault = order_fault(data.limit_mw, due_at, until_at, now)
    if fault is not None:
        raise bad_field(f"/{fault.field}", fault.detail, status=422, code="bad_order")
    order = GridOrder(
        order_id=data.order_id or deps.ids.new("o", now),
        state=OrderState.STAND,
        limit_mw=data.limit_mw,
        due_at=due_at,
        until_at=until_at,
        by=f"{caller.email}: {data.reason}".rstrip(": ")[:200],
    )

    def job(connection: sqlite3.Connection) -> OrderRow:
        try:
            return orders.give(connection, site_id, order, now)
        except HubError as exc:
            raise ApiProblem(409, exc.code, exc.detail) from exc

    row = await deps.store.write(job)
    deps.dispatcher.publish_orders()
    return order_view(row)


@get("/sites/{site_id:str}/orders")
async def list_orders(deps: HubDeps, site_id: FromPath[str]) -> OrdersAnswer:
    """List the orders of a site, the hub's and its own, the newest first."""
    _known_site(deps, site_id)
    rows = orders.of_site(deps.store, site_id)
    return OrdersAnswer(orders=tuple(order_view(row) for row in rows))


@delete("/sites/{site_id:str}/orders/{order_id:str}", status_code=202)
async def cancel_order(deps: HubDeps, site_id: FromPath[str], order_id: FromPath[str]) -> OrderView:
    """Take an order of the hub's back; what the site does then is its word."""
    _known_site(deps, site_id)
    now = now_of(deps)

    def job(connection: sqlite3.Connection) -> OrderRow:
        try:
            row = orders.cancel(connection, site_id, order_id, now)
        except HubError as exc:
            raise ApiProblem(409, exc.code, exc.detail) from exc
        if row is None:
            raise ApiProblem(404, "no_order", "the hub gave this site no such order")
        return row

    row = await deps.store.write(job)
    deps.dispatcher.publish_orders()
    return order_view(row)


def order_view(row: OrderRow) -> OrderView:
    """Show a stored order."""
    told = row.report
    return OrderView(
        order_id=row.order_id,
        site_id=row.site_id,
        given_here=row.state is not None,
        given_by=row.given_by,
        given_at=row.given_at,
        cancelled_at=row.cancelled_at,
        limit_mw=row.limit_mw,
        due_at=row.due_at,
        until_at=row.until_at,
        status=row.status,
        reported_at=None if told is None else told.at,
        promised_mw=None if told is None else told.promised_mw,
        load_mw=None if told is None else told.load_mw,
        worst_mw=None if told is None else told.worst_mw,
        over_s=None if told is None else told.over_s,
        reached_at=None if told is None else told.reached_at,
        missed_at=None if told is None else told.missed_at,
        ended_at=None if told is None else told.ended_at,
        why="" if told is None else told.why,
    )


def _known_site(deps: Deps, site_id: str) -> None:
    if sites.find(deps.store, site_id) is None:
        raise ApiProblem(404, "no_site", "there is no such site")

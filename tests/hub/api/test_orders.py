"""Grid orders over the API: given once, shown with what became of them, taken back."""

import sqlite3
from datetime import datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest

from hub.store import orders, sites
from protocol.order import ORDERS_MAX, OrderReport, OrderState, SiteOrders
from tests.hub.api.harness import NOW, Hub

PATH = "/api/v1/sites/lubbock/orders"
DUE, UNTIL = NOW + timedelta(minutes=30), NOW + timedelta(hours=2)


async def _site(hub: Hub) -> None:
    await hub.deps.store.write(
        lambda connection: sites.add(connection, "lubbock", name="x", hub_epoch=1, now=NOW)
    )


async def _give(hub: Hub, role: str = "op", **more: object) -> httpx.Response:
    body = {"limit_mw": 1.5, "due_at": DUE.isoformat(), "until_at": UNTIL.isoformat(), **more}
    return await hub.client.post(PATH, json=body, headers=hub.headers(role))


async def _list(hub: Hub) -> list[dict[str, Any]]:
    answer = await hub.client.get(PATH, headers=hub.headers("op"))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["orders"]
    return found


def _sent(hub: Hub) -> SiteOrders:
    ((site_id, body),) = orders.tables(hub.deps.store, unpublished_only=False)
    assert site_id == "lubbock"
    return msgspec.msgpack.decode(body, type=SiteOrders)


async def _told(hub: Hub, order_id: str, status: str, ended_at: datetime | None = None) -> bool:
    report = OrderReport(
        order_id=order_id, at=NOW, status=status, limit_mw=1.5, load_mw=1.25, ended_at=ended_at,
        why="short notice" if status == "refused" else "",
    )  # fmt: skip

    def job(connection: sqlite3.Connection) -> bool:
        return orders.set_report(connection, "lubbock", report, NOW)

    return await hub.deps.store.write(job)


async def test_an_order_is_stored_sent_and_shown_with_its_progress(hub: Hub) -> None:
    await _site(hub)
    answer = await _give(hub, order_id="ercot-7", reason="EEA 2")
    assert answer.status_code == 201, answer.text
    (order,) = _sent(hub).orders
    assert (order.order_id, order.state, order.limit_mw) == ("ercot-7", OrderState.STAND, 1.5)
    assert (order.due_at, order.until_at) == (DUE, UNTIL)
    assert order.by == "op@x.test: EEA 2"
    assert hub.dispatcher.orders_published == 1
    (row,) = await _list(hub)
    assert (row["status"], row["given_here"], row["load_mw"]) == ("sent", True, None)
    assert not await _told(hub, "ercot-7", "shedding")
    (row,) = await _list(hub)
    assert (row["status"], row["load_mw"]) == ("shedding", 1.25)
    assert await _told(hub, "ercot-7", "met", UNTIL)
    (row,) = await _list(hub)
    assert row["status"] == "met"
    assert _sent(hub).orders == ()  # what is over goes out no longer
    assert _sent(hub).generation == 2


async def test_the_same_order_again_is_the_same_and_another_of_its_id_is_refused(hub: Hub) -> None:
    await _site(hub)
    first, again = [await _give(hub, order_id="ercot-7") for _ in range(2)]
    assert first.json() == again.json()
    assert _sent(hub).generation == 1
    other = await _give(hub, order_id="ercot-7", limit_mw=2.0)
    assert (other.status_code, other.json()["code"]) == (409, "known_order")
    assert len(await _list(hub)) == 1


async def test_a_refusal_is_shown_with_its_reason(hub: Hub) -> None:
    await _site(hub)
    order_id = (await _give(hub)).json()["order_id"]
    await _told(hub, order_id, "refused", NOW)
    (row,) = await _list(hub)
    assert (row["status"], row["why"], row["limit_mw"]) == ("refused", "short notice", 1.5)
    assert _sent(hub).orders == ()


async def test_an_order_of_the_sites_own_is_shown_and_not_sent(hub: Hub) -> None:
    await _site(hub)
    await _told(hub, "local-1", "holding")
    (row,) = await _list(hub)
    assert (row["order_id"], row["given_here"], row["status"]) == ("local-1", False, "holding")
    assert orders.tables(hub.deps.store, unpublished_only=False) == ()
    answer = await hub.client.delete(f"{PATH}/local-1", headers=hub.headers("op"))
    assert answer.status_code == 404


async def test_an_order_is_taken_back_once(hub: Hub) -> None:
    await _site(hub)
    order_id = (await _give(hub)).json()["order_id"]
    for _ in range(2):
        answer = await hub.client.delete(f"{PATH}/{order_id}", headers=hub.headers("admin"))
        assert answer.status_code == 202
    assert answer.json()["cancelled_at"] is not None
    assert [order.state for order in _sent(hub).orders] == [OrderState.CANCELLED]
    assert _sent(hub).generation == 2
    await _told(hub, order_id, "cancelled", NOW)
    assert _sent(hub).orders == ()
    answer = await hub.client.delete(f"{PATH}/{order_id}", headers=hub.headers("op"))
    assert (answer.status_code, answer.json()["code"]) == (409, "has_ended")


async def test_orders_that_stand_are_bounded(hub: Hub) -> None:
    await _site(hub)
    for number in range(ORDERS_MAX):
        assert (await _give(hub, order_id=f"o{number}")).status_code == 201
    answer = await _give(hub, order_id="one-more")
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_orders")


@pytest.mark.parametrize(
    ("change", "status", "pointer"),
    [
        ({"limit_mw": -1}, 400, "/limit_mw"),
        ({"limit_mw": 10_000}, 400, "/limit_mw"),
        ({"limit_mw": "5"}, 400, "/limit_mw"),
        ({"order_id": "a b"}, 400, "/order_id"),
        ({"due_at": "2026-03-01T13:00:00"}, 400, "/due_at"),
        ({"due_at": (NOW + timedelta(days=36)).isoformat(),
          "until_at": (NOW + timedelta(days=37)).isoformat()}, 422, "/due_at"),
        ({"until_at": DUE.isoformat()}, 422, "/until_at"),
        ({"until_at": "9999-12-31T23:59:59-23:00"}, 422, "/until_at"),
        ({"due_at": "0001-01-01T00:00:00+12:00"}, 422, "/until_at"),
        ({"order_id": "ercot-7\n"}, 400, "/order_id"),
        ({"until_at": (DUE + timedelta(days=8)).isoformat()}, 422, "/until_at"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named(
    hub: Hub, change: dict[str, Any], status: int, pointer: str
) -> None:
    await _site(hub)
    answer = await _give(hub, **change)
    assert answer.status_code == status, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert await _list(hub) == []


async def test_a_site_must_be_known(hub: Hub) -> None:
    assert (await _give(hub)).status_code == 404
    for role, status in (("c1", 403), ("anonymous", 401)):
        assert (await _give(hub, role)).status_code == status

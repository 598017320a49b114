"""The page of grid orders, as an operator uses it in a browser."""

import sqlite3
from datetime import timedelta

import httpx
import msgspec
import pytest

from hub.store import orders, sites
from protocol.order import OrderReport, OrderState, SiteOrders
from tests.hub.api.harness import NOW, Hub
from tests.hub.web.browser import Tab
from tests.hub.web.test_keys_page import sign_in

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
LATER = timedelta(hours=2)


async def _sites(hub: Hub, *names: str) -> None:
    def job(connection: sqlite3.Connection) -> None:
        for name in names:
            sites.add(connection, name, name=name, hub_epoch=1, now=NOW)

    await hub.deps.store.write(job)


async def _told(hub: Hub, order_id: str, status: str, over_s: float = 0.0) -> None:
    ended = NOW if status in ("missed", "met") else None
    report = OrderReport(
        order_id=order_id, at=NOW, status=status, limit_mw=1.5, load_mw=1.25, ended_at=ended,
        over_s=over_s, worst_mw=0.2 if over_s else None,
    )  # fmt: skip
    await hub.deps.store.write(
        lambda connection: orders.set_report(connection, "lubbock", report, NOW)
    )


def _sent(hub: Hub) -> SiteOrders:
    ((site_id, body),) = orders.tables(hub.deps.store, unpublished_only=False)
    assert site_id == "lubbock"
    return msgspec.msgpack.decode(body, type=SiteOrders)


async def _fill(tab: Tab, limit: str, due: str, until: str, order_id: str = "ercot-7") -> None:
    await tab.type("#order-form [name=limit_mw]", limit)
    await tab.set_value("#order-form [name=due_at]", due)
    await tab.set_value("#order-form [name=until_at]", until)
    await tab.type("#order-form [name=order_id]", order_id)
    await tab.type("#order-form [name=reason]", "EEA 2")
    await tab.click("#order-form button")


async def test_an_operator_gives_an_order_watches_it_and_takes_it_back(hub: Hub, tab: Tab) -> None:
    await _sites(hub, "abilene", "lubbock")
    await sign_in(tab, "op@x.test")
    await tab.until("document.getElementById('orders-site').options.length === 2")
    await tab.set_value("#orders-site", "lubbock")
    await tab.until("!document.getElementById('orders-empty').hidden")
    await tab.click("details:has(#order-form) summary")
    await tab.click("#order-form button")
    assert await tab.text("#order-limit-error") == "is needed"
    await _fill(tab, "1.5", "2026-03-01T07:00", "2026-03-01T08:30")  # Chicago: 13:00, 14:30 UTC
    await tab.until("document.getElementById('confirm').open")
    question = await tab.text("#confirm-text")
    assert question.startswith("Limit lubbock to 1.5 MW from 2026-03-01 07:00 until")
    await tab.click("#confirm-no")
    await tab.until("!document.getElementById('confirm').open")
    assert orders.tables(hub.deps.store, unpublished_only=False) == ()
    await tab.click("#order-form button")
    await tab.click("#confirm-yes")
    await tab.until("document.querySelector('#orders tr')")
    (order,) = _sent(hub).orders
    assert (order.order_id, order.limit_mw, order.by) == ("ercot-7", 1.5, "op@x.test: EEA 2")
    assert (order.due_at, order.until_at) == (NOW.replace(hour=13, minute=0), NOW + LATER)
    assert "not yet answered" in await tab.text("#orders tr")
    await _told(hub, "ercot-7", "shedding")
    await tab.until("document.querySelector('#orders tr').innerText.includes('shedding')")
    assert "1.25 MW" in await tab.text("#orders tr")
    await tab.click("#orders button")
    await tab.click("#confirm-yes")
    await tab.until("document.querySelector('#orders tr').innerText.includes('being taken back')")
    assert [one.state for one in _sent(hub).orders] == [OrderState.CANCELLED]
    await tab.until("!document.querySelector('#orders button')")


@pytest.mark.parametrize(
    ("limit", "due", "until", "order_id", "field"),
    [
        ("-1", "2026-03-01T07:00", "2026-03-01T08:30", "a", "limit"),
        ("1.5", "2026-03-01T07:00", "2026-03-01T06:59", "a", "until"),
        ("1.5", "2026-05-01T07:00", "2026-05-01T08:00", "a", "due"),
        ("1.5", "2026-03-01T07:00", "2026-03-01T08:30", "a b", "id"),
    ],
)
async def test_what_the_api_refuses_stands_beside_its_field(
    hub: Hub, tab: Tab, limit: str, due: str, until: str, order_id: str, field: str
) -> None:
    await _sites(hub, "lubbock")
    await sign_in(tab, "op@x.test")
    await tab.until("document.getElementById('orders-site').options.length === 1")
    await tab.click("details:has(#order-form) summary")
    await _fill(tab, limit, due, until, order_id)
    await tab.click("#confirm-yes")
    await tab.until(f"document.getElementById('order-{field}-error').textContent")
    others = await tab.run(
        "[...document.querySelectorAll('#order-form .error')].filter((e) => e.textContent).length"
    )
    assert others == 1
    described = await tab.run("document.activeElement.getAttribute('aria-describedby')")
    assert described == f"order-{field}-error"
    assert orders.tables(hub.deps.store, unpublished_only=False) == ()


async def test_an_order_of_the_sites_own_and_one_that_was_missed(hub: Hub, tab: Tab) -> None:
    await _sites(hub, "lubbock")
    await _told(hub, "local-1", "missed", over_s=42.4)
    await sign_in(tab, "op@x.test")
    await tab.until("document.querySelector('#orders tr')")
    row = await tab.text("#orders tr")
    assert "the site itself" in row
    assert "above the limit for 42 s, at most 0.2 MW over" in row
    assert await tab.run("document.querySelector('#orders button')") is None
    assert await tab.nameless() == []


async def test_the_page_opens_at_a_site_whose_order_is_not_over(hub: Hub, tab: Tab) -> None:
    await _sites(hub, "abilene", "lubbock", "waco")
    await _told(hub, "local-1", "holding")
    await sign_in(tab, "op@x.test")
    await tab.until("document.querySelector('#orders tr')?.innerText.includes('local-1')")
    chosen = "document.getElementById('orders-site').selectedOptions[0].textContent"
    assert await tab.run(chosen) == "lubbock (1 not over)"


async def test_a_hub_without_sites_says_so_and_a_customer_sees_no_orders(tab: Tab) -> None:
    await sign_in(tab, "op@x.test")
    await tab.until("document.getElementById('orders-none').offsetParent !== null")
    await tab.click("#logout")
    await sign_in(tab, "c1@x.test")
    assert await tab.run("document.getElementById('orders-title').offsetParent") is None


async def test_an_order_whose_answer_was_lost_is_the_same_when_given_again(
    hub: Hub, tab: Tab
) -> None:
    await _sites(hub, "lubbock")
    await sign_in(tab, "op@x.test")
    await tab.until("document.getElementById('orders-site').options.length === 1")
    await tab.click("details:has(#order-form) summary")
    # The order arrives, its answer does not.
    await tab.run(
        "(() => { const real = window.fetch; window.fetch = async (path, options) => {"
        " const answer = await real(path, options);"
        " if (options.method !== 'POST') return answer;"
        " window.fetch = real; throw new TypeError('lost'); }; })()"
    )
    await _fill(tab, "1.5", "2026-03-01T07:00", "2026-03-01T08:30", "")
    await tab.click("#confirm-yes")
    alert = "#order-form [role=alert]"
    await tab.until(f"document.querySelector('{alert}').textContent.includes('reached')")
    assert len(_sent(hub).orders) == 1
    await tab.click("#order-form button")
    await tab.click("#confirm-yes")
    await tab.until("document.querySelector('#order-form [name=limit_mw]').value === ''")
    assert len(_sent(hub).orders) == 1
    listed: httpx.Response = await hub.client.get(
        "/api/v1/sites/lubbock/orders", headers=hub.headers("op")
    )
    assert len(listed.json()["orders"]) == 1

"""A grid order from the hub to the miners and back, with real processes.

An operator gives it over the API while the site's agent is down; the site hears of it when it comes
back, sheds for it, and the hub shows how it went. A second one is taken back.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from simulators.stack import Stack, parse_json
from simulators.stack_config import AsicGroup, SiteSpec, Tuning

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

COUNT = 6
ROWAN = SiteSpec(
    site_id="rowan",
    power_cap_w=60_000.0,
    asics=(AsicGroup(model="S21", count=COUNT, first_address="127.75.0.1"),),
)
# Six miners draw some 22 kW with the site's own use; what two draw is asked for.
LIMIT_MW = 0.009
PATH = "/api/v1/sites/rowan/orders"
LOOK_S = 0.2


async def test_an_order_reaches_the_site_and_its_end_the_hub(
    root: Path, stacks: list[Stack]
) -> None:
    stack = Stack(root, (ROWAN,), tuning=Tuning(tick_s=0.5))
    stacks.append(stack)
    async with asyncio.timeout(160.0):
        await stack.start()
        agent = stack.programs["agent-rowan"]
        agent.kill_now()
        await _give(stack, "ercot-7", due_s=40.0, for_s=6.0)
        await _give(stack, "ercot-8", due_s=600.0, for_s=60.0)
        assert await _status(stack, "ercot-7") == "sent"
        await stack.start_again("agent-rowan")
        await _until(stack, "ercot-8", {"waiting"})
        order = await _until(stack, "ercot-7", {"met", "missed"})
        assert order["limit_mw"] == LIMIT_MW
        assert order["load_mw"] is not None
        assert (order["status"], order["why"]) == ("met", "")
        assert order["load_mw"] <= LIMIT_MW
        await stack.admin.delete(f"{PATH}/ercot-8")
        await _until(stack, "ercot-8", {"cancelled"})
        own = parse_json(await stack.agent_command(ROWAN, "order", "list", "--json"))["items"]
        assert {row["order_id"]: row["status"] for row in own} == {
            "ercot-7": "met", "ercot-8": "cancelled",
        }  # fmt: skip
        statuses = await stack.stop()
    assert {name: code for name, code in statuses.items() if code} == {}


async def _give(stack: Stack, order_id: str, *, due_s: float, for_s: float) -> None:
    due_at = datetime.now(UTC) + timedelta(seconds=due_s)
    body = {
        "order_id": order_id,
        "limit_mw": LIMIT_MW,
        "due_at": due_at.isoformat(),
        "until_at": (due_at + timedelta(seconds=for_s)).isoformat(),
    }
    await stack.admin.post(PATH, body)


async def _order(stack: Stack, order_id: str) -> dict[str, Any]:
    rows = (await stack.admin.get(PATH))["orders"]
    found: dict[str, Any] = next(row for row in rows if row["order_id"] == order_id)
    return found


async def _status(stack: Stack, order_id: str) -> str:
    return str((await _order(stack, order_id))["status"])


async def _until(stack: Stack, order_id: str, statuses: set[str]) -> dict[str, Any]:
    """Wait until an order has ended, or waits, in one of the ways."""
    async with asyncio.timeout(90.0):
        while True:
            order = await _order(stack, order_id)
            if order["status"] in statuses and ("waiting" in statuses or order["ended_at"]):
                return order
            await asyncio.sleep(LOOK_S)

"""When placement looks: when woken, when time brings something, and otherwise hardly ever."""

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from hub.core.rating import ClassPrice
from hub.core.workload_states import WorkloadState
from hub.services.agenda import NS_PER_S, RECHECK_S, Agenda
from hub.store import rate_cards
from tests.hub.services.world import START, World, play

S = timedelta(seconds=1)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
# A period of one second, the idle gap, and the trips of 10 ms to the site and back.
PROMPT_S = 1.2


class StillClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.now = NOW

    def boottime_ns(self) -> int:
        return self.now_ns

    def wall(self) -> datetime:
        return self.now

    def boot_id(self) -> str:
        return "boot-1"


@pytest.mark.parametrize(
    ("wall_s", "boottime_s", "due"),
    [
        (0.0, 0.0, False),
        (8.999, 0.0, False),
        (9.0, 0.0, True),
        (0.0, 4.999, False),
        (0.0, 5.0, True),
        (-0.001, 0.0, True),  # set back: what was past may lie ahead again
    ],
)
def test_the_earliest_instant_makes_a_pass_due(
    wall_s: float, boottime_s: float, *, due: bool
) -> None:
    clock = StillClock()
    agenda = Agenda(clock)
    agenda.begin(NOW)
    for at in (NOW + 9 * S, NOW + 20 * S, NOW - S, NOW, None):  # the past was dealt with
        agenda.at_wall(at)
    for at_s in (5, 7):
        agenda.at_boottime(at_s * NS_PER_S)
    clock.now, clock.now_ns = NOW + wall_s * S, int(boottime_s * NS_PER_S)
    assert agenda.is_due() is due


def test_a_pass_is_due_now_and_then_and_begins_a_new_agenda() -> None:
    clock = StillClock()
    agenda = Agenda(clock)
    agenda.begin(NOW)
    clock.now_ns = int(RECHECK_S * NS_PER_S)
    assert agenda.is_due()
    agenda.begin(NOW)
    assert not agenda.is_due()


def test_while_nothing_is_due_the_workloads_are_not_read(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit()
        await world.until_state(WorkloadState.RUNNING)
        await asyncio.sleep(2.0)
        asked: list[str] = []
        world.store._reader.set_trace_callback(asked.append)
        await asyncio.sleep(4 * RECHECK_S)
        world.store._reader.set_trace_callback(None)
        reads = sum("FROM workloads" in sql for sql in asked)
        # Four rechecks, of four states in the sweep and two in placing; once a second were 720.
        assert 0 < reads <= 5 * 6

    play(tmp_path, scene)


def test_expiry_is_acted_on_within_a_second_even_when_the_clock_jumps_to_it(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        await world.submit("w-1", expires_at=START + timedelta(seconds=100))
        await world.submit("w-2", expires_at=START + timedelta(seconds=900))
        await asyncio.sleep((START + timedelta(seconds=100) - world.clock.wall()) / S)
        assert world.row().state is WorkloadState.RUNNING
        await asyncio.sleep(PROMPT_S)
        assert world.row().state is WorkloadState.EXPIRED
        assert world.row("w-2").state is WorkloadState.RUNNING
        world.clock.step_wall(900.0)
        await asyncio.sleep(PROMPT_S)
        assert world.row("w-2").state is WorkloadState.EXPIRED

    play(tmp_path, scene)


def test_rate_card_of_another_process_is_acted_on_within_a_second(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.until_reported()
        prices = [(ClassPrice(device_class="H100", price_usd_per_h=Decimal(n)),) for n in (2, 3)]
        await world.store.write(lambda conn: rate_cards.add(conn, START, prices[0], START))
        await world.submit(max_price_usd_per_h=Decimal("2.5"))
        await world.until_state(WorkloadState.RUNNING)
        await asyncio.sleep(7.7)
        other = sqlite3.connect(world.path, isolation_level=None)
        rate_cards.add(other, START, prices[1], START)
        other.close()
        await asyncio.sleep(PROMPT_S)
        assert world.row().state is WorkloadState.QUEUED
        assert world.row().reason == "price_above_max"

    play(tmp_path, scene)

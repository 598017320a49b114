"""The miner desk over a scripted fleet; through real miners it is tested in tests/e2e."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import count

import pytest

from edge_agent.config import AsicAddress
from edge_agent.devices.poller import Known
from edge_agent.local_api.http import LocalError, LocalRequest, Peer
from edge_agent.local_api.miners import WAITING_MAX, ActView, MinerDesk, command_of
from firmware_bridges.base import Reading, WorkMode
from firmware_bridges.commands import (
    Command,
    Locate,
    Reboot,
    RestartMining,
    SetMode,
    SetPowerLimit,
    SetPowerPercent,
)
from tests.edge_agent.devices.scripted import loop_clock

NS = 1_000_000_000


class Fleet:
    """Remembers what it was told; ``gate`` holds all answers back until it is set."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Command]] = []
        self.gate = asyncio.Event()
        self.all_told = asyncio.Event()
        self.outcomes: dict[str, tuple[str, str]] = {}
        self.readings: dict[str, Known] = {}

    def known(self, device_id: str) -> Known:
        return self.readings.get(device_id, Known())

    async def tell(self, command: Command, device_id: str) -> tuple[str, str]:
        self.told.append((device_id, command))
        if len(self.told) == 3:
            self.all_told.set()
        await self.gate.wait()
        return self.outcomes.get(device_id, ("done", "seen"))


def addresses(number: int = 3) -> list[AsicAddress]:
    return [
        AsicAddress(
            device_id=f"m{place}",
            device_class="S21",
            host=f"10.0.0.{place}",
            kind="auto",
            port=None,
            web_port=None,
            v3_port=None,
            rack=f"r{place % 2}",
            row="",
            customer="acme",
            username="root",
            password_credential="",
        )
        for place in range(1, number + 1)
    ]


def desk_over(fleet: Fleet, number: int = 3) -> MinerDesk:
    fresh = count(1)
    return MinerDesk(addresses(number), fleet, loop_clock(), lambda: f"act-{next(fresh)}")


def get(**query: str) -> LocalRequest:
    return _request("GET", query, b"")


def post(**body: str) -> LocalRequest:
    return _request("POST", {}, json.dumps(body).encode())


def _request(method: str, query: dict[str, str], body: bytes) -> LocalRequest:
    return LocalRequest(
        method=method, path="/", query=query, body=body, peer=Peer(1, 2, 3), writable=True
    )


async def running(desk: MinerDesk, script: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        works = group.create_task(desk.run(), name="desk")
        await script()
        works.cancel()


async def ended(desk: MinerDesk, act_id: str) -> ActView:
    for _ in range(100):
        if (view := desk.acted(get(id=act_id))).ended:
            return view
        await asyncio.sleep(0)
    raise AssertionError(view)


async def test_miners_are_shown_with_labels_age_and_reason() -> None:
    fleet = Fleet()
    fleet.readings["m1"] = Known(
        reading=Reading(address="10.0.0.1", hashrate_ths=200.0), measured_ns=0, error="timeout"
    )
    desk = desk_over(fleet)
    first, second, third = desk.lines(get()).items
    assert (first.rack, first.customer, first.error) == ("r1", "acme", "timeout")
    assert first.age_s is not None
    assert first.reading is not None
    assert (second.age_s, second.reading, third.rack) == (None, None, "r1")
    assert [row.device_id for row in desk.lines(get(rack="r1")).items] == ["m1", "m3"]
    assert [row.device_id for row in desk.lines(get(pattern="m2")).items] == ["m2"]
    assert desk.lines(get(customer="other")).items == ()


async def test_an_act_reaches_each_miner_once_and_is_asked_after_by_name() -> None:
    fleet = Fleet()
    fleet.outcomes = {"m2": ("refused", "it has no light")}
    desk = desk_over(fleet)

    async def script() -> None:
        view = await desk.act(post(pattern="m*", verb="locate"))
        assert not view.ended
        await fleet.all_told.wait()
        running_now = desk.acted(get(id=view.act_id))
        assert {item.outcome for item in running_now.items} == {"running"}
        fleet.gate.set()
        items = (await ended(desk, view.act_id)).items
        assert [(item.device_id, item.outcome) for item in items] == [
            ("m1", "done"),
            ("m2", "refused"),
            ("m3", "done"),
        ]

    await running(desk, script)
    assert sorted(device_id for device_id, _ in fleet.told) == ["m1", "m2", "m3"]


async def test_acts_that_cannot_be_are_refused_by_name() -> None:
    desk = desk_over(Fleet())
    for body, status, word in (
        ({"pattern": "x*", "verb": "locate"}, 404, "x*"),
        ({"pattern": "m1", "verb": "explode"}, 400, "explode"),
        ({"pattern": "m1", "verb": "limit", "value": "much"}, 400, "much"),
        ({"pattern": "m1"}, 400, "verb"),
    ):
        with pytest.raises(LocalError) as raised:
            await desk.act(post(**body))
        assert raised.value.status == status
        assert word in raised.value.detail
    with pytest.raises(LocalError, match="no_act"):
        desk.acted(get(id="act-9"))


async def test_no_more_wait_than_the_bound() -> None:
    desk = desk_over(Fleet(), number=WAITING_MAX)
    await desk.act(post(pattern="*", verb="locate"))
    with pytest.raises(LocalError, match="too_many"):
        await desk.act(post(pattern="m1", verb="locate"))


@pytest.mark.parametrize(
    ("verb", "value", "command"),
    [
        ("locate", "", Locate(on=True)),
        ("locate", "off", Locate(on=False)),
        ("restart", "", RestartMining()),
        ("reboot", "", Reboot()),
        ("mode", "low", SetMode(mode=WorkMode.LOW)),
        ("limit", "3000", SetPowerLimit(power_w=3_000)),
        ("percent", "80", SetPowerPercent(percent=80)),
    ],
)
def test_verbs_name_commands(verb: str, value: str, command: Command) -> None:
    assert command_of(verb, value) == command


@pytest.mark.parametrize(
    ("verb", "value"),
    [("locate", "blue"), ("restart", "now"), ("mode", "sleep"), ("limit", "0"), ("percent", "101")],
)
def test_values_outside_their_range_are_refused(verb: str, value: str) -> None:
    with pytest.raises(LocalError, match="bad_request"):
        command_of(verb, value)

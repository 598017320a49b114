"""Orders: carried out in turn, as far as each act is done and nobody says otherwise."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from edge_agent.host import wire
from edge_agent.host.errors import RefusedError
from edge_agent.host.orders import ACTS, ACTS_MAX, Orders, done_as_asked
from edge_agent.workloads import calls
from edge_agent.workloads.ports import HostCall, InstanceSpec
from tests.edge_agent.host.world import HostWorld

NODE, OTHER = 1, 2


class Desk:
    """Carries out acts by noting them; ``meanwhile`` happens within the act of a number."""

    def __init__(self) -> None:
        self.orders = Orders(self._answer)
        self.done: list[int] = []
        self.told: list[Struct] = []
        self.refuses: int | None = None
        self.interrupts: tuple[int, str] | None = None
        self.leaves_after: int | None = None
        self.held: dict[int, asyncio.Event] = {}

    async def _answer(self, act: wire.Act) -> Struct:
        if act.id in self.held:
            await self.held[act.id].wait()
        if self.interrupts is not None and self.interrupts[0] == act.id:
            self.orders.interrupt(self.interrupts[1])
        if act.id == self.refuses:
            return wire.Refusal(act.id, "busy", "asked to fail")
        self.done.append(act.id)
        return wire.Done(act.id)

    async def _tell(self, answer: Struct) -> bool:
        self.told.append(answer)
        return getattr(answer, "id", None) != self.leaves_after

    async def order(
        self, number: int, *ids: int, after: int | None = None, peer: int = NODE, gpu: str = "gpu0"
    ) -> None:
        acts = tuple(wire.Act(id=one, op="activate", gpu=gpu, instance_id="i1") for one in ids)
        request = wire.Request(id=number, op="order", gpu=gpu, acts=acts, after=after)
        await self.orders.carry_out(request, peer, self._tell)

    @property
    def not_begun(self) -> list[int | None]:
        refused = [one for one in self.told if isinstance(one, wire.Refusal)]
        return [one.id for one in refused if one.error == "not_begun"]


@given(
    acts=st.integers(1, ACTS_MAX),
    at=st.integers(1, ACTS_MAX),
    how=st.sampled_from(["refused", "interrupted", "gone", "another gpu"]),
)
def test_what_is_done_is_what_came_before_the_first_that_ended_it(
    acts: int, at: int, how: str
) -> None:
    desk = Desk()
    if how == "refused":
        desk.refuses = at
    elif how == "gone":
        desk.leaves_after = at
    else:
        desk.interrupts = (at, "gpu0" if how == "interrupted" else "gpu1")
    asyncio.run(desk.order(100, *range(1, acts + 1)))
    last = acts if how == "another gpu" else at - 1 if how == "refused" else at
    assert desk.done == list(range(1, min(last, acts) + 1))
    answered = [one.id for one in desk.told if isinstance(one, wire.Done | wire.Refusal)]
    assert answered == [*range(1, acts + 1), 100], "each act has its answer, and so has the order"
    assert desk.not_begun == list(range(min(at, acts) + 1, acts + 1 if last != acts else 0))


async def test_an_order_goes_on_after_another_that_is_still_under_way() -> None:
    desk = Desk()
    desk.held[1] = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(desk.order(10, 1, 2))
        await asyncio.sleep(0)
        group.create_task(desk.order(11, 3, after=10))
        await asyncio.sleep(0)
        assert desk.done == []
        desk.held[1].set()
    assert desk.done == [1, 2, 3]


@pytest.mark.parametrize("end", ["interrupted", "refused", "another order", "an order of nothing"])
async def test_an_order_does_not_go_on_after_one_that_has_ended(end: str) -> None:
    desk = Desk()
    desk.refuses = 1 if end == "refused" else None
    await desk.order(10, 1)
    if end == "interrupted":
        desk.orders.interrupt("gpu0")
    elif end == "another order":
        await desk.order(10, 5, peer=OTHER)
    elif end == "an order of nothing":
        await desk.order(12)
    desk.done.clear()
    await desk.order(11, 2, 3, after=10)
    assert (desk.done, desk.not_begun) == ([], [2, 3])


async def test_an_order_goes_on_after_none_but_its_own_connections() -> None:
    desk = Desk()
    await desk.order(10, 1)
    await desk.order(11, 2, after=10, peer=OTHER)
    await desk.order(11, 3, after=10)
    assert desk.done == [1, 3]


@pytest.mark.parametrize(
    "acts",
    [
        None,
        (wire.Act(id=2, op="activate", gpu="gpu1"),),
        (wire.Act(id=2, op="meters", gpu="gpu0"),),
        (wire.Act(id=2, op="order", gpu="gpu0"),),
        tuple(wire.Act(id=one, op="stop", gpu="gpu0") for one in range(ACTS_MAX + 1)),
    ],
    ids=["none", "another gpu's", "no act", "an order", "too many"],
)
async def test_what_is_no_order_is_refused_and_ends_nothing(
    acts: tuple[wire.Act, ...] | None,
) -> None:
    desk = Desk()
    await desk.order(10, 1)
    with pytest.raises(RefusedError):
        await desk.orders.carry_out(
            wire.Request(id=11, op="order", gpu="gpu0", acts=acts), NODE, desk._tell
        )
    await desk.order(12, 3, after=10)
    assert desk.done == [1, 3]


def _act(op: str, *, on: bool | None = None, is_open: bool | None = None) -> wire.Act:
    return wire.Act(id=1, op=op, gpu="gpu0", on=on, open=is_open)


def _gate(*, is_open: bool) -> wire.Gate:
    return wire.Gate(1, 0, 0, 0, is_open, 0)


@pytest.mark.parametrize(
    ("act", "answer", "before", "goes_on"),
    [
        (_act("gate", is_open=False), _gate(is_open=False), None, True),
        (_act("gate", is_open=False), _gate(is_open=True), None, False),
        (_act("stop"), _gate(is_open=False), None, True),
        (_act("mine", on=False), wire.Hashes(1, 7), None, True),
        (_act("mine", on=False), wire.Hashes(1, 7), wire.Hashes(1, 7), True),
        (_act("mine", on=False), wire.Hashes(1, 8), wire.Hashes(1, 7), False),
        (_act("mine", on=True), wire.Hashes(1, 8), wire.Hashes(1, 7), True),
        (_act("mine", on=True), wire.Refusal(1, "busy", ""), None, False),
    ],
)
def test_an_order_goes_on_where_the_act_did_what_it_was_asked_for(
    act: wire.Act,
    answer: Struct,
    before: Struct | None,
    goes_on: bool,  # noqa: FBT001 - a case
) -> None:
    assert done_as_asked(act, answer, before) is goes_on


async def test_an_order_given_twice_gives_the_same_answers_and_one_instance(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    spec = InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=1)
    acts: tuple[HostCall, ...] = (
        calls.mine("gpu0", on=False),
        calls.mine("gpu0", on=False),
        calls.prepare("gpu0", spec),
        calls.activate("gpu0", "i1"),
        calls.canary("gpu0", "i1", "canary"),
    )
    async with world.engines(), world.host(), world.driver() as driver:
        await driver.mine("gpu0", on=True)
        told = []
        for _ in range(2):
            order = driver.order("gpu0")
            order.add(acts)
            stood = [await driver.mine("gpu0", on=False) for _ in range(2)]
            await driver.prepare("gpu0", spec)
            moved = await driver.activate("gpu0", "i1")
            told.append((stood, moved, await driver.canary("gpu0", "i1", "canary")))
            order.end()
        assert told[0] == told[1]
        assert told[0][0][0] == told[0][0][1]
        assert [one.instance_id for one in (await driver.meters(None)).meters] == ["i1"]
        assert (world.miner.state, world.server.state) == ("warm", "active")


def test_every_act_of_a_gpu_ends_its_order() -> None:
    made = {
        calls.mine("g", on=True).op,
        calls.prepare("g", InstanceSpec(instance_id="i", lease_id="w", attempt=1)).op,
        calls.activate("g", "i").op,
        calls.canary("g", "i", "p").op,
        calls.gate("g", "i", is_open=True).op,
        calls.stop("g", "i").op,
    }
    assert made == ACTS

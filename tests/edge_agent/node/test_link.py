"""The node link: reconnects, lost messages, epochs, one agent at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from msgspec import structs

from edge_agent.node.channel import Channel, Silence
from edge_agent.node.fake import MemoryChannel, make_pair
from edge_agent.node.store import NodeChange
from edge_agent.workloads.ports import MeterPage
from protocol import codec
from protocol.node import (
    AgentBeat,
    DeviceStep,
    Hello,
    HelloRefused,
    Inventory,
    NodeFacts,
    Phase,
    PhaseDo,
    PhaseDone,
    ReadingKind,
    Readings,
    ReadingsAck,
)
from protocol.resource import Activity
from simulators.virtual_loop import run
from tests.edge_agent.node.world import FORWARD, World, lease_work, step

Play = Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]
MINE, SERVE, IDLE = Activity.MINE, Activity.SERVE, Activity.IDLE


TO_MINE = step("d0", IDLE, MINE)


def _request(phase: Phase, one: DeviceStep = TO_MINE) -> PhaseDo:
    return PhaseDo(agent_epoch=1, switch_id="s", phase=phase, deadline_ms=1_000, steps=(one,))


async def _read_to_the_end(channel: Channel) -> None:
    while True:
        await channel.receive()


def test_inventory_comes_first_then_facts_each_second(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node(), world.agent() as links:
            assert links.connected("n1")
            await asyncio.sleep(5.5)
            assert world.sink.order[0] == "inventory"
            assert 5 <= len(world.sink.facts) <= 7
            throughs = [one.through for one in world.sink.batches if one.through is not None]
            assert throughs == sorted(throughs)
            assert throughs[-1] > world.sink.inventories[0].at

    play(scenario)


def test_the_facts_and_readings_of_a_second_go_together(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    sends: list[int] = []
    send = MemoryChannel.send

    async def counted(channel: MemoryChannel, messages: Sequence[bytes]) -> None:
        sends.append(len(messages))
        await send(channel, messages)

    async def scenario(world: World) -> None:
        async with world.node(), world.agent():
            await asyncio.sleep(2.5)
            monkeypatch.setattr(MemoryChannel, "send", counted)
            await asyncio.sleep(20)
            assert sends.count(2) == 20
            assert len(sends) == 30  # with a beat of the agent every other second

    play(scenario)


def test_facts_do_not_wait_for_meters_that_hang(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(since_minute: int | None) -> MeterPage:  # noqa: ARG001 - as the driver's
        never: asyncio.Future[MeterPage] = asyncio.get_running_loop().create_future()
        return await never

    async def scenario(world: World) -> None:
        async with world.node(), world.agent() as links:
            await asyncio.sleep(2.5)
            monkeypatch.setattr(world.driver, "meters", hang)
            before = len(world.sink.facts)
            await asyncio.sleep(20)
            assert len(world.sink.facts) == before + 20
            assert links.stats("n1").connects == 1

    play(scenario)


def test_a_peer_that_falls_silent_is_noticed_at_the_limit_and_not_before() -> None:
    async def main() -> tuple[float, str]:
        silence = Silence(5.0)
        watch = asyncio.create_task(silence.watch())
        for _ in range(7):
            await asyncio.sleep(0.9)
            silence.heard()
        with pytest.raises(TimeoutError) as caught:
            await watch
        return asyncio.get_running_loop().time(), str(caught.value)

    ended_s, said = run(main())
    assert ended_s == pytest.approx(7 * 0.9 + 5.0)
    assert said == "nothing was heard for 5 s"


def test_a_phase_travels_both_ways(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node(), world.agent() as links:
            await asyncio.sleep(1.5)
            for phase in FORWARD:
                done = await links.do("n1", _request(phase))
                assert done.outcomes[0].status == "done"
            assert world.host.sample()[0].mining

    play(scenario)


def test_readings_arrive_once_in_order_whatever_is_cut(play: Play) -> None:
    async def scenario(world: World) -> None:
        chaos = random.Random(11)
        world.network._delay_s = lambda: chaos.uniform(0.0, 0.3)
        async with world.node(), world.agent():
            await asyncio.sleep(2)
            for turn in range(12):
                await world.serve("d0", lease_work(f"i{turn}", lease_id=f"w{turn}.1"))
                await asyncio.sleep(chaos.uniform(0.1, 90))
                if chaos.random() < 0.7:
                    world.network.cut(world.address, down=chaos.random() < 0.5)
                    await asyncio.sleep(chaos.uniform(0.0, 3.0))
                    world.network.restore(world.address)
                await world.switch(step("d0", SERVE, IDLE))
            await asyncio.sleep(20)
            assert world.sink.lost > 3
            seqs = [one.seq for one in world.sink.readings]
            assert seqs == list(range(1, len(seqs) + 1))
            closes = [one for one in world.sink.readings if one.kind is ReadingKind.CLOSE]
            truth = [one for one in world.truth if one.t == "close"]
            assert [one.served_ns for one in closes] == [one.served_ns for one in truth]
            assert world.service is not None
            await asyncio.sleep(2)
            assert world.service.memory.unacked == 0
            assert world.stored_readings() == tuple(world.sink.readings)

    play(scenario)


def test_node_and_agent_restarts_resend_from_the_last_ack(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(65)
        async with world.node(), world.agent():
            await asyncio.sleep(2)
            assert [one.kind for one in world.sink.readings] == [
                ReadingKind.OPEN,
                ReadingKind.MINUTE,
            ]
            assert world.sink.inventories[0].last_seq == 2
        async with world.node(), world.agent():
            await asyncio.sleep(2)
            assert len(world.sink.readings) == 2
            assert not [one for one in world.sink.batches[2:] if one.readings]

    play(scenario)


def test_an_agent_restored_from_an_older_copy_is_given_again_what_it_forgot(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node(), world.agent():
            await asyncio.sleep(1.5)
            await world.serve("d0")
            await asyncio.sleep(190)
            first = list(world.sink.readings)
            assert len(first) == 4  # the opening and three minutes, all acked
        world.sink.readings.clear()
        world.sink.mark = 1
        async with world.node(), world.agent():
            await asyncio.sleep(2)
            assert world.sink.readings == first[1:]
        world.sink.readings.clear()
        world.sink.mark = 1_000  # of another store of this node: go on after the last ack
        async with world.node(), world.agent():
            await asyncio.sleep(2)
            assert world.sink.readings == []

    play(scenario)


def test_phase_goes_on_when_the_link_is_cut_and_its_result_waits(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node(), world.agent() as links:
            await asyncio.sleep(1.5)
            world.driver._latency_s = lambda: 0.5
            asking = asyncio.ensure_future(links.do("n1", _request(Phase.ACTIVATE)))
            await asyncio.sleep(0.1)
            world.network.cut(world.address)
            with pytest.raises(ConnectionError):
                await asking
            await asyncio.sleep(2)
            assert world.host.sample()[0].mining
            calls = len(world.driver.calls)
            done = await links.do("n1", _request(Phase.ACTIVATE))
            assert done.outcomes[0].status == "done"
            assert len(world.driver.calls) == calls

    play(scenario)


def test_no_answer_is_a_timeout_and_no_node_a_lost_connection(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.agent() as links:
            with pytest.raises(ConnectionError):
                await links.do("n1", _request(Phase.VALIDATE))
            with pytest.raises(ConnectionError):
                await links.do("n7", _request(Phase.VALIDATE))
        async with world.node(), world.agent() as links:
            await asyncio.sleep(1.5)
            assert world.service is not None
            world.service.begin_phase = lambda *_: None  # type: ignore[method-assign]
            with pytest.raises(TimeoutError):
                await links.do("n1", _request(Phase.VALIDATE))

    play(scenario)


def test_lower_epoch_and_foreign_site_are_refused(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            async with world.agent(epoch=7) as links:
                assert links.connected("n1")
            async with world.agent(epoch=6) as links:
                await asyncio.sleep(3)
                assert not links.connected("n1")
                assert links.stats("n1").refused > 0
                assert "stale_epoch" in links.stats("n1").last_error
            async with world.agent(epoch=8, site_id="fargo") as links:
                await asyncio.sleep(3)
                assert "wrong_site" in links.stats("n1").last_error
        async with world.node(), world.agent(epoch=6) as links:
            await asyncio.sleep(3)
            assert not links.connected("n1"), "the highest epoch survives a restart"

    play(scenario)


def test_an_agent_restored_from_an_older_copy_goes_above_the_epoch_of_its_later_self(
    play: Play,
) -> None:
    async def scenario(world: World) -> None:
        raised: list[int] = []

        async def raise_epoch(above: int) -> int:
            raised.append(above)
            return above + 1

        async with world.node() as node:
            await asyncio.sleep(1.5)
            async with world.agent(epoch=7) as links:
                assert links.connected("n1")
            async with world.agent(epoch=3, raise_epoch=raise_epoch) as links:
                await asyncio.sleep(3)
                assert links.connected("n1")
                assert (raised, node.memory.epoch) == ([7], 8)
                done = await links.do("n1", _request(Phase.VALIDATE))
                assert done.outcomes[0].code != "stale_epoch"
                # Another agent takes over: this one was accepted before, and does not outbid it.
                async with world.agent(epoch=9) as newer:
                    await asyncio.sleep(10)
                    assert newer.connected("n1")
                    assert not links.connected("n1")
                    assert raised == [7]

    play(scenario)


async def _hello(world: World, epoch: int) -> tuple[Channel, object]:
    channel = await world.network.dial(world.address)
    await channel.send([codec.encode(Hello(site_id="lubbock", agent_epoch=epoch))])
    return channel, codec.NODE_TO_AGENT.decode(await channel.receive())


def test_newest_epoch_takes_over(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            old, answer = await _hello(world, 1)
            assert isinstance(answer, Inventory)
            new, answer = await _hello(world, 2)
            assert isinstance(answer, Inventory)
            with pytest.raises(ConnectionError):
                await _read_to_the_end(old)
            await new.send([codec.encode(AgentBeat(agent_epoch=2))])
            later = codec.NODE_TO_AGENT.decode(await new.receive())
            assert not isinstance(later, HelloRefused)
            _, answer = await _hello(world, 1)
            assert isinstance(answer, HelloRefused)
            assert answer.highest_epoch == 2

    play(scenario)


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff", codec.encode(Hello(site_id="lubbock", agent_epoch=1)), b"\x81\xa4type\xa1x"],
    ids=["no-msgpack", "second-hello", "unknown-tag"],
)
def test_garbage_ends_its_connection_only(play: Play, garbage: bytes) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            channel, _ = await _hello(world, 1)
            await channel.send([garbage])
            with pytest.raises(ConnectionError):
                await _read_to_the_end(channel)
            async with world.agent(epoch=1) as links:
                assert links.connected("n1")

    play(scenario)


def test_silent_agent_is_dropped(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            channel, _ = await _hello(world, 1)
            begun_s = asyncio.get_running_loop().time()
            with pytest.raises(ConnectionError):
                await _read_to_the_end(channel)
            assert asyncio.get_running_loop().time() - begun_s == pytest.approx(10, abs=1)
            assert node._session is None

    play(scenario)


def test_ack_beyond_what_was_given_is_not_obeyed(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.serve("d0")
            channel, _ = await _hello(world, 1)
            await channel.send([codec.encode(ReadingsAck(seq=99))])
            await asyncio.sleep(2)
            assert node.bad_acks == 1
            assert len(world.stored_readings()) == 1

    play(scenario)


def test_slow_sink_delays_no_phase_and_gets_the_newest_facts(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node(), world.agent() as links:
            await asyncio.sleep(1.5)
            await world.serve("d1")
            world.sink.stall_s = 4.0
            await asyncio.sleep(6)
            begun_s = asyncio.get_running_loop().time()
            await links.do("n1", _request(Phase.ACTIVATE))
            assert asyncio.get_running_loop().time() - begun_s < 0.1
            assert len(world.sink.facts) < 5

    play(scenario)


def test_results_follow_the_readings_they_caused(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node():
            await asyncio.sleep(1.5)
            await world.serve("d0")
            channel, _ = await _hello(world, 1)
            drain = _request(Phase.DRAIN, step("d0", SERVE, MINE))
            await channel.send([codec.encode(drain)])
            seen: list[object] = []
            while not seen or not isinstance(seen[-1], PhaseDone):
                message = codec.NODE_TO_AGENT.decode(await channel.receive())
                if not isinstance(message, NodeFacts):
                    seen.append(message)
            batches = [one for one in seen if isinstance(one, Readings)]
            assert batches[-1].readings[-1].kind is ReadingKind.CLOSE

    play(scenario)


def test_memory_channel_keeps_order_and_dies_as_a_whole(play: Play) -> None:
    async def scenario(_: World) -> None:
        delays = iter([0.5, 0.1])
        near, far = make_pair(lambda: next(delays))
        await near.send([b"1"])
        await near.send([b"2"])
        assert [await far.receive(), await far.receive()] == [b"1", b"2"]
        far.close()
        with pytest.raises(ConnectionError):
            await near.send([b"3"])
        with pytest.raises(ConnectionError):
            await near.receive()

    play(scenario)


def test_a_long_backlog_arrives_whole_and_holds_up_no_phase(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.node() as node:
            await asyncio.sleep(1.5)
            await world.serve("d1")
            first = world.stored_readings()[0]
            count = 7_777
            many = tuple(
                structs.replace(first, seq=seq, kind=ReadingKind.MINUTE)
                for seq in range(2, count + 1)
            )
            metering = structs.replace(node.memory.metering, last_seq=count)
            await node.memory.commit(NodeChange(readings=many, metering=metering))
            world.sink.stall_s = 1.0
            async with world.agent() as links:
                begun_s = asyncio.get_running_loop().time()
                await links.do("n1", _request(Phase.ACTIVATE))
                assert asyncio.get_running_loop().time() - begun_s < 0.1
                await asyncio.sleep(30)
                assert [one.seq for one in world.sink.readings] == list(range(1, count + 1))
                assert links.stats("n1").connects == 1
                assert all(
                    one.through is None for one in world.sink.batches if len(one.readings) == 500
                )

    play(scenario)

"""Polling: spread over the tick, columns, breakers, and slow devices that harm nobody else."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.devices.breaker import (
    CLOSED,
    Breaker,
    BreakerPolicy,
    after_answer,
    after_failure,
    allows,
)
from edge_agent.devices.poller import AsicPoller, PolledAsic, PollSettings
from edge_agent.devices.ports import StateCode
from firmware_bridges.base import WorkMode
from tests.edge_agent.devices.scripted import ScriptedMiner, loop_clock, run, silence

NS = 1_000_000_000


def poller_of(miners: list[ScriptedMiner], settings: PollSettings | None = None) -> AsicPoller:
    devices = [PolledAsic(f"asic-{number}", miner) for number, miner in enumerate(miners)]
    return AsicPoller(devices, clock=loop_clock(), settings=settings or PollSettings())


def test_a_tick_gives_one_column_entry_for_each_device() -> None:
    async def main() -> None:
        awake, asleep, dead = ScriptedMiner(), ScriptedMiner(WorkMode.SLEEP), ScriptedMiner()
        asleep.gives_power = False
        dead.read_error = silence()
        poller = poller_of([awake, asleep, dead])
        assert poller.batch().reachable.tolist() == [-1, -1, -1]
        batch = await poller.poll_once()
        assert batch.device_ids == ("asic-0", "asic-1", "asic-2")
        assert batch.reachable.tolist() == [1, 1, 0]
        assert batch.state.tolist() == [StateCode.MINING, StateCode.ASLEEP, StateCode.UNKNOWN]
        assert batch.hashrate_ths[:2].tolist() == [200.0, 0.0]
        assert batch.power_w[0] == 3_500.0
        assert np.isnan(batch.power_w[1]), "no power field: unknown, not zero"
        assert np.isnan(batch.hashrate_ths[2])
        assert batch.temp_c[:2].tolist() == [60.0, 60.0]
        assert batch.measured_ns[2] == -1
        assert batch.at_ns == 5 * NS
        assert poller.counts().failed == (("bridge.timeout", 1),)

    run(main())


def test_a_batch_is_a_copy_that_cannot_be_written() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        poller = poller_of([miner])
        before = await poller.poll_once()
        miner.read_error = silence()
        await poller.poll_once()
        assert before.hashrate_ths[0] == 200.0
        with pytest.raises(ValueError, match="read-only"):
            before.hashrate_ths[0] = 1.0

    run(main())


def test_the_devices_of_a_site_are_spread_evenly() -> None:
    async def main() -> None:
        starts: list[float] = []

        miners = [ScriptedMiner() for _ in range(200)]
        poller = poller_of(miners)

        async def sample() -> None:
            for _ in range(50):
                await asyncio.sleep(0.1)
                starts.append(sum(miner.reads for miner in miners))

        async with asyncio.TaskGroup() as group:
            group.create_task(sample())
            group.create_task(poller.poll_once())
        steps = np.diff([0, *starts])
        assert starts[-1] == 200
        assert steps.max() <= 8, "200 devices in 5 s are 4 in 100 ms"

    run(main())


def test_every_device_is_read_once_per_tick_however_long_it_runs() -> None:
    async def main() -> None:
        miners = [ScriptedMiner() for _ in range(7)]
        poller = poller_of(miners)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100.001):
                await poller.run()
        assert {miner.reads for miner in miners} == {20}
        assert poller.counts().ticks == 20
        assert poller.counts().ticks_late == 0

    run(main())


def test_a_slow_device_misses_its_own_turn_only() -> None:
    async def main() -> None:
        slow, quick = ScriptedMiner(), ScriptedMiner()
        slow.read_takes_s = 8.0
        poller = poller_of([slow, quick])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20.001):
                await poller.run()
        assert quick.reads == 4
        assert slow.reads == 2
        assert slow.most_open == 1
        assert poller.counts().left_busy == 2

    run(main())


def test_a_dead_device_is_asked_more_and_more_rarely_and_comes_back() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.read_error = silence()
        poller = poller_of([miner])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600.001):
                await poller.run()
        assert 7 <= miner.reads <= 12, "instead of 120"
        assert poller.counts().left_open == 120 - miner.reads
        miner.read_error = None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(150):
                await poller.run()
        assert poller.batch().reachable.tolist() == [1]

    run(main())


@given(
    st.integers(1, 400),
    st.integers(0, 20_000),
    st.builds(
        BreakerPolicy,
        failures_to_open=st.integers(1, 9),
        burst=st.just(1_000),
        wait_s=st.floats(0.1, 30),
        wait_s_max=st.floats(30, 600),
        spread=st.floats(0, 1),
    ),
)
def test_waits_grow_and_stay_bounded(failures: int, place: int, policy: BreakerPolicy) -> None:
    breaker, waits = CLOSED, [0]
    now_ns = 10**15
    for count in range(1, failures + 1):
        breaker = after_failure(breaker, policy, now_ns, place)
        assert breaker.failures == count
        if count < policy.failures_to_open:
            assert allows(breaker, now_ns)
        else:
            waits.append(breaker.retry_at_ns - now_ns)
            assert not allows(breaker, now_ns)
            assert allows(breaker, breaker.retry_at_ns)
    assert waits == sorted(waits)
    assert waits[-1] <= policy.wait_s_max * (1 + policy.spread) * NS


def test_retries_of_a_whole_site_do_not_coincide() -> None:
    policy = BreakerPolicy(failures_to_open=1)
    times = {after_failure(Breaker(), policy, 0, place).retry_at_ns for place in range(1_000)}
    assert len(times) == 1_000


def test_each_tick_gives_one_batch_at_its_end() -> None:
    async def main() -> None:
        poller = poller_of([ScriptedMiner(), ScriptedMiner()])
        async with asyncio.TaskGroup() as group:
            polling = group.create_task(poller.run())
            batches = [await poller.next_batch() for _ in range(3)]
            polling.cancel()
        assert [batch.at_ns for batch in batches] == [5 * NS, 10 * NS, 15 * NS]

    run(main())


def test_a_burst_of_failures_opens_even_with_answers_between_them() -> None:
    policy = BreakerPolicy(spread=0.0)
    breaker = CLOSED
    for second in range(5):
        assert allows(breaker, second * NS)
        breaker = after_answer(after_failure(breaker, policy, second * NS, 0))
        if second < 4:
            assert breaker.retry_at_ns == 0
    # The fifth failure within 10 s opened it, though the answer after it closed it again.
    breaker = CLOSED
    for second in range(5):
        breaker = after_failure(
            breaker, BreakerPolicy(failures_to_open=99, spread=0.0), second * NS, 0
        )
    assert breaker.retry_at_ns == (4 + 30) * NS
    half_open = after_failure(breaker, policy, 34 * NS, 0)
    assert half_open.retry_at_ns == (34 + 60) * NS
    assert after_answer(half_open) == CLOSED


def test_everything_is_asked_once_a_minute_and_not_of_all_at_once() -> None:
    async def main() -> None:
        miners = [ScriptedMiner() for _ in range(24)]
        poller = poller_of(miners)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(120.001):
                await poller.run()
        assert {miner.reads for miner in miners} == {24}
        assert {miner.full_reads for miner in miners} == {2}

    run(main())


def test_one_tick_asks_everything_of_its_share_only() -> None:
    async def main() -> None:
        miners = [ScriptedMiner() for _ in range(24)]
        await poller_of(miners).poll_once()
        assert sum(miner.full_reads for miner in miners) == 2

    run(main())


def test_the_last_good_reading_is_kept_with_its_age_and_the_reason() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        poller = poller_of([miner])
        assert poller.known(0).age_s(NS) is None
        await poller.poll_once()
        miner.read_error = silence()
        await poller.poll_once()
        known = poller.known(0)
        assert known.reading is not None
        assert known.reading.hashrate_ths == 200.0
        # The only device of a site is asked in the last slot of the tick.
        assert known.age_s(10 * NS) == pytest.approx(5, abs=0.1)
        assert "10.0.0.1:80: no connection" in known.error
        miner.read_error = None
        await poller.poll_once()
        assert poller.known(0).error == ""

    run(main())

"""What a simulated host holds ready, and its fences: as a real one answers, on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec
import pytest

from edge_agent.workloads.errors import DriverRefusedError
from edge_agent.workloads.host_driver import HostDriver
from edge_agent.workloads.ports import InstanceSpec, Ready, Wish
from protocol.node import GpuFence
from protocol.resource import Activity
from simulators.gpu_host import GpuHost
from simulators.gpu_ready import RETRY_S
from simulators.gpu_server import GpuServer
from tests.edge_agent.host.world import background, until
from tests.simulators.test_gpu_server import ManualClock

S = 1_000_000_000
MINE, SERVE = Activity.MINE, Activity.SERVE
_nothing = msgspec.json.Decoder(dict[str, object])
WORK = InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=1)


class Rig:
    """A simulated host whose clock the test turns, behind the node's own driver."""

    def __init__(self, driver: HostDriver, host: GpuHost, clock: ManualClock) -> None:
        self.clock = clock
        self.driver = driver
        self.host = host

    async def wish(
        self, enters: Activity = SERVE, *, begin: bool = True
    ) -> list[tuple[str, str, str]]:
        """Wish for one engine; gives how all stands."""
        wish = Wish(gpu="gpu0", enters=enters, probability=0.9, within_s=60.0, begin=begin)
        return _told(await self.driver.prewarm((wish,), 60.0))

    async def wish_none(self) -> list[tuple[str, str, str]]:
        return _told(await self.driver.prewarm((), 60.0))

    async def memory_mib(self) -> float:
        return (await self.driver.sample())[0].memory_used_mib or 0.0


def _told(rows: tuple[Ready, ...]) -> list[tuple[str, str, str]]:
    return [(row.enters.value, row.stage.value, row.code) for row in rows]


@asynccontextmanager
async def _rig(folder: Path, cold_s: float) -> AsyncIterator[Rig]:
    clock = ManualClock()
    host = GpuHost(
        "h1",
        [("gpu0", "H100"), ("gpu1", "H100")],
        clock=clock,
        rng=Random(1),
        truth=lambda _line: None,
        process_id="p1",
        cold_s=cold_s,
    )
    path = folder / "gpu.sock"
    server = GpuServer(host, Random(2), 0.0)
    driver = HostDriver(str(path), uniform=Random(3).uniform)
    async with background(server.run(path, lambda: None), driver.run()):
        await until(lambda: driver.info() is not None)
        yield Rig(driver, host, clock)


async def test_what_is_resident_is_told_as_standing_until_it_is_at_work(tmp_path: Path) -> None:
    async with _rig(tmp_path, 0.0) as rig:
        assert await rig.wish(SERVE) == [("serve", "prepared", "standing")]
        assert await rig.wish(MINE) == [("mine", "prepared", "standing")]
        await rig.driver.mine("gpu0", on=True)
        assert await rig.wish(MINE) == []
        await rig.driver.mine("gpu0", on=False)
        await rig.driver.prepare("gpu0", WORK)
        assert await rig.wish(SERVE) == []
        assert await rig.wish(Activity.IDLE) == []


async def test_what_has_to_be_started_is_started_once_and_a_switch_uses_it(tmp_path: Path) -> None:
    async with _rig(tmp_path, 0.2) as rig:
        empty_mib = await rig.memory_mib()
        assert await rig.wish(begin=False) == [], "a switch is under way"
        assert await rig.wish() == [("serve", "preparing", "")]
        rig.clock.ns += S // 10
        assert await rig.wish() == [("serve", "preparing", "")]
        rig.clock.ns += S // 10
        assert await rig.wish() == [("serve", "prepared", "")]
        assert await rig.memory_mib() > empty_mib
        assert rig.host.start_s("gpu0") == 0.0
        assert rig.host.start_s("gpu1") == 0.2, "it was not wished for"
        assert rig.host.meters(None) == [], "nothing that is ready is metered"
        await rig.driver.prepare("gpu0", WORK)
        assert await rig.wish() == []
        await rig.driver.stop("gpu0", "i1")
        assert rig.host.start_s("gpu0") == 0.2, "it ended with its instance"
        assert rig.host.ready.counts == {("gpu0", "begun"): 1, ("gpu0", "used"): 1}


@pytest.mark.parametrize("how", ["dropped", "turned", "silent"])
async def test_what_is_wanted_no_longer_is_let_go(tmp_path: Path, how: str) -> None:
    async with _rig(tmp_path, 0.2) as rig:
        empty_mib = await rig.memory_mib()
        await rig.wish()
        rig.clock.ns += S
        assert await rig.wish() == [("serve", "prepared", "")]
        match how:
            case "dropped":
                assert await rig.wish_none() == []
            case "turned":
                assert await rig.wish(MINE) == [("mine", "prepared", "standing")]
            case _:
                rig.clock.ns += 61 * S
        assert await rig.memory_mib() == empty_mib
        assert rig.host.ready.counts["gpu0", "let_go"] == 1
        assert rig.host.start_s("gpu0") == 0.2


async def test_a_start_that_fails_is_told_and_tried_again_later(tmp_path: Path) -> None:
    async with _rig(tmp_path, 0.2) as rig:
        rig.host.ready.fail_next("gpu0", 1)
        await rig.wish()
        rig.clock.ns += S
        assert await rig.wish() == [("serve", "failed", "not_ready")]
        rig.clock.ns += S
        assert await rig.wish() == [("serve", "failed", "not_ready")]
        rig.clock.ns += int(RETRY_S * S)
        assert await rig.wish() == [("serve", "preparing", "")]


async def test_on_a_lost_gpu_nothing_is_made_ready(tmp_path: Path) -> None:
    async with _rig(tmp_path, 0.2) as rig:
        rig.host.lose("gpu0", lost=True)
        assert await rig.wish() == [("serve", "refused", "gpu_lost")]


async def test_a_fence_is_told_and_ends_by_a_word_once_its_cause_is_gone(tmp_path: Path) -> None:
    async with _rig(tmp_path, 0.0) as rig:
        await rig.driver.mine("gpu0", on=True)
        await rig.driver.release("gpu0")  # without a fence there is nothing to end
        rig.host.fence("gpu0", 48, "an uncorrected error")
        sample, other = await rig.driver.sample()
        since = datetime.fromtimestamp(rig.clock.wall_ns() // S, UTC)
        ends_by = "an operator's release, after: look at the card"
        stands = "an uncorrected error"
        assert sample.fence == GpuFence(code="xid-48", since=since, ends_by=ends_by, stands=stands)
        assert (sample.healthy, sample.held, sample.mining) == (False, True, False)
        assert (other.healthy, other.held, other.fence, other.reason) == (True, False, None, "")
        with pytest.raises(DriverRefusedError, match="an uncorrected error") as refused:
            await rig.driver.release("gpu0")
        assert refused.value.answer_code == "fence_stands"
        with pytest.raises(DriverRefusedError, match="gpu_lost"):
            await rig.driver.mine("gpu0", on=True)
        rig.clock.ns += 5 * S
        rig.host.fence("gpu0", 48, "")
        fence = (await rig.driver.sample())[0].fence
        assert fence is not None
        assert fence.since == since
        await rig.driver.release("gpu0")
        assert (await rig.driver.sample())[0].healthy
        await rig.driver.mine("gpu0", on=True)


async def test_what_is_no_whole_request_is_refused(tmp_path: Path) -> None:
    async with _rig(tmp_path, 0.0) as rig:
        for op in ("prewarm", "release"):
            with pytest.raises(DriverRefusedError) as refused:
                await rig.driver._ask(_nothing, op=op, gpu="nobody")
            assert refused.value.answer_code == ("bad_request" if op == "prewarm" else "no_gpu")

"""The host's acts over the real wire: idempotent, evidence demanded, faults of engines survived."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge_agent.host.admin import status_of
from edge_agent.host.door import DoorState
from edge_agent.host.sensors import EnergyReading, GpuFacts
from edge_agent.workloads.engine import EngineState, Probe
from edge_agent.workloads.engine_time import counted, engine_acts
from edge_agent.workloads.errors import DriverRefusedError
from edge_agent.workloads.ports import InstanceSpec
from protocol.node import GpuFence
from tests.edge_agent.host.engine_program import CANARY_SHA256, EngineProgram, ProgramEngine
from tests.edge_agent.host.world import CLOCK, HostWorld, client, get, until

S = 1_000_000_000
SPEC = InstanceSpec(instance_id="i1", lease_id="w1.1", attempt=1)


async def test_mine_serve_mine_with_each_act_asked_for_twice(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        before = (await driver.mine("gpu0", on=True)).hashes
        await until(lambda: world.miner.hashes() > before)
        assert (await driver.mine("gpu0", on=True)).hashes > before
        assert [one.mining for one in await driver.sample()] == [True]
        await driver.prepare("gpu0", SPEC)
        with pytest.raises(DriverRefusedError) as refused:
            await driver.activate("gpu0", "i1")
        assert refused.value.answer_code == "busy"
        stood = (await driver.mine("gpu0", on=False)).hashes
        assert (await driver.mine("gpu0", on=False)).hashes == stood == world.miner.hashes()
        for _ in range(2):
            await driver.prepare("gpu0", SPEC)
        for _ in range(2):
            await driver.activate("gpu0", "i1")
        said = await driver.canary("gpu0", "i1", "canary")
        assert said.expected_sha256 == CANARY_SHA256
        opened = [await driver.gate("gpu0", "i1", is_open=True) for _ in range(2)]
        assert opened[0].at_ns == opened[1].at_ns
        with pytest.raises(DriverRefusedError) as refused:
            await driver.mine("gpu0", on=True)
        assert refused.value.answer_code == "busy"
        shut = [await driver.gate("gpu0", "i1", is_open=False) for _ in range(2)]
        assert shut[0] == shut[1]
        assert shut[0].at_ns - opened[0].at_ns == shut[0].served_ns
        again = await driver.gate("gpu0", "i1", is_open=True)
        assert (again.open, again.served_ns) == (False, shut[0].served_ns)
        for _ in range(2):
            await driver.stop("gpu0", "i1")
        assert world.server.state == "warm"
        assert (await driver.mine("gpu0", on=True)).hashes >= stood
        page = await driver.meters(None)
        assert page.meters[0].served_ns == shut[0].served_ns
        assert [line.t for line in world.log() if line.t != "mark"] == ["open", "close"]


@pytest.mark.parametrize(
    ("op", "code"),
    [
        ({"op": "mine", "gpu": "gpu9", "on": True}, "no_gpu"),
        ({"op": "mine", "gpu": "gpu0"}, "bad_request"),
        ({"op": "gate", "gpu": "gpu0", "instance_id": "i1", "open": True}, "no_instance"),
        ({"op": "stop", "gpu": "gpu0", "instance_id": "i1"}, "no_instance"),
        ({"op": "activate", "gpu": "gpu0", "instance_id": "i1"}, "no_instance"),
        ({"op": "canary", "gpu": "gpu0", "instance_id": "i1"}, "no_instance"),
        ({"op": "prepare", "gpu": "gpu0", "instance_id": "i1"}, "bad_request"),
        ({"op": "fault", "gpu": "gpu0", "kind": "lost"}, "bad_request"),
        ({"op": "prepare", "gpu": "gpu0", "instance_id": "../x", "lease_id": "w"}, "bad_request"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    tmp_path: Path, op: dict[str, object], code: str
) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host():
        await until(world.socket.exists)
        reader, writer = await asyncio.open_unix_connection(str(world.socket))
        for line in (b"garbage\n", b"\xff\n", b"[]\n"):
            writer.write(line)
            assert json.loads(await reader.readline())["error"] == "bad_request"
        writer.write(json.dumps({"id": 1, **op}).encode() + b"\n")
        assert json.loads(await reader.readline())["error"] == code
        writer.write(b"x" * 200_000)
        async with asyncio.timeout(3):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.transport.abort()


@pytest.mark.parametrize("smooth", ["", "smooth"])
async def test_a_miner_that_lies_about_its_pause_is_ended(tmp_path: Path, smooth: str) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await driver.mine("gpu0", on=True)
        world.miner.lying, world.miner.smooth = True, bool(smooth)
        stood = (await driver.mine("gpu0", on=False)).hashes
        assert (await driver.mine("gpu0", on=False)).hashes == stood
        assert (await driver.sample())[0].mining is False
        await driver.prepare("gpu0", SPEC)
        await driver.activate("gpu0", "i1")


async def test_a_miner_that_lies_and_cannot_be_ended_is_never_called_off(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await driver.mine("gpu0", on=True)
        world.miner.lying = world.miner.smooth = world.miner.immortal = True
        with pytest.raises(DriverRefusedError) as refused:
            await driver.mine("gpu0", on=False)
        assert refused.value.answer_code == "still_hashing"
        looked = world.service.slots["gpu0"]
        for _ in range(3):  # looks at the miner, whose word is that it stands still
            await asyncio.sleep(world.limits.look_s)
            assert looked.mining is None
        await driver.prepare("gpu0", SPEC)
        with pytest.raises(DriverRefusedError) as refused:
            await driver.activate("gpu0", "i1")
        assert refused.value.answer_code == "busy"


async def test_no_miner_starts_beside_a_server_that_may_be_at_work(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    world.server.work(on=True)  # as a killed host leaves it
    async with world.engines(), world.host(), world.driver() as driver:
        await driver.mine("gpu0", on=True)
        assert world.server.state == "warm"
        await driver.mine("gpu0", on=False)
        await driver.prepare("gpu0", SPEC)
        world.server.html = True  # its answer to the resume is lost in a page
        with pytest.raises(DriverRefusedError):
            await driver.activate("gpu0", "i1")
        with pytest.raises(DriverRefusedError) as refused:
            await driver.mine("gpu0", on=True)
        assert refused.value.answer_code == "busy"
        world.server.html = False
        await driver.stop("gpu0", "i1")
        await driver.mine("gpu0", on=True)


async def test_a_miner_that_cannot_be_stopped_is_never_called_off(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await driver.mine("gpu0", on=True)
        world.miner.silent = True
        with pytest.raises(DriverRefusedError):
            await driver.mine("gpu0", on=False)
        await until(lambda: world.service.slots["gpu0"].mining is None)
        await driver.prepare("gpu0", SPEC)
        with pytest.raises(DriverRefusedError) as refused:
            await driver.activate("gpu0", "i1")
        assert refused.value.answer_code == "busy"


async def test_a_wrong_canary_opens_no_gate(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await world.serve(driver)
        await driver.stop("gpu0", "i1")
        world.server.wrong = True  # the right answer was learnt from the first instance
        spec = InstanceSpec(instance_id="i2", lease_id="w2.1", attempt=1)
        await driver.prepare("gpu0", spec)
        await driver.activate("gpu0", "i2")
        with pytest.raises(DriverRefusedError) as refused:
            await driver.canary("gpu0", "i2", "canary")
        assert refused.value.answer_code == "canary_mismatch"


async def test_a_driver_with_a_bug_is_an_engine_that_is_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await world.serve(driver)
        engine = world.service.slots["gpu0"].server.engine  # type: ignore[union-attr] # it has one

        async def probe() -> None:
            raise KeyError("state")

        engine.probe = probe  # type: ignore[method-assign] # a bug
        async with asyncio.timeout(5):
            while (await driver.meters(None)).meters[0].open:  # noqa: ASYNC110 - is asked for
                await asyncio.sleep(0.05)
        assert (await driver.mine("gpu0", on=False)).hashes >= 0
        told = [one for one in caplog.records if "driver fails" in one.message]
        assert len(told) == 1


async def test_a_hanging_engine_hangs_neither_samples_nor_meters(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        world.miner.silent = world.server.silent = True
        slow = asyncio.ensure_future(driver.mine("gpu0", on=True))
        async with asyncio.timeout(1):
            assert len(await driver.sample()) == 1
            assert (await driver.meters(None)).meters == ()
        with pytest.raises(DriverRefusedError) as refused:
            await slow
        assert refused.value.answer_code in {"engine_silent", "not_ready", "unable"}


async def test_an_engine_that_dies_is_billed_up_to_its_last_sign_of_life(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await world.serve(driver)
        await until(lambda: world.service.ledger.settle() > 0)
        world.server.die()
        died_ns = CLOCK.boottime_ns()
        told = [(await driver.meters(None)).meters[0].served_ns]
        while (page := await driver.meters(None)).meters[0].open:
            told.append(page.meters[0].served_ns)
            await asyncio.sleep(0.05)
        (row,) = page.meters
        assert told == sorted(told)
        assert row.closed_ns is not None
        assert told[-1] <= row.served_ns
        assert row.closed_ns <= died_ns
        assert [line.t for line in world.log()][-1] == "close"
        await driver.stop("gpu0", "i1")
        await driver.mine("gpu0", on=True)


async def test_a_server_that_is_gone_is_started_before_somebody_wants_it(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host() as service, world.driver():
        slot = service.slots["gpu0"]
        assert slot.server is not None
        await until(lambda: slot.server_state is EngineState.WARM)
        engine, asked = slot.server.engine, []

        async def prepare(deadline_s: float) -> Probe:
            asked.append(deadline_s)
            await world.server.start(port)
            return await engine.probe()

        engine.prepare = prepare  # type: ignore[method-assign] # a driver that starts programs
        port = world.server.port
        world.server.die()
        world.server = EngineProgram()
        await until(lambda: slot.server_state is EngineState.WARM and bool(asked))
        assert asked == [120.0]  # the engine's own time to start, not that of an act


async def test_a_silent_engine_that_comes_back_served_all_along(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await world.serve(driver)
        world.server.silent = True
        held = await driver.meters(None)
        assert held.meters[0].open
        world.server.silent = False
        page = await driver.meters(None)
        assert page.meters[0].open
        opened_ns = page.meters[0].opened_ns
        assert opened_ns is not None
        assert 0 <= page.now_ns - opened_ns - page.meters[0].served_ns < S // 2
        assert page.now_ns >= held.now_ns


async def test_asked_served_time_ends_by_itself_exactly(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await world.serve(driver, run_s=1)
        await until(lambda: world.service.ledger.find("i1").meter.completed)  # type: ignore[union-attr] # it is there
        (row,) = (await driver.meters(None)).meters
        assert (row.completed, row.open, row.served_ns) == (True, False, S)
        await until(lambda: world.service.slots["gpu0"].doors["i1"].state is DoorState.ENDED)


async def test_energy_is_that_of_the_card_while_the_gate_is_open(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)

    def read() -> None:
        now_ns = CLOCK.boottime_ns()
        energy = EnergyReading(now_ns, now_ns // 10_000)  # 100 W
        world.cards.facts["GPU-1"] = GpuFacts(power_w=100.0, temp_c=50.0, energy=energy)

    async with world.engines(), world.host() as service, world.driver() as driver:
        read()
        await service.watch.read_cards()
        assert (await driver.sample())[0].power_w == 100.0
        await world.serve(driver)
        await asyncio.sleep(0.2)
        read()
        await service.watch.read_cards()
        shut = await driver.gate("gpu0", "i1", is_open=False)
        used = shut.energy_mj / (shut.served_ns / S)
        assert 30_000 < used <= 100_001  # the end of it was not read, so it is not billed
        world.cards.facts["GPU-1"] = GpuFacts(healthy=False)
        await service.watch.read_cards()
        assert (await driver.sample())[0].healthy is False
        with pytest.raises(DriverRefusedError) as refused:
            await driver.mine("gpu0", on=True)
        assert refused.value.answer_code == "gpu_lost"
        await driver.stop("gpu0", "i1")  # what makes safe is never refused


async def test_energy_guessed_from_power_is_shown_and_in_no_meter(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    world.cards.facts["GPU-1"] = GpuFacts(power_w=400.0)
    async with world.engines(), world.host() as service, world.driver() as driver:
        await service.watch.read_cards()
        await world.serve(driver)
        service.watch.estimate.add(service.slots["gpu0"], 2.0)
        _, text = await get(world.admin_port, "/metrics")
        lines = text.decode().splitlines()
        (guess,) = [one for one in lines if one.startswith("hcp_host_energy_estimate_joules{")]
        assert float(guess.rsplit(" ", 1)[1]) >= 800.0
        assert not [one for one in lines if one.startswith("hcp_host_energy_joules_total{")]
        assert (await driver.gate("gpu0", "i1", is_open=False)).energy_mj == 0
        assert not world.log()[-1].energy_measured


async def test_a_host_that_is_killed_adopts_its_engines_and_begins_new_meters(
    tmp_path: Path,
) -> None:
    world = HostWorld(tmp_path)
    async with world.engines():
        async with world.host(), world.driver() as driver:
            await world.serve(driver)
            told = (await driver.meters(None)).meters[0].served_ns
        async with world.host(), world.driver() as driver:
            page = await driver.meters(None)
            assert (page.process_id, page.meters) == ("process-2", ())
            await until(lambda: world.server.state == "warm")  # served by nobody: off the GPU
            with pytest.raises(DriverRefusedError) as refused:
                await driver.gate("gpu0", "i1", is_open=True)
            assert refused.value.answer_code == "no_instance"
            await driver.mine("gpu0", on=True)
        async with world.host(), world.driver() as driver:
            await until(lambda: world.service.slots["gpu0"].mining is True)
            before = world.miner.hashes()
            assert (await driver.mine("gpu0", on=True)).hashes >= before  # it was never interrupted
        logged = [line.served_ns for line in world.log()]
        assert told <= max(logged)


async def test_an_act_goes_on_when_its_node_dies(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host():
        async with world.driver() as driver, client(world.port) as one:
            await world.serve(driver)
            await one.post("/i/i1/v1/chat/completions", {"stream": True, "n": 99, "delay_s": 0.1})
            await one.head()
            shutting = asyncio.ensure_future(driver.stop("gpu0", "i1"))
            door = world.service.slots["gpu0"].doors["i1"]
            await until(lambda: door.state is DoorState.CORDONED)
            driver._disconnect()
            with pytest.raises(ConnectionError):
                await shutting
        await until(lambda: world.service.slots["gpu0"].instance is None)
        assert world.server.state == "warm"


async def test_each_act_tells_what_of_it_was_the_engines_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pause", "resume", "canary"):
        deed = getattr(ProgramEngine, name)

        def timed(deed: Any = deed) -> Any:  # noqa: ANN401 - whatever it wraps
            async def own(*args: object) -> object:
                with engine_acts():
                    return await deed(*args)

            return own

        monkeypatch.setattr(ProgramEngine, name, timed())
    world, told = HostWorld(tmp_path), {}
    async with world.engines(), world.host(), world.driver() as driver:
        for name, act in (
            ("mine", lambda: driver.mine("gpu0", on=True)),
            ("leave", lambda: driver.mine("gpu0", on=False)),
            ("prepare", lambda: driver.prepare("gpu0", SPEC)),
            ("activate", lambda: driver.activate("gpu0", "i1")),
            ("canary", lambda: driver.canary("gpu0", "i1", "canary")),
            ("stop", lambda: driver.stop("gpu0", "i1")),
        ):
            with counted() as spent:
                await act()
            told[name] = spent.total_ns > 0
    assert told == {
        "mine": True,
        "leave": True,
        "prepare": False,  # it is warm already
        "activate": True,
        "canary": True,
        "stop": True,
    }


async def test_a_server_that_wakes_after_it_was_given_up_is_put_to_rest_again(
    tmp_path: Path,
) -> None:
    # A wake-up whose deadline passed may still take effect, beside a miner that earns by then.
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        await driver.mine("gpu0", on=True)
        await until(lambda: world.service.slots["gpu0"].server_state is EngineState.WARM)
        world.server.work(on=True)
        await until(lambda: world.server.state == "warm")
        assert world.miner.state == "active"
        assert world.service.slots["gpu0"].mining


async def test_a_card_that_is_held_takes_no_new_customer_and_serves_on(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    async with world.engines(), world.host(), world.driver() as driver:
        world.cards.facts = {"GPU-1": GpuFacts()}
        await world.serve(driver, "i1")
        world.cards.facts = {"GPU-1": GpuFacts(held=True, reason="Xid 63: a row")}
        await world.service.watch.read_cards()
        (sample,) = await driver.sample()
        assert (sample.healthy, sample.held, sample.reason) == (True, True, "Xid 63: a row")
        assert (await driver.gate("gpu0", "i1", is_open=True)).open
        await driver.stop("gpu0", "i1")
        with pytest.raises(DriverRefusedError) as refused:
            await driver.prepare("gpu0", InstanceSpec(instance_id="i2", lease_id="w", attempt=1))
        assert refused.value.answer_code == "held"
        await driver.mine("gpu0", on=True)


async def test_the_fence_of_a_card_is_told_and_released_over_the_socket(tmp_path: Path) -> None:
    world = HostWorld(tmp_path)
    fence = GpuFence(code="xid-48", since=datetime(2026, 3, 1, tzinfo=UTC), stands="a row")
    async with world.engines(), world.host(), world.driver() as driver:
        world.cards.facts = {"GPU-1": GpuFacts(healthy=False, held=True, fence=fence)}
        await world.service.watch.read_cards()
        (sample,) = await driver.sample()
        assert sample.fence == fence
        (row,) = status_of(world.service).gpus
        assert (row.healthy, row.held, row.fence) == (False, True, fence)
        world.cards.stands = "a row"
        with pytest.raises(DriverRefusedError) as refused:
            await driver.release("gpu0")
        assert refused.value.answer_code == "fence_stands"
        world.cards.stands = ""
        await driver.release("gpu0")
        assert world.cards.released == ["GPU-1"]
        with pytest.raises(DriverRefusedError) as unknown:
            await driver.release("gpu9")
        assert unknown.value.answer_code == "no_gpu"

"""What ended engines were at: kept once, given once, and never in the way of a switch."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge_agent.clock import SystemClock
from edge_agent.host import moves
from edge_agent.host.errors import RefusedError
from edge_agent.host.moves import Mover
from edge_agent.host.saved_states import SavedStates
from edge_agent.workloads.engine import (
    EngineCapabilities,
    EngineSpec,
    EngineState,
    PauseMode,
    Receipt,
    Strategy,
)
from edge_agent.workloads.engines.simulated import SimulatedEngine, SimulatedMachine
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.switching.saved import BODY_BYTES_MAX, Drop, SavedUse

SPEC = EngineSpec(engine_id="m0", gpu="g0", argv=("miner",))
HOUR_NS = 3_600 * 10**9


class Folder:
    """A folder of states whose clock and boot the test sets."""

    def __init__(self, path: Path) -> None:
        self.path = path / "saved"
        self.now_ns = HOUR_NS
        self.boot_id = "boot"

    def open(self) -> SavedStates:
        return SavedStates(self.path, boot_id=self.boot_id, now_ns=lambda: self.now_ns)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_state_is_given_once_also_by_the_next_host(folder: Folder) -> None:
    assert folder.open().keep(SPEC, b"ranges") is SavedUse.KEPT
    again = folder.open()
    given = again.take(SPEC)
    assert isinstance(given, Path)
    assert given.read_bytes() == b"ranges"
    assert again.take(SPEC) is None
    assert folder.files() == ["m0.given"]


def test_what_is_not_given_is_counted_by_its_reason_and_gone(folder: Folder) -> None:
    states = folder.open()
    states.keep(SPEC, b"ranges")
    folder.now_ns += 25 * HOUR_NS
    assert states.take(SPEC) is Drop.STALE
    states.keep(SPEC, b"ranges")
    assert states.take(replace(SPEC, argv=("other",))) is Drop.FOREIGN
    states.keep(SPEC, b"ranges")
    folder.boot_id = "another"
    after_a_reboot = folder.open()
    assert after_a_reboot.take(SPEC) is Drop.BOOT
    path = folder.path / "m0.saved"
    path.write_bytes(b"half of it")
    assert states.take(SPEC) is Drop.TORN
    path.write_bytes(bytes(10 * BODY_BYTES_MAX))
    assert states.take(SPEC) is Drop.OVERSIZED
    assert states.counts == {"kept": 3, "stale": 1, "foreign": 1, "torn": 1, "oversized": 1}
    assert after_a_reboot.counts == {"boot": 1}
    assert folder.files() == []


def test_one_state_for_each_engine_and_no_strays(folder: Folder) -> None:
    states = folder.open()
    for body in (b"one", b"two"):
        states.keep(SPEC, body)
    states.keep(replace(SPEC, engine_id="gone"), b"of an engine that the config has no more")
    (folder.path / "m0.new").write_bytes(b"half")
    assert folder.files() == ["gone.saved", "m0.new", "m0.saved"]
    states.tidy(["m0"])
    assert folder.files() == ["m0.saved"]
    assert (states.counts["foreign"], states.counts["torn"]) == (1, 1)
    given = states.take(SPEC)
    assert isinstance(given, Path)
    assert given.read_bytes() == b"two"


def test_a_state_that_is_too_large_or_finds_no_disk_leaves_no_older_one(folder: Folder) -> None:
    states = folder.open()
    states.keep(SPEC, b"old")
    assert states.keep(SPEC, bytes(BODY_BYTES_MAX + 1)) is SavedUse.LOST
    assert states.take(SPEC) is None
    states.keep(SPEC, b"old")
    (folder.path / "m0.new").mkdir()  # what cannot be written, as of a full disk
    assert states.keep(SPEC, b"new") is SavedUse.LOST
    assert states.take(SPEC) is None
    assert states.counts == {"kept": 2, "lost": 2}


class Keeper(SimulatedEngine):
    """A miner with a state; ``fault`` is what its snapshot does wrong."""

    def __init__(self, machine: SimulatedMachine) -> None:
        super().__init__(SPEC, machine, mines=True)
        self.fault = ""
        self.body = b"ranges"
        self.given: bytes | None = None
        self.job_is_over = False

    def capabilities(self) -> EngineCapabilities:
        return replace(super().capabilities(), keeps_state=True)

    async def snapshot(self, deadline_s: float) -> bytes:
        self.calls.append("snapshot")
        match self.fault:
            case "hangs":
                await asyncio.Event().wait()
            case "refuses":
                raise DriverRefusedError("not_api", "/snapshot")
            case "silent":
                raise DriverUnavailableError("/snapshot")
        return self.body

    def restore(self, state: Path) -> None:
        self.given = state.read_bytes()

    async def resume(self, deadline_s: float) -> Receipt:
        receipt = await super().resume(deadline_s)
        went_on = None if self.given is None else not self.job_is_over
        return replace(receipt, went_on=went_on)


def _keeper(folder: Folder, *, state: EngineState = EngineState.ACTIVE) -> tuple[Mover, Keeper]:
    machine = SimulatedMachine(SystemClock())
    engine = Keeper(machine)
    machine.put(SPEC, state)
    return Mover(engine, Strategy.RESTART, act_s=1.0, grace_s=0.1, states=folder.open()), engine


@pytest.mark.parametrize(("job_is_over", "said"), [(False, "used"), (True, "anew")])
async def test_an_engine_that_restarts_gets_what_it_was_at(
    folder: Folder,
    job_is_over: bool,  # noqa: FBT001 - a case
    said: str,
) -> None:
    mover, engine = _keeper(folder)
    await mover.off(PauseMode.KEEP)
    assert (mover.saved, engine.calls) == (SavedUse.KEPT, ["snapshot", "stop"])
    engine.job_is_over = job_is_over
    await mover.to_work()
    assert (engine.given, mover.saved) == (b"ranges", said)


@pytest.mark.parametrize("fault", ["hangs", "refuses", "silent"])
async def test_a_snapshot_that_fails_costs_no_switch_and_little_time(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(moves, "SAVE_S", 0.05)
    mover, engine = _keeper(folder)
    engine.fault = fault
    async with asyncio.timeout(1.0):
        await mover.off(PauseMode.KEEP)
    assert mover.saved is SavedUse.LOST
    assert (await mover.look()).state is EngineState.ABSENT
    await mover.to_work()
    told: list[object] = [engine.given, mover.saved]
    assert told == [None, None]


async def test_one_that_does_not_obey_is_ended_with_its_state_while_there_is_time(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, engine = _keeper(folder)
    mover.strategy = Strategy.RESIDENT_GATE

    async def pause(mode: PauseMode, deadline_s: float) -> Receipt:
        del mode, deadline_s
        raise DriverRefusedError("no_effect", "it hashes on")

    monkeypatch.setattr(engine, "pause", pause)
    await mover.off(PauseMode.KEEP)
    assert (mover.saved, engine.calls) == (SavedUse.KEPT, ["snapshot", "stop"])


async def test_one_that_used_up_the_time_of_its_act_is_ended_without(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, engine = _keeper(folder)
    mover.strategy = Strategy.RESIDENT_GATE
    mover._act_s = 0.02

    async def pause(mode: PauseMode, deadline_s: float) -> Receipt:
        del mode
        await asyncio.sleep(2 * deadline_s)
        raise DriverUnavailableError("pause: no answer")

    monkeypatch.setattr(engine, "pause", pause)
    await mover.off(PauseMode.KEEP)
    assert (mover.saved, engine.calls) == (SavedUse.LOST, ["stop"])


async def test_what_did_not_come_to_work_is_not_gone_on_from(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, engine = _keeper(folder)
    await mover.off(PauseMode.KEEP)

    async def resume(deadline_s: float) -> Receipt:
        del deadline_s
        raise DriverRefusedError("wrong_output", "its nonce proves nothing")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "resume", resume)
        with pytest.raises(RefusedError):
            await mover.to_work()
        assert engine.given == b"ranges"
        await mover.off(PauseMode.KEEP)
    assert mover.saved is SavedUse.LOST
    engine.given = None
    await mover.to_work()
    assert engine.given is None, "it may be that state that it fails of"


async def test_a_state_that_is_not_given_is_told_by_the_switch(folder: Folder) -> None:
    mover, engine = _keeper(folder)
    await mover.off(PauseMode.KEEP)
    folder.now_ns += 25 * HOUR_NS
    await mover.to_work()
    assert (engine.given, mover.saved) == (None, SavedUse.DROPPED)


async def test_nothing_to_save_is_no_loss_and_without_states_nobody_is_asked(
    folder: Folder,
) -> None:
    mover, engine = _keeper(folder)
    engine.body = b""
    await mover.off(PauseMode.KEEP)
    assert (mover.saved, folder.files()) == (None, [])
    machine = SimulatedMachine(SystemClock())
    machine.put(SPEC, EngineState.ACTIVE)
    plain = SimulatedEngine(SPEC, machine, mines=True)
    other = Mover(plain, Strategy.RESTART, act_s=1.0, grace_s=0.1, states=folder.open())
    await other.off(PauseMode.KEEP)
    assert (other.saved, plain.calls) == (None, ["stop"])

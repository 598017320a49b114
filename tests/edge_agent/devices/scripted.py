"""A scripted bridge and a clock on the loop, for tests in virtual time."""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from edge_agent.devices.ports import AsicNameplate
from firmware_bridges.base import (
    MinerState,
    ReadDetail,
    Reading,
    WorkMode,
    WriteResult,
    WriteState,
)
from firmware_bridges.commands import Command, Locate, Reboot, RestartMining
from firmware_bridges.errors import BridgeError, BridgeTimeoutError
from firmware_bridges.sheet import Capability
from simulators.virtual_loop import SimClock, VirtualTimeLoop

S21 = AsicNameplate(hashrate_ths=200.0, power_w=3_500.0, sleep_power_w=20.0)
OK = WriteResult(state=WriteState.ACKNOWLEDGED, code="M000", detail="OK!")
T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on a loop whose clock jumps."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def loop_clock() -> SimClock:
    """Give a host clock that runs with the running loop."""
    return SimClock(asyncio.get_running_loop().time, datetime(2026, 1, 1, tzinfo=UTC))


class ScriptedMiner:
    """A miner with settable manners.

    It sleeps `stop_s` and hashes `warm_up_s` after it was told so.
    """

    def __init__(self, mode: WorkMode = WorkMode.NORMAL) -> None:
        self.told: WorkMode | None = mode
        self.writes: list[WorkMode] = []
        self.reads = self.full_reads = 0
        self.open = self.most_open = 0
        self.answer = OK
        self.write_takes_s = 0.0
        self.read_takes_s = 0.01
        self.stop_s = 3.0
        self.warm_up_s = 60.0
        self.obeys = True
        self.gives_power = True
        self.read_error: BridgeError | None = None
        self.mode_error: BridgeError | None = None
        self.effect_within_s: float | None = None
        self.commands: list[Command] = []
        self.light = False
        self.family_name = "scripted"
        self._since_s = -1e9
        self._was_hashing = mode is not WorkMode.SLEEP

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def hashing(self) -> bool:
        in_mode_s = self._now_s() - self._since_s
        if self.told is WorkMode.SLEEP and self.obeys:
            return self._was_hashing and in_mode_s < self.stop_s
        return in_mode_s >= self.warm_up_s or not self.obeys

    async def read(self, detail: ReadDetail) -> Reading:
        self.reads += 1
        self.full_reads += detail is ReadDetail.FULL
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self.read_takes_s)
        finally:
            self.open -= 1
        if self.read_error is not None:
            raise self.read_error
        hashing = self.hashing()
        return Reading(
            address="10.0.0.1",
            hashrate_ths=S21.hashrate_ths if hashing else 0.0,
            power_w=(S21.power_w if hashing else S21.sleep_power_w) if self.gives_power else None,
            state=MinerState.MINING if hashing else MinerState.ASLEEP,
            is_mining=hashing,
            board_temp_c_max=60.0,
            fault_light=self.light,
            configured_mode=self.told,
            uptime_s=int(self._now_s() - self._since_s) if self._since_s > 0 else 90_000,
        )

    def effect_s(self, capability: Capability) -> float | None:
        return self.effect_within_s

    async def write(self, command: Command) -> WriteResult:
        self.commands.append(command)
        await asyncio.sleep(self.write_takes_s)
        if self.obeys and self.answer.state is not WriteState.REFUSED:
            if isinstance(command, Locate):
                self.light = command.on
            elif isinstance(command, Reboot | RestartMining):
                self._since_s = self._now_s()
        return self.answer

    async def mode(self) -> WorkMode | None:
        if self.mode_error is not None:
            raise self.mode_error
        return self.told

    async def set_mode(self, mode: WorkMode) -> WriteResult:
        self.writes.append(mode)
        if self.answer.state is not WriteState.REFUSED:
            self._was_hashing = self.hashing()
            self.told = mode
            self._since_s = self._now_s()
        await asyncio.sleep(self.write_takes_s)
        return self.answer


def silence() -> BridgeError:
    """Give the error of a device that does not connect."""
    return BridgeTimeoutError("10.0.0.1:80", "no connection in 1.5 s")

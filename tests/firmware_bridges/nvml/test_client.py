"""The parent against children that no real process can be made to be."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from firmware_bridges.nvml.child import ChildOptions, boottime_ns
from firmware_bridges.nvml.client import Telemetry
from firmware_bridges.nvml.pipe import pack
from firmware_bridges.nvml.samples import EventKind, GpuEvent, GpuInfo, GpuSample, Hello
from firmware_bridges.nvml.spawn import ChildProcess
from firmware_bridges.nvml.states import Bounds, GpuState

DEADLINE_S = 10.0
QUICK = Bounds(start_s=0.05, retry_s_min=0.01, retry_s_max=0.05, beat_s=0.3, dying_max=3)


class FakeChild:
    """A child in memory: says what it is given, and dies when it is let."""

    def __init__(self, *, obeys: bool = True) -> None:
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._dead = asyncio.Event()
        self._obeys = obeys
        self.kills = 0
        self.closed = False

    def say(self, data: bytes) -> None:
        self._said.put_nowait(data)

    def die(self) -> None:
        self._dead.set()
        self._said.put_nowait(b"")

    async def read(self) -> bytes:
        return await self._said.get()

    def write(self, data: bytes) -> None:
        del data

    def kill(self) -> None:
        self.kills += 1
        if self._obeys:
            self.die()

    async def wait(self) -> int:
        await self._dead.wait()
        return -9

    def close(self) -> None:
        self.closed = True


class FakeSpawn:
    """Gives the children that `make` makes, and fails as often as it is told."""

    def __init__(self, make: Callable[[], FakeChild], failures: int = 0) -> None:
        self._make = make
        self._failures = failures
        self.children: list[FakeChild] = []

    async def __call__(self, options: ChildOptions) -> ChildProcess:
        if self._failures:
            self._failures -= 1
            raise BlockingIOError("no more processes")
        self.children.append(self._make())
        return self.children[-1]


@asynccontextmanager
async def running(spawn: FakeSpawn) -> AsyncIterator[Telemetry]:
    telemetry = Telemetry(spawn, bounds=QUICK)
    task = asyncio.create_task(telemetry.run())
    try:
        yield telemetry
    finally:
        for child in spawn.children:
            child.die()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_true():  # noqa: ASYNC110 - the client tells nobody
            await asyncio.sleep(0.005)


def hello() -> bytes:
    return pack(Hello(pid=1, driver="580", gpus=1))


def row() -> bytes:
    info = GpuInfo(uuid="GPU-1", index=0)
    return pack(GpuSample(info=info, began_ns=boottime_ns(), at_ns=boottime_ns()))


def xid(number: int) -> bytes:
    return pack(GpuEvent(seq=number, at_ns=1, kind=EventKind.XID, type_bits=8, number=number))


async def test_children_that_cannot_be_killed_are_few() -> None:
    spawn = FakeSpawn(lambda: FakeChild(obeys=False))
    async with running(spawn) as telemetry:
        # none of them says a word; each is killed, and stays
        await until(lambda: len(telemetry._dying) == QUICK.dying_max)
        assert len(spawn.children) == QUICK.dying_max
        assert all(child.kills for child in spawn.children)
        spawn.children[0].die()
        await until(lambda: len(spawn.children) == QUICK.dying_max + 1)
        assert spawn.children[0].closed


async def test_a_child_that_speaks_no_sense_is_replaced() -> None:
    spawn = FakeSpawn(FakeChild)
    async with running(spawn) as telemetry:
        await until(lambda: len(spawn.children) == 1)
        spawn.children[0].say(hello() + b"\x00\x00\x00\x05nonsense")
        await until(lambda: len(spawn.children) == 2)
        spawn.children[1].say(hello() + row())
        await until(lambda: [view.state for view in telemetry.view()] == [GpuState.LIVE])


async def test_a_child_that_cannot_be_started_is_tried_again() -> None:
    spawn = FakeSpawn(FakeChild, failures=3)
    async with running(spawn) as telemetry:
        await until(lambda: len(spawn.children) == 1)
        spawn.children[0].say(hello() + row())
        await until(lambda: [view.state for view in telemetry.view()] == [GpuState.LIVE])
        assert len(telemetry._dying) <= 1


async def test_events_that_were_written_before_the_end_are_told_after_it() -> None:
    spawn = FakeSpawn(FakeChild)
    async with running(spawn) as telemetry:
        await until(lambda: len(spawn.children) == 1)
        first = spawn.children[0]
        first.say(hello() + xid(1))
        first.say(xid(2) + xid(3)[:7])
        first.die()
        await until(lambda: first.closed)
        assert [event.number for event in telemetry.take_events()] == [1, 2]
        assert telemetry.take_events() == ()


async def test_events_that_nobody_takes_are_bounded_and_counted() -> None:
    spawn = FakeSpawn(FakeChild)
    async with running(spawn) as telemetry:
        await until(lambda: len(spawn.children) == 1)
        spawn.children[0].say(hello() + b"".join(xid(number) for number in range(4_100)))
        await until(lambda: telemetry.events_lost == 4)
        taken = telemetry.take_events()
        assert (len(taken), taken[0].number, taken[-1].number) == (4_096, 4, 4_099)

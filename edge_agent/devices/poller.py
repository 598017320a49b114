"""Reads every ASIC once per tick, spread evenly over it.

Even spreading keeps the load flat: 15,000 miners in a 5 s tick are 30 every 10 ms, not a burst.
What changes is asked every tick, the rest (pools, versions, errors) once a minute, each device in
its own tick of the minute.
A device still being read when its turn comes again is left out of that turn, and one whose breaker
is open is not asked at all; both are counted. Nothing here waits for a slow device.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from edge_agent.devices.breaker import (
    CLOSED,
    BreakerPolicy,
    after_answer,
    after_failure,
    allows,
)
from edge_agent.devices.ports import AsicBridge, AsicReadings
from edge_agent.devices.readings import ReadingColumns
from edge_agent.ports import Clock
from firmware_bridges.base import ReadDetail, Reading
from firmware_bridges.errors import BridgeError
from firmware_bridges.sheet import Capability

_NS = 1_000_000_000
_ERROR_CHARS_MAX = 300


class PollSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to poll.

    Args:
        tick_s: Every device is asked once in this time.
        slot_s: Devices are started in groups this far apart.
        slow_s: Everything is asked once in this time.
        breaker: For silent devices.
    """

    tick_s: float = 5.0
    slot_s: float = 0.05
    slow_s: float = 60.0
    breaker: BreakerPolicy = BreakerPolicy()


class PolledAsic(msgspec.Struct, frozen=True, eq=False):
    """One device of the index."""

    device_id: str
    bridge: AsicBridge


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """The last that is known of one device.

    Args:
        reading: The last good reading, however old.
        measured_ns: Boottime of it.
        error: Why it could not be read since, with device, command and first bytes; empty = it
            answered when it was last asked.
    """

    reading: Reading | None = None
    measured_ns: int = -1
    error: str = ""

    def age_s(self, now_ns: int) -> float | None:
        """Give the age of the reading; `None` = there is none."""
        return None if self.reading is None else (now_ns - self.measured_ns) / _NS


class PollCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What the poller did since its start.

    Args:
        read: Readings taken.
        failed: Readings that failed, by stable code, sorted.
        left_open: Turns left out because a breaker was open.
        left_busy: Turns left out because the last reading was still under way.
        ticks: Whole ticks.
        ticks_late: Ticks that began late because the loop was busy.
    """

    read: int
    failed: tuple[tuple[str, int], ...]
    left_open: int
    left_busy: int
    ticks: int
    ticks_late: int


class AsicPoller:
    """Polls the ASICs of a site.

    Args:
        devices: In the order of the site's index.
        clock: For the stamps.
        settings: How to poll.
        on_reading: Hears of every good reading: place in the index, reading, boottime.
    """

    def __init__(
        self,
        devices: Sequence[PolledAsic],
        *,
        clock: Clock,
        settings: PollSettings,
        on_reading: Callable[[int, Reading, int], None] = lambda _index, _reading, _now_ns: None,
    ) -> None:
        self._devices = tuple(devices)
        self._clock = clock
        self._settings = settings
        self._columns = ReadingColumns([device.device_id for device in devices])
        self._breakers = [CLOSED] * len(self._devices)
        self._busy = [False] * len(self._devices)
        self._known = [Known()] * len(self._devices)
        self._slow_ticks = max(1, round(settings.slow_s / settings.tick_s))
        # A device whose turn for everything was lost asks for it in the next tick.
        self._owes_all = [False] * len(self._devices)
        self._on_reading = on_reading
        self._tick_ended = asyncio.Event()
        self._failed: dict[str, int] = {}
        self._read = self._left_open = self._left_busy = self._ticks = self._ticks_late = 0

    async def run(self) -> None:
        """Poll until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as readers:
            begin = loop.time()
            while True:
                await self._tick(readers, begin)
                self._end_tick()
                begin += self._settings.tick_s
                if loop.time() > begin + self._settings.tick_s:
                    # More than a tick behind: start anew instead of hurrying after lost ticks.
                    self._ticks_late += 1
                    begin = loop.time()

    async def poll_once(self) -> AsicReadings:
        """Poll every device once, spread over one tick, and wait for all answers."""
        async with asyncio.TaskGroup() as readers:
            await self._tick(readers, asyncio.get_running_loop().time())
        self._end_tick()
        return self.batch()

    async def next_batch(self) -> AsicReadings:
        """Wait for the end of the running tick and give its values: one batch per tick."""
        await self._tick_ended.wait()
        return self.batch()

    def batch(self) -> AsicReadings:
        """Give the newest values of all devices."""
        return self._columns.batch(self._clock.boottime_ns())

    def known(self, index: int) -> Known:
        """Give the last that is known of one device."""
        return self._known[index]

    def counts(self) -> PollCounts:
        """Give what was done so far."""
        return PollCounts(
            read=self._read,
            failed=tuple(sorted(self._failed.items())),
            left_open=self._left_open,
            left_busy=self._left_busy,
            ticks=self._ticks,
            ticks_late=self._ticks_late,
        )

    async def _tick(self, readers: asyncio.TaskGroup, begin: float) -> None:
        """Start one reading of each device, group by group; returns at the end of the tick."""
        loop = asyncio.get_running_loop()
        count = len(self._devices)
        slots = max(1, round(self._settings.tick_s / self._settings.slot_s))
        for slot in range(slots):
            await asyncio.sleep(max(0.0, begin + slot * self._settings.slot_s - loop.time()))
            for index in range(slot * count // slots, (slot + 1) * count // slots):
                self._start(readers, index)
        await asyncio.sleep(max(0.0, begin + self._settings.tick_s - loop.time()))

    def _end_tick(self) -> None:
        """Wake those who wait for this tick; later comers wait for the next."""
        self._ticks += 1
        self._tick_ended.set()
        self._tick_ended = asyncio.Event()

    def _start(self, readers: asyncio.TaskGroup, index: int) -> None:
        if self._ticks % self._slow_ticks == index % self._slow_ticks:
            self._owes_all[index] = True
        if self._busy[index]:
            self._left_busy += 1
        elif not allows(self._breakers[index], self._clock.boottime_ns()):
            self._left_open += 1
        else:
            self._busy[index] = True
            name = f"asic-read-{self._devices[index].device_id}"
            readers.create_task(self._read_one(index), name=name)

    async def _read_one(self, index: int) -> None:
        # One that did not answer last time is asked for the least: that costs one deadline.
        full = self._owes_all[index] and not self._known[index].error
        try:
            reading = await self._devices[index].bridge.read(
                ReadDetail.FULL if full else ReadDetail.FAST
            )
        except BridgeError as exc:
            self._lost(index, exc)
        else:
            now_ns = self._clock.boottime_ns()
            self._read += 1
            bridge = self._devices[index].bridge
            tells_mode = bridge.effect_s(Capability.POWER_MODE) is not None
            self._columns.put(index, reading, now_ns, tells_mode=tells_mode)
            self._known[index] = Known(reading=reading, measured_ns=now_ns)
            self._breakers[index] = after_answer(self._breakers[index])
            if full:
                self._owes_all[index] = False
            self._on_reading(index, reading, now_ns)
        finally:
            self._busy[index] = False

    def _lost(self, index: int, exc: BridgeError) -> None:
        self._failed[exc.code] = self._failed.get(exc.code, 0) + 1
        self._columns.lose(index)
        last = self._known[index]
        self._known[index] = Known(
            reading=last.reading,
            measured_ns=last.measured_ns,
            error=str(exc)[:_ERROR_CHARS_MAX],
        )
        self._breakers[index] = after_failure(
            self._breakers[index], self._settings.breaker, self._clock.boottime_ns(), index
        )

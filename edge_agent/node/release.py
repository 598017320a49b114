"""Hands an operator's word on the fence of a GPU on to the workload host.

The word names one fence, by what was seen and since when: what came after it nobody has looked at.
It is desired state that each beat of the agent says, and it lapses: a fence whose cause goes away
an hour later needs another word. A host that knows of no release tells no fence, and is not asked.
"""

import asyncio
import logging

from msgspec import structs

from edge_agent.node.devices import NS_PER_S, DeviceBook
from edge_agent.ports import Clock
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.ports import WorkloadDriver
from protocol.node import RELEASE_LAPSES_S, GpuRelease, GpuSample

logger = logging.getLogger(__name__)


class ReleaseDesk:
    """What is to be released, as the agent last said."""

    def __init__(self, book: DeviceBook, driver: WorkloadDriver, clock: Clock) -> None:
        self._book = book
        self._driver = driver
        self._clock = clock
        self._words: tuple[GpuRelease, ...] = ()
        self._until_ns = 0
        self._one = asyncio.Lock()
        self._refused: dict[str, tuple[GpuRelease, str]] = {}

    def take(self, words: tuple[GpuRelease, ...]) -> None:
        """Take the agent's word: all that is to be released now."""
        self._words = words
        self._refused = {name: row for name, row in self._refused.items() if row[0] in words}
        self._until_ns = self._clock.boottime_ns() + round(RELEASE_LAPSES_S * NS_PER_S)

    @property
    def due(self) -> tuple[str, ...]:
        """Give the GPUs, by the host's names, whose fence is the one that a word names."""
        now_ns = self._clock.boottime_ns()
        if now_ns >= self._until_ns or self._one.locked():
            return ()
        return tuple(gpu for word in self._words if (gpu := self._gpu(word, now_ns)) is not None)

    async def tell(self) -> None:
        """Have the host release what is due; what fails is tried again while the word holds."""
        gpus = self.due
        async with self._one:
            for gpu in gpus:
                await self._release(gpu)

    def told(self, samples: tuple[GpuSample, ...]) -> tuple[GpuSample, ...]:
        """Add to what is told of devices why a fence that a word named is still there."""
        return tuple(
            structs.replace(one, unreleased=self._why(one)) if one.fence is not None else one
            for one in samples
        )

    def _why(self, sample: GpuSample) -> str:
        word, why = self._refused.get(sample.device_id, (None, ""))
        return why if word in self._words else ""

    async def _release(self, gpu: str) -> None:
        words = {slot.device_id for slot in self._book.slots.values() if slot.gpu == gpu}
        word = next((one for one in self._words if one.device_id in words), None)
        try:
            await self._driver.release(gpu)
        except (DriverRefusedError, DriverUnavailableError) as exc:
            logger.warning("gpu=%s is not released: %s", gpu, exc)
            # Of one that did not answer nobody knows: it is asked again while the word holds.
            if word is not None and isinstance(exc, DriverRefusedError):
                self._refused[word.device_id] = (word, str(exc)[:500])
        else:
            logger.warning("gpu=%s is released by an operator", gpu)

    def _gpu(self, word: GpuRelease, now_ns: int) -> str | None:
        slot = self._book.slots.get(word.device_id)
        sample = None if slot is None else slot.fresh(now_ns)
        fence = None if sample is None else sample.fence
        if slot is None or fence is None or fence.stands:
            return None
        return slot.gpu if (fence.code, fence.since) == (word.code, word.since) else None

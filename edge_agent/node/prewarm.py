"""Hands on to the workload host which engines are to be held ready, and tells how that stands.

What is wanted is desired state: each beat of the agent says all of it. It lapses here when no beat
comes, and at the host when this node is gone. Nothing of it is stored: a node that starts anew is
told again. No device is asked for anything here, so nothing of it can fence one.
"""

import asyncio
import logging

from edge_agent.node.devices import NS_PER_S, DeviceBook, Slot
from edge_agent.ports import Clock
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError
from edge_agent.workloads.ports import Ready, Wish, WorkloadDriver
from protocol.node import PREPARE_LAPSES_S, Prepare, Prepared, PrepareStage
from protocol.resource import Activity

logger = logging.getLogger(__name__)

# The node says it each second; a host without its node lets go after so long.
FOR_S = 60.0
# What a host answers that knows of none.
_UNKNOWN_OP = "bad_request"


class PrewarmDesk:
    """What is wanted, and what the host says of it."""

    def __init__(self, book: DeviceBook, driver: WorkloadDriver, clock: Clock) -> None:
        self._book = book
        self._driver = driver
        self._clock = clock
        self._wanted: tuple[Prepare, ...] = ()
        self._until_ns = 0
        self._said: dict[str, Ready] = {}
        self._were_ready: set[tuple[str, Activity]] = set()
        self._beaten = False
        self._heard = False
        self._unable: str | None = None
        self._told_any = False
        self._one = asyncio.Lock()

    def take(self, wanted: tuple[Prepare, ...]) -> None:
        """Take the agent's word: all that is wanted now."""
        self._wanted, self._beaten = wanted, True
        self._were_ready &= {(one.device_id, one.enters) for one in wanted}
        self._until_ns = self._clock.boottime_ns() + round(PREPARE_LAPSES_S * NS_PER_S)

    @property
    def due(self) -> bool:
        """Tell whether the host is to be told now: while anything is wanted, or there still."""
        return bool(self._live() or self._told_any) and not self._one.locked()

    async def tell(self) -> None:
        """Tell the host all that is wanted, and take how it stands."""
        async with self._one:
            wishes, info = self._wishes(), self._driver.info()
            self._told_any = self._told_any or bool(wishes)
            if info is None:
                self._said, self._heard = {}, False
                return
            if info.process_id == self._unable:
                self._hear((), told_any=False)
                return
            try:
                ready = await self._driver.prewarm(wishes, FOR_S)
            except DriverRefusedError as exc:
                # A host that does not know how is not asked again; it lets go by itself.
                self._unable = info.process_id if exc.answer_code == _UNKNOWN_OP else None
                self._hear((), told_any=False)
                logger.warning("the workload host holds no engine ready: %s", exc)
            except DriverUnavailableError:
                self._said, self._heard = {}, False
            else:
                self._hear(ready, told_any=bool(wishes or ready))

    @property
    def unheard(self) -> bool:
        """Tell whether this node's silence says nothing: it has not come to know, or not lately."""
        asking = bool(self._live() or self._told_any)
        return not self._beaten or (asking and not self._heard)

    def _hear(self, ready: tuple[Ready, ...], *, told_any: bool) -> None:
        self._said, self._told_any, self._heard = {one.gpu: one for one in ready}, told_any, True
        for slot in self._book.slots.values():
            said = self._said.get(slot.gpu)
            if said is not None and said.stage is PrepareStage.PREPARED:
                self._were_ready.add((slot.device_id, said.enters))

    def prepared(self) -> tuple[Prepared, ...]:
        """Give how all stands that is wanted, or is not gone yet, as far as it is known."""
        live = self._live()
        rows = (self._row(one) for one in live)
        wanted = {one.device_id for one in live}
        left = (
            _told(slot.device_id, self._said[slot.gpu])
            for slot in self._book.slots.values()
            if slot.gpu in self._said and slot.device_id not in wanted
        )
        return (*(row for row in rows if row is not None), *left)

    def _live(self) -> tuple[Prepare, ...]:
        return self._wanted if self._clock.boottime_ns() < self._until_ns else ()

    def _row(self, one: Prepare) -> Prepared | None:
        slot = self._book.slots.get(one.device_id)
        info = self._driver.info()
        if slot is None:
            return _refused(one, "unknown_device")
        if info is not None and info.process_id == self._unable:
            return _refused(one, "unsupported")
        said = self._said.get(slot.gpu)
        if said is None or said.enters is not one.enters:
            return None
        return _told(one.device_id, said)

    def _wishes(self) -> tuple[Wish, ...]:
        now_ns = self._clock.boottime_ns()
        slots = ((one, self._book.slots.get(one.device_id)) for one in self._live())
        return tuple(
            Wish(
                gpu=slot.gpu,
                enters=one.enters,
                probability=one.probability,
                within_s=one.within_s,
                earns_usd_per_h=one.earns_usd_per_h,
                energy_usd_per_mwh=one.energy_usd_per_mwh,
                draw_w=one.draw_w,
                why=one.why[:200],
                begin=not _busy(slot, now_ns),
                anew=one.anew and (one.device_id, one.enters) not in self._were_ready,
            )
            for one, slot in slots
            if slot is not None
        )


def _busy(slot: Slot, now_ns: int) -> bool:
    """Tell whether a switch or a safety act of the device is under way."""
    return slot.lock.locked() or slot.acting or now_ns < slot.held_until_ns


def _told(device_id: str, said: Ready) -> Prepared:
    return Prepared(
        device_id=device_id,
        enters=said.enters,
        stage=said.stage,
        code=said.code,
        detail=said.detail,
    )


def _refused(one: Prepare, code: str) -> Prepared:
    return Prepared(
        device_id=one.device_id, enters=one.enters, stage=PrepareStage.REFUSED, code=code
    )

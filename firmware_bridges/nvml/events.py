"""Events of the driver: each is taken from the event set once and told once.

The cards' own threads register them, each after its first sweep, so that a card that hangs while
it is registered holds up nobody else.
"""

import threading
from collections.abc import Callable
from typing import Any, Final

from firmware_bridges.nvml.errors import NvmlCallError, NvmlError, NvmlGoneError
from firmware_bridges.nvml.library import ABSENT, TIMEOUT, Handle, Nvml
from firmware_bridges.nvml.outbox import Outbox
from firmware_bridges.nvml.reader import address_of
from firmware_bridges.nvml.samples import EventKind, GpuEvent

# Event types of nvml.h, version 13.
XID: Final = 0x8
_KIND_OF: Final = {
    0x1: EventKind.ECC_SINGLE,
    0x2: EventKind.ECC_DOUBLE,
    XID: EventKind.XID,
    0x4000: EventKind.UNAVAILABLE,
    0x8000: EventKind.RECOVERY_ACTION,
}
# Single-bit errors are corrected and come in thousands: their counters are read in each sweep.
WANTED: Final = 0x2 | XID | 0x4000 | 0x8000
WAIT_MS: Final = 500
# What breaks the wait (a lost card does) would break it at once again.
PAUSE_S: Final = 1.0
_NO_INSTANCE: Final = 0xFFFF_FFFF


class EventWatch:
    """The thread that waits for events.

    Args:
        stop: ends the thread. gone: called with the error when the driver went away.
    """

    def __init__(
        self,
        nvml: Nvml,
        outbox: Outbox,
        now_ns: Callable[[], int],
        *,
        stop: threading.Event,
        gone: Callable[[NvmlGoneError], None],
    ) -> None:
        self._nvml = nvml
        self._outbox = outbox
        self._now_ns = now_ns
        self._stop = stop
        self._gone = gone
        self._seq = 0
        self._uuids: dict[int | None, str] = {}
        self._set: object = None

    def open(self) -> bool:
        """Make the event set; False where the driver has none."""
        try:
            self._set = self._nvml.call("nvmlEventSetCreate")
        except NvmlCallError:
            return False
        return True

    def since_ns(self) -> int | None:
        """Give since when the thread is in its call; None: it is in none."""
        under_way = self._nvml.under_way
        return None if under_way is None else under_way[1]

    def register(self, nvml: Nvml, handle: Handle, uuid: str) -> None:
        """Have this card's events told; called by the card's own thread.

        Raises:
            NvmlError: the card is lost, or the driver is, or it failed for the moment.
        """
        if self._set is None:
            return
        try:
            supported = nvml.integer("nvmlDeviceGetSupportedEventTypes", handle)
            nvml.call("nvmlDeviceRegisterEvents", handle, supported & WANTED, self._set)
        except NvmlCallError as exc:
            if exc.nvml_code in ABSENT:
                return
            raise
        self._uuids[address_of(handle)] = uuid

    def run(self) -> None:
        """Wait for events until stopped."""
        while not self._stop.is_set():
            try:
                self._take()
            except NvmlGoneError as exc:
                self._gone(exc)
                return
            except NvmlError:
                self._stop.wait(PAUSE_S)

    def _take(self) -> None:
        try:
            data = self._nvml.call("nvmlEventSetWait_v2", self._set, WAIT_MS)
        except NvmlCallError as exc:
            if exc.nvml_code == TIMEOUT:
                return
            raise
        event = event_of(data, self._seq, self._now_ns(), self._uuids)
        self._seq += 1
        self._outbox.event(event)


def event_of(data: Any, seq: int, at_ns: int, uuids: dict[int | None, str]) -> GpuEvent:  # noqa: ANN401 - pynvml has no types
    """Give the event in an nvmlEventData_t."""
    bits = int(data.eventType)
    return GpuEvent(
        seq=seq,
        at_ns=at_ns,
        kind=_KIND_OF.get(bits, EventKind.OTHER),
        type_bits=bits,
        number=int(data.eventData),
        uuid=uuids.get(address_of(data.device)),
        gpu_instance=_instance(data.gpuInstanceId),
        compute_instance=_instance(data.computeInstanceId),
    )


def _instance(number: int) -> int | None:
    return None if number == _NO_INSTANCE else int(number)

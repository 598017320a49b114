"""Events of the driver: each is taken from the event set once and told once.

The cards' own threads register them, each after its first sweep, so that a card that hangs while
it is registered holds up nobody else.
"""

import sys
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
PAUSE_S_MAX: Final = 30.0
# One failure may pass; after this many in a row the set itself is broken.
FAILURES_MAX: Final = 2
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
        # sets that were given up while a card's thread may still have been registering with one
        self._retired: list[object] = []
        self._registering = 0
        self._guard = threading.Lock()
        self._failures = 0

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

    def knows(self, token: object) -> bool:
        """Tell whether the set that `register` gave is still the one that is waited on."""
        return token is self._set

    def register(self, nvml: Nvml, handle: Handle, uuid: str) -> object:
        """Have this card's events told; called by the card's own thread.

        Returns:
            What `knows` is asked with.

        Raises:
            NvmlError: the card is lost, or the driver is, or it failed for the moment.
        """
        with self._guard:
            events = self._set
            self._registering += 1
        try:
            self._uuids[address_of(handle)] = uuid
            supported = nvml.integer("nvmlDeviceGetSupportedEventTypes", handle)
            nvml.call("nvmlDeviceRegisterEvents", handle, supported & WANTED, events)
        except NvmlCallError as exc:
            if exc.nvml_code not in ABSENT:
                raise
        finally:
            with self._guard:
                self._registering -= 1
        return events

    def run(self) -> None:
        """Wait for events until stopped."""
        while not self._stop.is_set():
            try:
                self._take()
            except NvmlGoneError as exc:
                self._gone(exc)
                return
            except NvmlError:
                self._failures += 1
                if self._failures >= FAILURES_MAX:
                    self._renew()
                pause_s = PAUSE_S * (1 << min(self._failures - 1, 10))
                self._stop.wait(min(pause_s, PAUSE_S_MAX))

    def _renew(self) -> None:
        """Wait on a new set, with which every card that still answers registers by itself.

        A lost card in a set breaks each wait on it: the others' events would never be told.
        """
        try:
            fresh = self._nvml.call("nvmlEventSetCreate")
            with self._guard:
                self._retired.append(self._set)
                self._set = fresh
                free = [] if self._registering else self._retired
                self._retired = self._retired if self._registering else []
            for events in free:
                self._nvml.call("nvmlEventSetFree", events)
        except NvmlError as exc:
            print(f"telemetry child: event set: {exc}", file=sys.stderr)  # noqa: T201 - stderr is its log

    def _take(self) -> None:
        try:
            data: Any = self._nvml.call("nvmlEventSetWait_v2", self._set, WAIT_MS)
        except NvmlCallError as exc:
            if exc.nvml_code != TIMEOUT:
                raise
            self._failures = 0
            return
        self._failures = 0
        self._learn(data.device)
        event = event_of(data, self._seq, self._now_ns(), self._uuids)
        self._seq += 1
        self._outbox.event(event)

    def _learn(self, device: Handle) -> None:
        """Ask a card that was never registered by this handle for its name."""
        address = address_of(device)
        if address is None or address in self._uuids:
            return
        try:
            self._uuids[address] = self._nvml.text("nvmlDeviceGetUUID", device)
        except NvmlGoneError:
            raise
        except NvmlError:
            # the event is told without a name
            return


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

"""Cards are registered for their events, and again where that failed for the moment."""

import threading

import pytest

from firmware_bridges.nvml.child import boottime_ns
from firmware_bridges.nvml.errors import NvmlCallError, NvmlGoneError
from firmware_bridges.nvml.events import WANTED, EventWatch
from firmware_bridges.nvml.library import Nvml
from firmware_bridges.nvml.outbox import Outbox
from tests.fakes.nvml import FakeNvml

NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, UNKNOWN = 3, 4, 10, 999


@pytest.fixture
def watch(nvml: Nvml) -> EventWatch:
    def gone(error: NvmlGoneError) -> None:
        raise AssertionError(error)

    made = EventWatch(nvml, Outbox(), boottime_ns, stop=threading.Event(), gone=gone)
    assert made.open()
    return made


@pytest.mark.parametrize(
    "function", ["nvmlDeviceRegisterEvents", "nvmlDeviceGetSupportedEventTypes"]
)
@pytest.mark.parametrize("ret", [TIMEOUT, UNKNOWN])
def test_what_failed_for_the_moment_is_told_so_that_it_is_tried_again(
    fake: FakeNvml, nvml: Nvml, watch: EventWatch, function: str, ret: int
) -> None:
    handle = nvml.call("nvmlDeviceGetHandleByIndex", 1)
    fake.force(function, ret)
    with pytest.raises(NvmlCallError):
        watch.register(nvml, handle, fake.uuid(1))
    fake.release()
    watch.register(nvml, handle, fake.uuid(1))
    fake.event(1, 8, 79)
    watch._take()
    (event,) = watch._outbox.take(0.0)
    assert (getattr(event, "uuid", None), getattr(event, "number", None)) == (fake.uuid(1), 79)


@pytest.mark.parametrize("ret", [NOT_SUPPORTED, NO_PERMISSION])
def test_a_card_without_events_is_not_asked_for_ever(
    fake: FakeNvml, nvml: Nvml, watch: EventWatch, ret: int
) -> None:
    fake.force("nvmlDeviceRegisterEvents", ret)
    watch.register(nvml, nvml.call("nvmlDeviceGetHandleByIndex", 0), fake.uuid(0))


def test_a_driver_that_knows_fewer_events_is_asked_for_these(
    fake: FakeNvml, nvml: Nvml, watch: EventWatch
) -> None:
    # A driver of 535 knows neither GpuUnavailable nor GpuRecoveryAction.
    fake.gpu(0).event_types = 0x1 | 0x2 | 0x8
    assert WANTED & ~fake.gpu(0).event_types
    watch.register(nvml, nvml.call("nvmlDeviceGetHandleByIndex", 0), fake.uuid(0))
    fake.event(0, 8, 48)
    watch._take()
    (event,) = watch._outbox.take(0.0)
    assert getattr(event, "number", None) == 48

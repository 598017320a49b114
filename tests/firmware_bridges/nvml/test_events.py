"""Cards are registered for their events, and again where that failed for the moment."""

import threading

import pytest

from firmware_bridges.nvml.child import boottime_ns
from firmware_bridges.nvml.errors import NvmlCallError, NvmlGoneError, NvmlGpuLostError
from firmware_bridges.nvml.events import WANTED, EventWatch
from firmware_bridges.nvml.library import Nvml
from firmware_bridges.nvml.outbox import Outbox
from firmware_bridges.nvml.samples import GpuEvent
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


def test_a_lost_card_does_not_keep_the_others_events_back(
    fake: FakeNvml, nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firmware_bridges.nvml.events.PAUSE_S", 0.01)
    stop = threading.Event()
    outbox = Outbox()
    watch = EventWatch(
        Nvml(boottime_ns),
        outbox,
        boottime_ns,
        stop=stop,
        gone=lambda error: pytest.fail(str(error)),
    )
    assert watch.open()
    handles = [nvml.call("nvmlDeviceGetHandleByIndex", index) for index in range(2)]
    tokens = [watch.register(nvml, handles[index], fake.uuid(index)) for index in range(2)]
    assert all(watch.knows(token) for token in tokens)
    fake.state.lost_breaks_wait, fake.gpu(0).lost = 1, 1
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    deadline_ns = boottime_ns() + 20 * 10**9
    while watch.knows(tokens[1]) and boottime_ns() < deadline_ns:
        stop.wait(0.01)
    # what the threads of the cards do after their next sweep
    with pytest.raises(NvmlGpuLostError):
        watch.register(nvml, handles[0], fake.uuid(0))
    assert watch.knows(watch.register(nvml, handles[1], fake.uuid(1)))
    fake.event(1, 8, 48)
    told = [one for one in outbox.take(20.0) if isinstance(one, GpuEvent)]
    stop.set()
    thread.join(20.0)
    assert [(one.uuid, one.number) for one in told] == [(fake.uuid(1), 48)]


def test_an_event_by_a_handle_that_was_never_registered_is_told_by_the_cards_name(
    fake: FakeNvml, nvml: Nvml, watch: EventWatch
) -> None:
    watch.register(nvml, nvml.call("nvmlDeviceGetHandleByIndex", 2), fake.uuid(2))
    watch._uuids.clear()
    fake.event(2, 8, 31)
    fake.event(2, 8, 79)
    watch._take()
    watch._uuids.clear()
    fake.gpu(2).lost = 1
    watch._take()
    told = [getattr(event, "uuid", "") for event in watch._outbox.take(0.0)]
    assert told == [fake.uuid(2), None]

"""The shim itself: its state is the mirror's, and it gives what NVML gives."""

import ctypes
from pathlib import Path

import pytest

from firmware_bridges.nvml.errors import NvmlCallError
from firmware_bridges.nvml.library import Nvml
from tests.fakes.nvml import GPUS_MAX, FakeNvml, State, cards


def test_the_mirror_has_the_layout_of_the_library(library: Path) -> None:
    size = ctypes.CDLL(str(library)).hcp_state_bytes
    size.restype = ctypes.c_size_t
    assert ctypes.sizeof(State) == size()


def test_sixteen_cards_have_names_of_their_own(library: Path, tmp_path: Path) -> None:
    with cards(library, tmp_path, GPUS_MAX) as fake:
        assert len({fake.uuid(index) for index in range(GPUS_MAX)}) == 16


def test_pynvml_loaded_the_shim(fake: FakeNvml, nvml: Nvml) -> None:
    fake.state.driver = b"999.1"
    assert nvml.text("nvmlSystemGetDriverVersion") == "999.1"
    assert nvml.integer("nvmlDeviceGetCount") == 4


def test_an_argument_out_of_range_is_refused(fake: FakeNvml, nvml: Nvml) -> None:
    fake.state.setters_allowed = 1
    handle = nvml.call("nvmlDeviceGetHandleByIndex", 0)
    for call, *arguments in (
        ("nvmlDeviceGetHandleByIndex", 4),
        ("nvmlDeviceSetPowerManagementLimit", handle, 199_999),
        ("nvmlDeviceSetPowerManagementLimit", handle, 700_001),
        ("nvmlDeviceSetGpuLockedClocks", handle, 1_500, 1_400),
        ("nvmlDeviceSetGpuLockedClocks", handle, 210, 1_981),
        ("nvmlDeviceGetNvLinkState", handle, 18),
    ):
        with pytest.raises(NvmlCallError) as failed:
            nvml.call(str(call), *arguments)
        assert failed.value.nvml_code == 2


def test_an_event_is_given_once_and_then_the_wait_times_out(fake: FakeNvml, nvml: Nvml) -> None:
    handle = nvml.call("nvmlDeviceGetHandleByIndex", 1)
    fake.event(1, 8, 13)
    event_set = nvml.call("nvmlEventSetCreate")
    nvml.call("nvmlDeviceRegisterEvents", handle, 8, event_set)
    fake.event(0, 8, 31)
    fake.event(1, 8, 79)
    # the first is older than the set, the second of a card that is not registered
    data = nvml.call("nvmlEventSetWait_v2", event_set, 0)
    assert getattr(data, "eventData") == 79  # noqa: B009 - pynvml has no types
    with pytest.raises(NvmlCallError) as failed:
        nvml.call("nvmlEventSetWait_v2", event_set, 0)
    assert failed.value.nvml_code == 10

"""The helper's file and its bounds: nothing outside both fences, nothing that is not named."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.nvml.control.bounds import (
    CardBounds,
    CardRanges,
    bounds_of,
    control_config_from_toml,
    refusal_of,
    start_settings,
)
from firmware_bridges.nvml.control.messages import (
    ANSWER,
    MESSAGE_BYTES_MAX,
    SETTING,
    Answer,
    Applied,
    LockGpuClocks,
    LockMemoryClocks,
    Reason,
    Refused,
    ResetGpuClocks,
    ResetMemoryClocks,
    SetPersistence,
    SetPowerLimit,
    Setting,
    Unconfirmed,
    pack,
)
from protocol.errors import DecodeError
from protocol.settings import SettingsError

UUID = "GPU-1"
BOUNDS = CardBounds(
    card="*",
    persistence=True,
    power_w=600.0,
    power_w_min=300.0,
    power_w_max=650.0,
    gpu_mhz_min=600,
    gpu_mhz_max=1_900,
    memory_mhz_min=2_000,
    memory_mhz_max=3_000,
)
CARD = CardRanges(
    uuid=UUID, power_w=(200.0, 700.0), gpu_mhz=(0.0, 1_980.0), memory_mhz=(0.0, 2_619.0)
)
SETTINGS: tuple[Setting, ...] = (
    SetPowerLimit(uuid=UUID, power_w=500.0),
    LockGpuClocks(uuid=UUID, mhz_min=1_000, mhz_max=1_500),
    LockMemoryClocks(uuid=UUID, mhz_min=2_000, mhz_max=2_619),
    ResetGpuClocks(uuid=UUID),
    ResetMemoryClocks(uuid=UUID),
    SetPersistence(uuid=UUID, on=False),
)
TOML = """
socket = "/run/hcp-gpu-control/control.sock"
users = ["hcp-agent", "1000"]

[[card]]
card = "GPU-7"

[[card]]
card = "NVIDIA H100 80GB HBM3"
persistence = true
power_w = 600
power_w_min = 300
power_w_max = 700
"""


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: type(one).__name__)
def test_what_is_within_both_fences_is_let_through(setting: Setting) -> None:
    assert refusal_of(setting, BOUNDS, CARD) is None


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: type(one).__name__)
def test_what_the_file_does_not_name_is_refused(setting: Setting) -> None:
    for bounds in (None, CardBounds(card="*")):
        refused = refusal_of(setting, bounds, CARD)
        assert refused is not None
        assert refused.reason is Reason.NOT_CONFIGURED


@pytest.mark.parametrize(
    "setting",
    [
        SetPowerLimit(uuid=UUID, power_w=299.9),
        SetPowerLimit(uuid=UUID, power_w=650.1),
        SetPowerLimit(uuid=UUID, power_w=math.nan),
        SetPowerLimit(uuid=UUID, power_w=math.inf),
        LockGpuClocks(uuid=UUID, mhz_min=599, mhz_max=1_500),
        LockGpuClocks(uuid=UUID, mhz_min=600, mhz_max=1_901),
        LockGpuClocks(uuid=UUID, mhz_min=1_500, mhz_max=1_400),
        # within the file, outside the card
        LockMemoryClocks(uuid=UUID, mhz_min=2_000, mhz_max=2_620),
    ],
)
def test_what_is_outside_either_fence_is_refused_with_the_bounds(setting: Setting) -> None:
    refused = refusal_of(setting, BOUNDS, CARD)
    assert refused is not None
    assert refused.reason is Reason.OUT_OF_BOUNDS
    assert refused.low is not None
    assert refused.high is not None


def test_a_card_that_does_not_tell_its_range_is_not_set() -> None:
    mute = CardRanges(uuid=UUID)
    for setting in SETTINGS[:3]:
        refused = refusal_of(setting, BOUNDS, mute)
        assert refused is not None
        assert refused.reason is Reason.NOT_SUPPORTED


@given(
    st.floats(1, 10_000), st.tuples(st.floats(1, 900), st.floats(1, 900)),
    st.tuples(st.floats(1, 900), st.floats(1, 900)),
)  # fmt: skip
def test_no_limit_gets_past_either_fence(
    power_w: float, named: tuple[float, float], told: tuple[float, float]
) -> None:
    bounds = CardBounds(card="*", power_w_min=min(named), power_w_max=max(named))
    card = CardRanges(uuid=UUID, power_w=(min(told), max(told)))
    let_through = refusal_of(SetPowerLimit(uuid=UUID, power_w=power_w), bounds, card) is None
    within = min(named) <= power_w <= max(named) and min(told) <= power_w <= max(told)
    assert let_through == within


def test_the_first_row_that_fits_counts() -> None:
    config = control_config_from_toml(TOML)
    model = "NVIDIA H100 80GB HBM3"
    assert bounds_of(config, "GPU-7", model) == CardBounds(card="GPU-7")
    row = bounds_of(config, "GPU-8", model)
    assert row is not None
    assert start_settings(row, "GPU-8") == (
        SetPersistence(uuid="GPU-8", on=True),
        SetPowerLimit(uuid="GPU-8", power_w=600.0),
    )
    assert bounds_of(config, "GPU-8", "NVIDIA L40S") is None


@pytest.mark.parametrize(
    ("was", "becomes", "names"),
    [
        ('"/run/hcp-gpu-control/control.sock"', '"control.sock"', "socket"),
        ('["hcp-agent", "1000"]', "[]", "users"),
        ("power_w_min = 300", "", "power_w_min"),
        ("power_w_min = 300", "power_w_min = 800", "power_w_min"),
        ("power_w = 600", "power_w = 250", "power_w"),
        ("persistence = true", "persistance = true", "persistance"),
        ("power_w_max = 700", "power_w_max = -1", "power_w_max"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(was: str, becomes: str, names: str) -> None:
    assert was in TOML
    with pytest.raises(SettingsError) as refused:
        control_config_from_toml(TOML.replace(was, becomes))
    assert any(names in problem.path for problem in refused.value.problems)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: type(one).__name__)
def test_a_setting_comes_through_the_wire(setting: Setting) -> None:
    assert SETTING.decode(pack(setting)[4:]) == setting


@pytest.mark.parametrize(
    "answer",
    [
        Applied(),
        Refused(reason=Reason.OUT_OF_BOUNDS, detail="d" * 500, low=1.0, high=2.0),
        Unconfirmed(detail="no answer"),
    ],
)
def test_an_answer_comes_through_the_wire(answer: Answer) -> None:
    assert ANSWER.decode(pack(answer)[4:]) == answer


@given(st.binary(max_size=MESSAGE_BYTES_MAX + 1))
def test_bytes_of_nobody_are_no_setting(body: bytes) -> None:
    with pytest.raises(DecodeError):
        SETTING.decode(body)


@pytest.mark.parametrize(
    "setting",
    [
        SetPowerLimit(uuid="GPU-1", power_w=0.5),
        SetPowerLimit(uuid="../etc", power_w=500.0),
        SetPowerLimit(uuid="GPU-" + "a" * 91, power_w=500.0),
        LockGpuClocks(uuid="GPU-1", mhz_min=-1, mhz_max=100),
        LockGpuClocks(uuid="GPU-1", mhz_min=0, mhz_max=10_001),
    ],
)
def test_what_is_out_of_range_does_not_pass_the_wire(setting: Setting) -> None:
    with pytest.raises(DecodeError, match="malformed"):
        SETTING.decode(pack(setting)[4:])

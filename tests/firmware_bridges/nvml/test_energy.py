"""Energy from counter differences, over reloads of the driver and nonsense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridges.nvml.energy import EnergyMeter, metered
from firmware_bridges.nvml.samples import GpuInfo, GpuSample

NS = 1_000_000_000


def sample(at_s: float, energy_mj: int | None, power_w_max: float | None = 700.0) -> GpuSample:
    info = GpuInfo(uuid="GPU-1", index=0, power_w_max=power_w_max)
    at_ns = round(at_s * NS)
    return GpuSample(info=info, began_ns=at_ns, at_ns=at_ns, energy_mj=energy_mj)


def after(*samples: GpuSample) -> EnergyMeter:
    meter = EnergyMeter()
    for one in samples:
        meter = metered(meter, one)
    return meter


def test_what_ran_before_we_looked_is_not_counted() -> None:
    assert after(sample(1, 5_000_000)).total_mj == 0


def test_differences_add_up() -> None:
    meter = after(sample(1, 1_000), sample(2, 401_000), sample(3, 801_000))
    assert (meter.total_mj, meter.resets, meter.refused) == (800_000, 0, 0)


def test_a_reload_of_the_driver_counts_what_has_run_since() -> None:
    meter = after(sample(1, 9_000_000), sample(2, 9_400_000), sample(4, 300_000))
    assert (meter.total_mj, meter.resets) == (700_000, 1)


def test_a_difference_that_no_card_can_draw_is_refused() -> None:
    # 700 W for 1 s are 700,000 mJ; a counter of another driver stands 50 million higher
    meter = after(sample(1, 1_000), sample(2, 50_000_000), sample(3, 50_400_000))
    assert (meter.total_mj, meter.refused) == (400_000, 1)


@pytest.mark.parametrize("power_w_max", [None, 0.0])
def test_of_a_card_that_does_not_tell_its_limit_no_life_is_billed_for_a_step_back(
    power_w_max: float | None,
) -> None:
    counters = (1_000_000_000, 1_000_400_000, 1_000_399_995, 1_000_800_000)
    meter = after(*(sample(at_s, mj, power_w_max) for at_s, mj in enumerate(counters)))
    assert (meter.total_mj, meter.resets, meter.refused) == (800_005, 1, 1)


def test_a_sample_without_a_counter_changes_nothing() -> None:
    meter = after(sample(1, 1_000), sample(2, None), sample(3, 401_000))
    assert meter.total_mj == 400_000


def test_a_sample_from_before_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="after"):
        after(sample(2, 1_000), sample(1, 2_000))


@given(st.lists(st.integers(0, 2**62) | st.none(), max_size=20))
def test_the_total_never_falls_and_never_exceeds_what_the_card_can_draw(
    counters: list[int | None],
) -> None:
    meter = EnergyMeter()
    for second, counter in enumerate(counters):
        before = meter.total_mj
        meter = metered(meter, sample(second, counter))
        assert meter.total_mj >= before
    assert meter.total_mj <= 700_000 * 1.25 * 2 * len(counters)

"""Gates over samples and events: what fences, what holds, what lets go, and why."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from firmware_bridges.nvml.health import (
    GpuHealth,
    HealthLimits,
    Standing,
    ends_by,
    judged,
    rebooted,
    released,
    remembered,
    stands,
    unjudged,
)
from firmware_bridges.nvml.samples import EventKind, GpuEvent, GpuInfo, GpuSample
from firmware_bridges.nvml.states import GpuState, GpuView
from firmware_bridges.nvml.xid import Need

NS = 1_000_000_000
LIMITS = HealthLimits()


def view(state: GpuState = GpuState.LIVE, detail: str = "", **figures: Any) -> GpuView:  # noqa: ANN401 - one figure each
    info = GpuInfo(uuid="GPU-1", index=0, slowdown_c=figures.pop("slowdown_c", None),
                   memory_c_max=figures.pop("memory_c_max", None))  # fmt: skip
    sample = GpuSample(info=info, began_ns=0, at_ns=0, **figures)
    return GpuView(card="GPU-1", state=state, sample=sample, detail=detail)


def xid(number: int) -> GpuEvent:
    return GpuEvent(seq=0, at_ns=0, kind=EventKind.XID, type_bits=8, number=number)


def judge(
    *views: GpuView, events: Sequence[GpuEvent] = (), limits: HealthLimits = LIMITS
) -> GpuHealth:
    """Judge one view a second; the events come with the first."""
    health = unjudged("GPU-1")
    for second, one in enumerate(views):
        health = judged(health, one, events if second == 0 else (), limits, second * NS)
    return health


def test_a_card_of_which_nothing_bad_is_known_is_ok() -> None:
    health = judge(view(temp_c=60.0, power_w=400.0, power_limit_w=700.0))
    assert (health.standing, health.reason, health.need) == (Standing.OK, "", Need.NONE)
    assert health.is_healthy
    assert judge(view()).standing is Standing.OK


@pytest.mark.parametrize(
    ("temps", "standing"),
    [
        ((89.9,), Standing.OK),
        ((90.0,), Standing.FENCED),
        # once hot, it stays fenced until it is at the lower limit
        ((90.0, 80.0), Standing.FENCED),
        ((90.0, 75.1), Standing.FENCED),
        ((90.0, 75.0), Standing.OK),
        ((80.0,), Standing.OK),
        ((90.0, 75.0, 80.0), Standing.OK),
        # a temperature that is not known changes nothing
        ((90.0, None), Standing.FENCED),
    ],
)
def test_heat_fences_at_one_limit_and_lets_go_at_another(
    temps: Sequence[float | None], standing: Standing
) -> None:
    assert judge(*[view(temp_c=temp) for temp in temps]).standing is standing


def test_the_cards_own_limit_binds_as_well() -> None:
    assert judge(view(temp_c=86.9, slowdown_c=87)).standing is Standing.OK
    health = judge(view(temp_c=87.0, slowdown_c=87))
    assert (health.standing, health.reason) == (Standing.FENCED, "87 C")
    margin = HealthLimits(margin_c=5.0)
    assert judge(view(temp_c=82.0, slowdown_c=87), limits=margin).standing is Standing.FENCED


def test_a_card_whose_own_limit_is_below_the_way_back_is_let_go() -> None:
    hot, cool = view(temp_c=70.0, slowdown_c=70), view(temp_c=69.0, slowdown_c=70)
    assert judge(hot).standing is Standing.FENCED
    assert judge(hot, cool).standing is Standing.OK


def test_the_memory_has_limits_of_its_own() -> None:
    assert judge(view(memory_temp_c=94.0, memory_c_max=95)).standing is Standing.OK
    health = judge(view(memory_temp_c=95.0, memory_c_max=95))
    assert (health.standing, health.reason) == (Standing.FENCED, "memory at 95 C")
    assert judge(view(memory_temp_c=95.0, memory_c_max=95), view(memory_temp_c=91.0)).memory_hot


def test_too_much_power_holds_and_then_fences() -> None:
    over = view(power_w=780.0, power_limit_w=700.0)
    assert judge(over).standing is Standing.HOLD
    assert judge(*[over] * 10).standing is Standing.HOLD
    assert judge(*[over] * 11).standing is Standing.FENCED
    within = view(power_w=769.0, power_limit_w=700.0)
    assert judge(*[over] * 11, within).standing is Standing.OK
    assert "780 W over a limit of 700 W" in judge(over).reason


@pytest.mark.parametrize(
    ("number", "standing", "need"),
    [
        (13, Standing.OK, Need.NONE),
        (31, Standing.OK, Need.NONE),
        (43, Standing.OK, Need.NONE),
        (48, Standing.FENCED, Need.RESET),
        (63, Standing.HOLD, Need.RESET),
        (74, Standing.FENCED, Need.INSPECT),
        (79, Standing.FENCED, Need.REBOOT),
        (94, Standing.HOLD, Need.RESET),
        (119, Standing.FENCED, Need.RESET),
        (4_711, Standing.HOLD, Need.INSPECT),
    ],
)
def test_an_xid_holds_or_fences_until_it_is_released(
    number: int, standing: Standing, need: Need
) -> None:
    health = judge(view(), view(), view(), events=[xid(number)])
    assert (health.standing, health.need) == (standing, need)
    again = judged(released(health), view(), (), LIMITS, 9 * NS)
    assert again.standing is Standing.OK


def test_the_worst_gate_counts_and_every_reason_is_told() -> None:
    health = judge(view(temp_c=95.0, remap_pending=True), events=[xid(94), xid(79)])
    assert health.standing is Standing.FENCED
    assert [finding.gate for finding in health.findings] == ["xid", "heat", "xid", "remap"]
    assert health.need is Need.REBOOT
    assert "Xid 79: the GPU fell off the bus" in health.reason


def test_only_new_uncorrected_errors_count_after_a_release() -> None:
    health = judge(view(ecc_uncorrected_volatile=2))
    assert (health.standing, health.need) == (Standing.FENCED, Need.RESET)
    seen = judged(released(health), view(ecc_uncorrected_volatile=2), (), LIMITS, NS)
    assert seen.standing is Standing.OK
    # a reset sets the counter back; the next error counts again
    reset = judged(seen, view(ecc_uncorrected_volatile=0), (), LIMITS, 2 * NS)
    assert reset.standing is Standing.OK
    anew = judged(reset, view(ecc_uncorrected_volatile=1), (), LIMITS, 3 * NS)
    assert anew.standing is Standing.FENCED


def test_a_double_bit_event_fences_before_the_counter_is_read() -> None:
    event = GpuEvent(seq=0, at_ns=0, kind=EventKind.ECC_DOUBLE, type_bits=2, number=0)
    assert judge(view(), events=[event]).standing is Standing.FENCED


def test_a_card_that_the_driver_cannot_use_is_fenced_until_it_is_released() -> None:
    event = GpuEvent(seq=0, at_ns=0, kind=EventKind.UNAVAILABLE, type_bits=0x4000, number=119)
    health = judge(view(), view(), events=[event])
    assert (health.standing, health.need) == (Standing.FENCED, Need.RESET)
    assert judged(released(health), view(), (), LIMITS, 9 * NS).standing is Standing.OK


@pytest.mark.parametrize(
    ("figures", "standing", "need"),
    [
        ({"remap_failed": True}, Standing.FENCED, Need.INSPECT),
        ({"remap_pending": True}, Standing.HOLD, Need.RESET),
        ({"remapped_correctable": 9}, Standing.OK, Need.NONE),
        ({"ecc_corrected_volatile": 5_000}, Standing.OK, Need.NONE),
        ({"recovery_action": 0}, Standing.OK, Need.NONE),
        ({"recovery_action": 1}, Standing.FENCED, Need.RESET),
        ({"recovery_action": 2}, Standing.FENCED, Need.REBOOT),
        ({"recovery_action": 4}, Standing.FENCED, Need.RESET),
    ],
)
def test_memory_and_the_drivers_own_word(
    figures: dict[str, Any], standing: Standing, need: Need
) -> None:
    health = judge(view(**figures))
    assert (health.standing, health.need) == (standing, need)
    # these are read anew in each sweep: when the cause is gone, so is the gate
    assert judge(view(**figures), view()).standing is Standing.OK


@pytest.mark.parametrize(
    ("state", "standing"),
    [
        (GpuState.SILENT, Standing.HOLD),
        (GpuState.LOST, Standing.FENCED),
        (GpuState.RESET_REQUIRED, Standing.FENCED),
        (GpuState.UNREADABLE, Standing.HOLD),
        (GpuState.UNKNOWN, Standing.HOLD),
    ],
)
def test_a_card_that_is_not_read_is_not_used(state: GpuState, standing: Standing) -> None:
    health = judge(view(state, "detail of it"))
    assert health.standing is standing
    assert judge(view(state), view()).standing is Standing.OK
    assert judge(*[view(state)] * 6).standing is (
        Standing.HOLD if state is GpuState.UNKNOWN else Standing.FENCED
    )


def test_a_short_silence_holds_and_a_long_one_fences() -> None:
    patient = HealthLimits(fault_s=3.0)
    silent = view(GpuState.SILENT)
    assert judge(*[silent] * 3, limits=patient).standing is Standing.HOLD
    assert judge(*[silent] * 4, limits=patient).standing is Standing.FENCED
    assert judge(silent, view(), *[silent] * 3, limits=patient).standing is Standing.HOLD


def test_figures_of_a_card_that_is_silent_are_not_judged() -> None:
    # its last sample is old: 60 C then say nothing of now
    hot = view(temp_c=95.0)
    cool_but_old = view(GpuState.SILENT, temp_c=60.0)
    health = judge(hot, cool_but_old)
    assert {finding.gate for finding in health.findings} == {"silent", "heat"}


@pytest.mark.parametrize(
    ("figures", "cause"),
    [
        ({}, ""),
        ({"temp_c": 95.0}, ""),  # heat comes and goes by itself, whatever is released
        ({"ecc_corrected_volatile": 9}, ""),
        ({"remap_pending": True}, "a row is remapped at the next reset"),
        ({"remap_failed": True}, "a row could not be remapped"),
        ({"recovery_action": 1}, "the driver asks for recovery action 1"),
        ({"ecc_uncorrected_volatile": 1}, "1 uncorrected ECC errors since its last reset"),
    ],
)
def test_a_fence_stands_while_its_cause_is_seen(figures: dict[str, Any], cause: str) -> None:
    assert stands(judge(view(**figures), events=[xid(48)])) == cause


@pytest.mark.parametrize("state", [one for one in GpuState if one is not GpuState.LIVE])
def test_a_fence_stands_while_the_card_is_not_read(state: GpuState) -> None:
    assert stands(judge(view(state, "detail"), events=[xid(48)]))


def test_what_is_remembered_has_codes_and_says_what_ends_it() -> None:
    health = judge(view(ecc_uncorrected_volatile=2), events=[xid(79), xid(63)])
    assert remembered(health) == ("xid-79", "xid-63", "ecc")
    assert remembered(released(health)) == ()
    assert remembered(judge(view(temp_c=95.0))) == ()
    assert ends_by(judge(view(), events=[xid(79)])) == "a reboot, or an operator's release"
    assert ends_by(judge(view(), events=[xid(63), xid(74)])) == (
        "an operator's release, after: inspect, reset"
    )


def test_a_card_of_which_the_record_cannot_be_read_is_fenced_until_it_is_released() -> None:
    begun = structs.replace(unjudged("GPU-1"), unreadable=True)
    health = judged(rebooted(begun), view(), (), LIMITS, NS)
    assert (health.standing, health.reason) == (Standing.FENCED, "fence record unreadable")
    assert stands(health) == ""
    assert ends_by(health) == "an operator's release, after: inspect"
    after = judged(released(health), view(), (), LIMITS, 2 * NS)
    assert (after.standing, remembered(after)) == (Standing.OK, ())


def test_a_reboot_ends_what_needs_one_and_nothing_else() -> None:
    health = judge(view(), events=[xid(79), xid(48)])
    assert rebooted(health).xids == (48,)


@given(st.lists(st.floats(0, 120) | st.none(), min_size=1, max_size=30))
def test_heat_changes_its_mind_only_beyond_the_band(temps: list[float | None]) -> None:
    health, was_hot = unjudged("GPU-1"), False
    for second, temp_c in enumerate(temps):
        health = judged(health, view(temp_c=temp_c), (), LIMITS, second * NS)
        if health.hot != was_hot:
            assert temp_c is not None
            assert temp_c >= 90.0 if health.hot else temp_c <= 75.0
        was_hot = health.hot


@given(st.lists(st.integers(0, 200), max_size=40))
def test_xids_are_kept_within_bounds(numbers: list[int]) -> None:
    health = judge(view(), events=[xid(number) for number in numbers])
    assert len(health.xids) <= 16
    assert len(set(health.xids)) == len(health.xids)
    if {48, 79, 119} & set(numbers):
        assert health.standing is Standing.FENCED


@pytest.mark.parametrize(
    ("counts", "standing"),
    [
        ((5, 3), Standing.FENCED),
        ((5, 0), Standing.OK),
        ((5, 5), Standing.OK),
        ((5, 6), Standing.FENCED),
    ],
)
def test_errors_after_a_reset_are_new_ones_however_many_there_were_before(
    counts: tuple[int, int], standing: Standing
) -> None:
    # looked at and released while the first count stood
    seen = structs.replace(unjudged("GPU-1"), uncorrected=counts[0])
    assert (
        judged(seen, view(ecc_uncorrected_volatile=counts[1]), (), LIMITS, NS).standing is standing
    )


def test_a_recovery_action_that_nobody_has_read_about_fences() -> None:
    health = judge(view(recovery_action=99))
    assert (health.standing, health.need) == (Standing.FENCED, Need.INSPECT)
    assert judge(view(recovery_action=0)).standing is Standing.OK


LOST, WELL = view(GpuState.LOST), view(temp_c=60.0)


def test_a_card_that_fails_again_and_again_is_in_quarantine_until_it_is_released() -> None:
    twice = judge(LOST, LOST, WELL, LOST, LOST, WELL)
    assert twice.standing is Standing.OK, "one failure that lasts is one"
    third = judge(LOST, WELL, LOST, WELL, LOST, WELL)
    assert (third.standing, remembered(third)) == (Standing.FENCED, ("quarantine",))
    assert (third.need, stands(third)) == (Need.INSPECT, "")
    assert "inspect" in ends_by(third)
    again = judged(released(third), WELL, (), LIMITS, 10 * NS)
    assert again.standing is Standing.OK
    # and it is counted from there
    assert judged(again, LOST, (), LIMITS, 11 * NS).quarantined is False


def test_failures_that_lie_far_apart_are_no_quarantine() -> None:
    health = unjudged("GPU-1")
    for hour in range(9):
        for second, one in enumerate((LOST, WELL)):
            health = judged(health, one, (), LIMITS, (hour * 3_600 + second + 1) * NS)
    assert health.quarantined is False
    assert len(health.failures_ns) <= LIMITS.failures_max


def test_heat_and_short_silences_are_no_failures() -> None:
    hot = view(temp_c=95.0)
    assert judge(*[hot, WELL] * 9).quarantined is False
    silent = view(GpuState.SILENT)
    limits = structs.replace(LIMITS, fault_s=0.0)
    assert judge(*[structs.replace(silent, hangs=True), WELL] * 9).quarantined is False
    # nor is a silence of all cards, as while the driver is replaced
    assert judge(*[silent, WELL] * 9, limits=limits).quarantined is False
    assert judge(*[structs.replace(silent, hangs=True), WELL] * 9, limits=limits).quarantined


@pytest.mark.parametrize(
    ("failed", "temp_c", "standing"),
    [
        (("nvmlDeviceGetTemperature",), None, Standing.HOLD),
        (("nvmlDeviceGetTemperature",), 60.0, Standing.OK),
        ((), None, Standing.OK),
    ],
)
def test_a_card_whose_sensor_does_not_answer_takes_nothing_new(
    failed: tuple[str, ...], temp_c: float | None, standing: Standing
) -> None:
    assert judge(view(temp_c=temp_c, failed_calls=failed)).standing is standing

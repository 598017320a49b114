"""Which switches of a former life wait, and when they go on or are turned back."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core import power as pw
from edge_agent.core.curve import ModePoint
from edge_agent.core.passes import enter
from edge_agent.core.plan import Resume
from edge_agent.core.resuming import HELD_S, NO_ROOM, carried_on, may_raise, resumes
from edge_agent.core.site import CODE_OF, Device, DeviceClass, Feeder, Limits, Site
from edge_agent.core.site_state import SiteState, new_state
from edge_agent.core.switching import Stage, Status, Switch, SwitchDevice
from protocol.lease import SitePolicy
from protocol.node import Phase
from protocol.resource import MODELS, Activity, DeviceKind
from tests.edge_agent.core.mode_plant import CURVE, mode_site
from tests.edge_agent.core.plant import instant, make_site

LOW, NORMAL, HIGH = CURVE


def switch(
    devices: Sequence[str],
    start: Activity,
    to: Activity,
    *,
    kind: DeviceKind = DeviceKind.ASIC,
    modes: tuple[ModePoint | None, ModePoint] | None = None,
) -> Switch:
    return Switch(
        switch_id="s1",
        kind=kind,
        device_class="S21",
        to_activity=to,
        reason="gain",
        lease_id=None,
        all_or_none=False,
        opened_ns=0,
        activate_s=60.0,
        gain_usd=None,
        cost_usd=None,
        devices=tuple(
            SwitchDevice(key, None, start, from_mode=None if modes is None else modes[0])
            for key in devices
        ),
        stage=Stage.FORWARD,
        phase=Phase.ACTIVATE,
        phase_ns=0,
        mode=None if modes is None else modes[1],
    )


@pytest.mark.parametrize(
    ("device", "start", "to", "waits"),
    [
        ("a1", Activity.CURTAILED, Activity.MINE, True),
        ("a1", Activity.UNKNOWN, Activity.MINE, True),
        ("a1", Activity.MINE, Activity.CURTAILED, False),
        ("g0", Activity.IDLE, Activity.MINE, True),
        ("g0", Activity.IDLE, Activity.SERVE, True),
        ("g0", Activity.MINE, Activity.SERVE, True),
        ("g0", Activity.SERVE, Activity.MINE, False),
        ("g0", Activity.SERVE, Activity.IDLE, False),
        ("of another site", Activity.CURTAILED, Activity.MINE, False),
    ],
)
def test_what_raises_power_waits_and_what_lowers_it_does_not(
    device: str, start: Activity, to: Activity, *, waits: bool
) -> None:
    site = make_site()
    kind = DeviceKind.GPU if device.startswith("g") else DeviceKind.ASIC
    one = switch([device], start, to, kind=kind)
    assert may_raise(site, one) is waits
    undone = replace(one, stage=Stage.ROLLBACK, phase=Phase.ROLLBACK)
    assert not may_raise(site, undone)
    assert not may_raise(site, replace(one, commit_asked=True))
    ended = replace(one, devices=(replace(one.devices[0], status=Status.FAILED),))
    assert not may_raise(site, ended)


@pytest.mark.parametrize(
    ("before", "after", "waits"),
    [(NORMAL, HIGH, True), (HIGH, NORMAL, False), (NORMAL, NORMAL, False), (None, HIGH, False)],
)
def test_a_mode_waits_where_it_is_higher_and_an_unknown_one_counts_as_the_highest(
    before: ModePoint | None, after: ModePoint, *, waits: bool
) -> None:
    one = switch(["m0"], Activity.MINE, Activity.MINE, modes=(before, after))
    assert may_raise(mode_site(), one) is waits


def started(site: Site, opened: f.SwitchOpened, off: Activity = Activity.CURTAILED) -> SiteState:
    """Give the state of an agent that starts with a switch open on devices that were off or mined.

    Its copy says that they all are off, or mine where the switch is of a mode.
    """
    n = len(site)
    state = new_state(site, instant(0.0))
    code = Activity.MINE if opened.mode else off
    told = readings(site, [True] * n, [code] * n, [np.nan] * n)
    state = enter(site, state, instant(1.0), (told,))
    if site.steps is not None:
        state = replace(state, step=np.full(n, 2, dtype=np.uint8))
        state = replace(state, step_to=state.step)
    state = enter(site, state, instant(2.0), (opened,))
    return enter(site, state, instant(10.0), (f.Booted(2), f.SwitchHeld((opened.switch_id,))))


def readings(
    site: Site, read: Sequence[bool], activity: Sequence[Activity], power_w: Sequence[float]
) -> f.ReadingsSeen:
    at = np.flatnonzero(np.array(read))
    n = len(at)
    codes = np.array([CODE_OF[one] for one in activity], dtype=np.uint8)
    return f.pack_readings(
        site.digest,
        f.ReadingColumns(
            at.astype(np.int32),
            codes[at],
            np.ones(n, dtype=np.uint8),
            np.array(power_w, dtype=np.float64)[at],
            np.full(n, np.nan),
            np.full(n, np.nan),
            np.full(n, np.nan),
        ),
    )


WAKE = f.SwitchOpened("s1", ("a1",), Activity.MINE, "gain")
# Of the model S21: mines at 3,500 W, wakes up with 3,850 W, sleeps at 20 W.
WAKE_W, MINE_W, SLEEP_W = 3_850.0, 3_500.0, 20.0


def miners(count: int, cap_w: float) -> Site:
    row = DeviceClass(model=MODELS["S21"], pue=1.0)
    devices = tuple(Device(device_id=f"a{n}", device_class="S21") for n in range(count))
    return Site("s", (row,), devices, Limits(power_cap_w=cap_w, ramp_w_per_min=1e7))


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([SLEEP_W, 1_000.0, MINE_W, 3_700.0])),
        min_size=4,
        max_size=4,
    ),
    st.floats(4_000.0, 20_000.0),
    st.sampled_from([1.0, HELD_S + 0.1]),
)
def test_a_raise_goes_on_where_all_fits_and_goes_back_where_that_is_known_not_to(
    told: list[tuple[bool, float]], cap_w: float, waited_s: float
) -> None:
    site = miners(4, cap_w)
    state = started(site, WAKE)
    read = [one for one, _ in told]
    # A device that draws much mines, whatever the copy of the store says.
    does = [Activity.MINE if watts > 500.0 else Activity.CURTAILED for _, watts in told]
    seen = readings(site, read, does, [watts for _, watts in told])
    state = enter(site, state, instant(10.0 + waited_s), (seen,))
    most_w = 0.0
    for at, (known, watts) in enumerate(told):
        plate_w = WAKE_W if at == 1 else MINE_W if watts > 500.0 else SLEEP_W
        most_w += max(plate_w, watts) if known else max(MINE_W, WAKE_W if at == 1 else 0.0)
    if most_w <= cap_w:
        assert resumes(site, state) == (Resume("s1", forward=True),)
    elif waited_s > HELD_S or all(read):
        assert resumes(site, state) == (Resume("s1", forward=False),)
    else:
        assert resumes(site, state) == ()


def test_a_tighter_policy_and_an_unread_copy_bind_a_raise_too() -> None:
    site = miners(2, 1e5)
    state = started(site, WAKE)
    assert resumes(site, state) == (Resume("s1", forward=True),)
    policy = SitePolicy(hub_epoch=1, generation=1, site_id="s", power_cap_w=3_000.0)
    state = enter(site, state, instant(11.0), (f.PolicySeen(policy),))
    assert resumes(site, state) == ()
    asleep = readings(site, [True, True], [Activity.CURTAILED] * 2, [SLEEP_W, SLEEP_W])
    state = enter(site, state, instant(12.0), (asleep,))
    assert resumes(site, state) == (Resume("s1", forward=False),)


def test_a_feeder_turns_back_what_hangs_on_it_alone() -> None:
    row = DeviceClass(model=MODELS["S21"], pue=1.0)
    devices = tuple(
        Device(device_id=f"a{n}", device_class="S21", feeder="east" if n < 2 else "west")
        for n in range(4)
    )
    feeders = (
        Feeder(name="east", power_cap_w=7_000.0),
        Feeder(name="west", power_cap_w=8_000.0),
    )
    limits = Limits(power_cap_w=1e5, ramp_w_per_min=1e7)
    site = Site("s", (row,), devices, limits, feeders=feeders)
    opened = (WAKE, f.SwitchOpened("s2", ("a2",), Activity.MINE, "gain"))
    state = enter(site, started(site, WAKE), instant(10.0), (opened[1],))
    state = enter(site, state, instant(10.0), (f.Booted(2), f.SwitchHeld(("s1", "s2"))))
    mines = [Activity.MINE, Activity.UNKNOWN, Activity.UNKNOWN, Activity.MINE]
    state = enter(
        site, state, instant(11.0), (readings(site, [True] * 4, mines, [MINE_W, 0.0, 0.0, MINE_W]),)
    )
    assert resumes(site, state) == (Resume("s1", forward=False), Resume("s2", forward=True))


def test_devices_that_a_newer_switch_took_over_are_left_to_it() -> None:
    site = mode_site(3, cap_w=12_000.0)
    raising = f.SwitchOpened("s1", ("m0", "m1"), Activity.MINE, "gain", mode="high")
    state = started(site, raising)
    one = switch(["m0", "m1"], Activity.MINE, Activity.MINE, modes=(NORMAL, HIGH))
    shed = f.SwitchOpened("s2", ("m0",), Activity.CURTAILED, "shed")
    state = enter(site, state, instant(11.0), (shed,))
    back = carried_on(site, state, one, forward=False)
    assert [row.status for row in back.devices] == [Status.ROLLED_BACK, Status.FAILED]
    assert [row.code for row in back.devices] == ["switch.superseded", NO_ROOM]
    assert back.stage is Stage.ROLLBACK
    on = carried_on(site, state, one, forward=True)
    assert (on.stage, on.devices[1].status) == (Stage.FORWARD, Status.LIVE)
    shed = f.SwitchOpened("s3", ("m1",), Activity.CURTAILED, "shed")
    state = enter(site, state, instant(12.0), (shed,))
    assert resumes(site, state) == (Resume("s1", forward=False),)
    assert carried_on(site, state, one, forward=False).stage is Stage.CLOSED


def test_what_is_turned_back_makes_its_room_but_not_for_long() -> None:
    site = mode_site(3, cap_w=11_000.0, shed_after_s=15.0)
    raising = f.SwitchOpened("s1", ("m0", "m1"), Activity.MINE, "gain", mode="high")
    state = started(site, raising)
    assert not pw.stepping_up(site, state).any(), "a held one does not go up"
    assert pw.going_down_w(site, state) == 0.0
    state = enter(site, state, instant(11.0), (f.SwitchResumed("s1", forward=False),))
    all_mine = readings(site, [True] * 3, [Activity.MINE] * 3, [NORMAL.power_w] * 3)
    state = enter(site, state, instant(12.0), (all_mine,))
    freed_w = 2 * (HIGH.power_w - NORMAL.power_w)
    assert pw.going_down_w(site, state) == pytest.approx(freed_w)
    assert pw.to_shed_w(site, state, pw.view(site, state)) == 0.0
    state = enter(site, state, instant(27.0), ())
    assert pw.going_down_w(site, state) == 0.0
    assert pw.to_shed_w(site, state, pw.view(site, state)) > 0.0


def test_a_device_is_not_blamed_for_what_the_agent_undid() -> None:
    for opened, site in (
        (f.SwitchOpened("s1", ("m0",), Activity.MINE, "gain", mode="high"), mode_site(2)),
        (WAKE, miners(2, 1e5)),
    ):
        state = started(site, opened)
        state = enter(site, state, instant(11.0), (f.SwitchResumed("s1", forward=False),))
        closed = f.SwitchClosed("s1", opened.device_ids, ("rolled_back",), 1, mode=opened.mode)
        after = enter(site, state, instant(12.0), (closed,))
        assert after.held == ()
        assert after.failures.tolist() == [0, 0]
        assert not after.quarantine_ns.any()
        broken = f.SwitchClosed("s1", opened.device_ids, ("quarantined",), 1, mode=opened.mode)
        at = int(site.indices_of(opened.device_ids)[0])
        assert enter(site, state, instant(12.0), (broken,)).failures[at] == 1

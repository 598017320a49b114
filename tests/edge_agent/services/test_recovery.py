"""Recovery turns back a switch that was begun more than a day ago."""

from datetime import timedelta

import pytest

from edge_agent.core import facts as f
from edge_agent.core.switching import Stage, Status, Switch, SwitchDevice, encode_switch
from edge_agent.ports import Recovered, SwitchRow
from edge_agent.services.recovery import restore
from protocol.node import Phase
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.core.plant import START, instant, make_site

HOUR_S = 3_600.0


def begun(at: f.Instant) -> tuple[bytes, SwitchRow]:
    """A row in which a switch was opened, and the switch as stored in its phase SAVE."""
    opened = f.SwitchOpened("s1", ("g0",), Activity.SERVE, "lease")
    row = f.TickRow(f.ROW_VERSION, at, planned=False, facts=(opened,))
    switch = Switch(
        switch_id="s1",
        kind=DeviceKind.GPU,
        device_class="H100",
        to_activity=Activity.SERVE,
        reason="lease",
        lease_id=None,
        all_or_none=True,
        opened_ns=at.now_ns,
        activate_s=0.0,
        gain_usd=None,
        cost_usd=None,
        devices=(SwitchDevice("g0", "n0", Activity.MINE),),
        stage=Stage.FORWARD,
        phase=Phase.SAVE,
        phase_ns=at.now_ns,
    )
    return f.encode_row(row), SwitchRow(switch_id="s1", body=encode_switch(switch), closed=False)


@pytest.mark.parametrize("boot_id", ["b", "another boot"])
@pytest.mark.parametrize(("gone_h", "stage"), [(23.9, Stage.FORWARD), (24.1, Stage.ROLLBACK)])
def test_a_switch_of_more_than_a_day_ago_goes_back_over_restarts_and_reboots(
    boot_id: str, gone_h: float, stage: Stage
) -> None:
    body, stored = begun(instant(10.0))
    later = instant(10.0 + gone_h * HOUR_S)
    if boot_id != later.boot_id:
        wall = START + timedelta(seconds=10.0 + gone_h * HOUR_S)
        later = f.Instant(boot_id, 5_000_000_000, wall)
    recovered = Recovered(
        store_id="st",
        agent_epoch=2,
        snapshot=None,
        facts=((1, body),),
        open_switches=(stored,),
        leases=(),
        policy=None,
        meter_heads=(),
        node_marks=(),
    )
    restored = restore(make_site(), recovered, later)
    (switch,) = restored.switches + restored.held
    assert switch.resumed
    assert switch.stage is stage
    assert (restored.held == (switch,)) is (stage is Stage.FORWARD)
    failed = stage is Stage.ROLLBACK
    assert switch.devices[0].status is (Status.FAILED if failed else Status.LIVE)

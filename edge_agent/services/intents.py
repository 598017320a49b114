"""From intents to switches: the durable form with its undo, and the journal fact; pure."""

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from edge_agent.core.curve import ModePoint
from edge_agent.core.facts import SwitchOpened
from edge_agent.core.plan import Intent
from edge_agent.core.ready import is_ready
from edge_agent.core.site import DeviceClass, Site
from edge_agent.core.site_state import SiteState, lease_by_id
from edge_agent.core.switching import PATHS, Stage, Status, Switch, SwitchDevice
from protocol.event import PhaseTime, SwitchReport
from protocol.node import LeaseWork
from protocol.resource import ACTIVITY_CODES, Activity, DeviceKind

# Sleeping is confirmed within this; waking takes the class's warm-up and half as much again.
CURTAIL_S = 120.0
# A change of power mode may restart the miner, and is confirmed when the power has moved.
MODE_S = 960.0
PHASES_TOLD_MAX = 12


class Opened(Struct, frozen=True):
    """A switch to start, and the fact that it began."""

    switch: Switch
    fact: SwitchOpened


def open_switch(
    site: Site, state: SiteState, intent: Intent, new_id: Callable[[str], str]
) -> Opened:
    """Make the switch of an intent.

    Args:
        new_id: draws an id with a prefix; one for the switch, one for each instance.
    """
    row = site.classes[intent.class_index]
    switch_id = new_id("s")
    device_ids = tuple(site.devices[int(at)].device_id for at in intent.indices)
    serves = intent.to_activity is Activity.SERVE
    instances = tuple(new_id("i") for _ in device_ids) if serves else ()
    kind = row.model.kind
    first = PATHS[kind][0]
    wakes = intent.to_activity is Activity.MINE
    asic_s = row.warmup_s * 1.5 + 60.0 if wakes else CURTAIL_S
    if intent.mode:
        asic_s = max(asic_s, MODE_S)
    switch = Switch(
        switch_id=switch_id,
        kind=kind,
        device_class=row.class_name,
        to_activity=intent.to_activity,
        reason=intent.reason.name.lower(),
        lease_id=intent.lease_id,
        all_or_none=serves,
        opened_ns=state.now_ns,
        activate_s=asic_s if kind is DeviceKind.ASIC else 0.0,
        gain_usd=intent.gain_usd,
        cost_usd=intent.cost_usd,
        devices=tuple(
            SwitchDevice(
                device_id,
                site.devices[int(at)].node_id,
                ACTIVITY_CODES[int(state.activity[at])],
                _work(state, intent, instances[number]) if serves else None,
                from_mode=_mode(row, site, intent, int(state.step[at])) if intent.mode else None,
                ready=is_ready(state.prepares, device_id, intent.to_activity),
            )
            for number, (at, device_id) in enumerate(zip(intent.indices, device_ids, strict=True))
        ),
        stage=Stage.FORWARD,
        phase=first,
        phase_ns=state.now_ns,
        mode=next((point for point in row.modes if point.mode == intent.mode), None),
    )
    fact = SwitchOpened(
        switch_id, device_ids, intent.to_activity, switch.reason, intent.lease_id, instances,
        intent.mode,
    )  # fmt: skip
    return Opened(switch, fact)


def report(switch: Switch, wall: datetime, now_ns: int) -> SwitchReport:
    """Give the finished switch as the hub sees it."""
    statuses = [device.status for device in switch.devices]
    return SwitchReport(
        switch_id=switch.switch_id,
        device_class=switch.device_class,
        from_activity=switch.devices[0].from_activity.value,
        to_activity=switch.to_activity.value,
        devices=len(statuses),
        committed=statuses.count(Status.COMMITTED),
        rolled_back=statuses.count(Status.ROLLED_BACK) + statuses.count(Status.REFUSED),
        quarantined=statuses.count(Status.QUARANTINED),
        at=wall,
        took_us=max(now_ns - switch.opened_ns, 0) // 1_000,
        reason=switch.reason,
        phases=tuple(
            PhaseTime(span.phase.value, span.took_us) for span in switch.spans[:PHASES_TOLD_MAX]
        ),
        expected_gain_usd=switch.gain_usd,
        switch_cost_usd=switch.cost_usd,
        mode="" if switch.mode is None else switch.mode.mode,
    )


def opened_instances(switch: Switch) -> tuple[str, ...]:
    """Give the instances whose gate may have opened: COMMIT was asked for them."""
    if not switch.commit_asked or switch.to_activity is not Activity.SERVE:
        return ()
    return tuple(device.work.instance_id for device in switch.devices if device.work is not None)


def gate_opened_at(switch: Switch) -> datetime | None:
    """Give when the last gate opened, by the nodes' clocks; None when none says."""
    times = [device.committed_at for device in switch.devices if device.committed_at is not None]
    return max(times, default=None)


def _mode(row: DeviceClass, site: Site, intent: Intent, step: int) -> ModePoint | None:
    """Give the point of the mode that a miner is in: what its change goes back to."""
    if site.steps is None or not step:
        return None
    name = site.steps.names[intent.class_index][step - 1]
    return next((point for point in row.modes if point.mode == name), None)


def _work(state: SiteState, intent: Intent, instance_id: str) -> LeaseWork:
    entry = None if intent.lease_id is None else lease_by_id(state, intent.lease_id)
    assert entry is not None, "an intent to serve names a lease of the state"
    lease = entry.lease
    assert lease is not None, "only a lease that the hub sent is started"
    return LeaseWork(
        lease_id=lease.lease_id,
        workload_id=lease.workload_id,
        attempt=lease.attempt,
        instance_id=instance_id,
        device_class=lease.device_class,
        spec=lease.spec,
        on_partition=lease.on_partition,
        lapse_after_s=lease.lapse_after_s,
    )

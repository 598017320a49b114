"""Start-up is recovery: snapshot, facts, what the store holds besides, all on one path."""

import logging

from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.errors import JournalError
from edge_agent.core.passes import replay_row
from edge_agent.core.resuming import may_raise
from edge_agent.core.site import NS_PER_S, Site
from edge_agent.core.site_state import (
    LeaseStatus,
    SiteState,
    enter_instant,
    lease_by_id,
    new_state,
)
from edge_agent.core.snapshot import decode_state
from edge_agent.core.switching import SAVED_S, Switch, decode_switch, expired
from edge_agent.ports import Recovered
from protocol.resource import Activity

logger = logging.getLogger(__name__)


class Restored(Struct, frozen=True, eq=False):
    """State as of the last durable row, the facts of the first new one, and the open switches.

    Args:
        switches: that go on at once. held: that wait until the site is known to have room.
    """

    state: SiteState
    facts: tuple[f.Fact, ...]
    switches: tuple[Switch, ...]
    held: tuple[Switch, ...]
    bad_rows: int


def restore(site: Site, recovered: Recovered, instant: f.Instant) -> Restored:
    """Rebuild the state; rows that cannot be read are counted and left out.

    Args:
        instant: the present; a store without history starts there.
    """
    bad = 0
    state: SiteState | None = None
    if recovered.snapshot is not None:
        try:
            state = decode_state(site, recovered.snapshot)
        except JournalError as exc:
            bad += 1
            logger.exception("snapshot unreadable", extra={"code": exc.code, "detail": exc.detail})
    for seq, body in recovered.facts:
        try:
            row = f.decode_row(body)
        except JournalError as exc:
            bad += 1
            logger.exception("journal row unreadable", extra={"seq": seq, "code": exc.code})
            continue
        if state is None:
            state = new_state(site, row.instant)
        state, _ = replay_row(site, state, row)
    if state is None:
        state = new_state(site, instant)
    switches, bad_switches = _open_switches(recovered)
    switches = _without_expired(state, switches, instant)
    held = tuple(row for row in switches if may_raise(site, row))
    facts = (
        # What the store says stands before the boot: it is no better known than the rest.
        *_missing(state, recovered),
        f.Booted(recovered.agent_epoch),
        *_switch_facts(state, switches),
        *((f.SwitchHeld(tuple(row.switch_id for row in held)),) if held else ()),
        *_meter_facts(state, recovered),
        *(f.NodeLost(node_id) for node_id in state.nodes_up),
    )
    at_once = tuple(row for row in switches if row not in held)
    return Restored(state, facts, at_once, held, bad + bad_switches)


def _open_switches(recovered: Recovered) -> tuple[tuple[Switch, ...], int]:
    out: list[Switch] = []
    bad = 0
    for row in recovered.open_switches:
        try:
            out.append(replace(decode_switch(row.body), resumed=True))
        except JournalError as exc:
            bad += 1
            logger.exception("switch unreadable", extra={"switch": row.switch_id, "code": exc.code})
    return tuple(out), bad


def _without_expired(
    state: SiteState, switches: tuple[Switch, ...], instant: f.Instant
) -> tuple[Switch, ...]:
    """Turn back what was begun more than a day ago, by the state's clock over reboots."""
    now = enter_instant(state, instant)
    old = {
        entry.switch_id
        for entry in now.switches
        if now.now_ns - entry.opened_ns > int(SAVED_S * NS_PER_S)
    }
    for switch_id in sorted(old):
        logger.warning("switch expired", extra={"switch": switch_id})
    return tuple(expired(row) if row.switch_id in old else row for row in switches)


def _missing(state: SiteState, recovered: Recovered) -> tuple[f.Fact, ...]:
    """Give desired state that the store holds and the journal does not."""
    facts: list[f.Fact] = []
    for lease in recovered.leases:
        entry = lease_by_id(state, lease.lease_id)
        if entry is None or entry.lease is None or entry.lease.version < lease.version:
            facts.append(f.LeaseSeen(lease))
    if recovered.policy is not None:
        facts.append(f.PolicySeen(recovered.policy))
    return tuple(facts)


def _switch_facts(state: SiteState, switches: tuple[Switch, ...]) -> tuple[f.Fact, ...]:
    known = {entry.switch_id for entry in state.switches}
    stored = {switch.switch_id for switch in switches}
    opened = tuple(
        f.SwitchOpened(
            switch.switch_id,
            tuple(device.device_id for device in switch.devices),
            switch.to_activity,
            switch.reason,
            switch.lease_id,
            tuple(
                "" if device.work is None else device.work.instance_id for device in switch.devices
            )
            if switch.to_activity is Activity.SERVE
            else (),
            "" if switch.mode is None else switch.mode.mode,
        )
        for switch in switches
        if switch.switch_id not in known
    )
    orphans = tuple(
        f.SwitchClosed(entry.switch_id, (), (), 0)
        for entry in state.switches
        if entry.switch_id not in stored
    )
    return (*opened, *orphans)


def _meter_facts(state: SiteState, recovered: Recovered) -> tuple[f.Fact, ...]:
    closed = {row.reading.instance_id for row in recovered.meter_heads if row.closed}
    waited = [
        key
        for entry in state.leases
        if entry.status is not LeaseStatus.CLOSED
        for key in entry.to_close
    ]
    done = tuple(key for key in waited if key in closed)
    return (f.MetersPassed(closed=done),) if done else ()

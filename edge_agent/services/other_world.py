"""The other world of a what-if: its site and state, and what of the journal reaches it."""

import copy
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.site import (
    CODE_OF,
    MINE,
    SERVE,
    SWITCHING,
    UNKNOWN,
    FlagColumn,
    IntColumn,
    Site,
)
from edge_agent.core.site_state import (
    LeaseStatus,
    SiteState,
    Slot,
    lease_by_id,
    new_state,
)
from edge_agent.core.snapshot import COLUMNS, STEP_COLUMNS
from edge_agent.services.journal_walk import Step
from edge_agent.services.override_keys import Overrides
from edge_agent.services.overrides import other_market, other_policy, other_tick
from protocol.node import NodeDevice, NodeEventKind
from protocol.resource import Activity, DeviceKind

# How long a switch takes where the span has not yet shown one of its kind: node phases run in
# milliseconds, a miner sleeps within seconds and wakes in its class's warm-up.
_GPU_US = 50_000
_SLEEP_US = 10_000_000
# Marks the ids of this world; ids are letters, digits and single dashes.
_OWN = "-other-"
_READ_COLUMNS = ("power_w", "hashrate_ths", "temp_c", "utilisation")


class Sift(Protocol):
    """Decides what of a row's facts happens in a world at all."""

    def __call__(self, site: Site, state: SiteState, fact: f.Fact) -> tuple[f.Fact, ...]:
        """Give what becomes of a fact; the fact itself where nothing does.

        Args:
            state: of that world, before the row.
        """
        ...


class OtherWorld:
    """Follows the journal as far as it decided the same, and goes its own way where not.

    Args:
        base: the site as it was. site: the other one. source: for each device of it, the index of
            the device of ``base`` that it stands for. state: as it was at the start.
    """

    def __init__(
        self,
        base: Site,
        site: Site,
        source: tuple[int, ...],
        overrides: Overrides,
        state: SiteState,
    ) -> None:
        self.base = base
        self.site = site
        self._overrides = overrides
        self._source: IntColumn = np.array(source, dtype=np.int64)
        # The same fleet: each device stands for itself, and columns need no copy.
        same = np.array_equal(self._source, np.arange(len(base)))
        self._theirs: IntColumn | slice = slice(None) if same else self._source
        self._copies: IntColumn = np.flatnonzero(
            [base.index_of(device.device_id) is None for device in site.devices]
        )
        self._same_fleet = site.digest == base.digest
        self._took_us: dict[tuple[DeviceKind, Activity], int] = {}
        self._kinds = {
            device.device_id: self._kind_of(device.device_class) for device in base.devices
        }
        self._own: dict[str, tuple[f.SwitchOpened, int]] = {}
        self._shared: set[str] = {row.switch_id for row in state.switches}
        self._opened: dict[str, f.SwitchOpened] = {}
        self._drawn = 0
        self._sift: Sift | None = None
        self.state = self._set_out(state)
        self._apart: FlagColumn = np.zeros(len(site), dtype=np.bool_)

    def new_id(self, prefix: str) -> str:
        """Give an id that no journal holds."""
        self._drawn += 1
        return f"{prefix}{_OWN}{self._drawn:06d}"

    def facts_of(self, step: Step) -> tuple[f.Fact, ...]:
        """Give the facts of a row as they reach this world."""
        due = self._closings(step.row.instant)
        rejoined = tuple(self._sifted(self._rejoined(step.before)))
        passed = (fact for said in self._sifted(step.row.facts) for fact in self._pass(said))
        return (*due, *rejoined, *passed)

    def _sifted(self, facts: tuple[f.Fact, ...]) -> Iterator[f.Fact]:
        for fact in facts:
            if self._sift is None:
                yield fact
            else:
                yield from self._sift(self.site, self.state, fact)

    def follow(self, step: Step) -> None:
        """Take a row as it was: this world is still the real one."""
        for fact in step.row.facts:
            if isinstance(fact, f.SwitchClosed):
                self._learn(fact)
            elif isinstance(fact, f.SwitchOpened):
                self._shared.add(fact.switch_id)
        opened = [fact for fact in step.row.acts if isinstance(fact, f.SwitchOpened)]
        self._shared.update(fact.switch_id for fact in opened)
        self._opened.update((fact.switch_id, fact) for fact in opened)
        self.state = step.state

    def fork(self, site: Site, state: SiteState, sift: Sift) -> "OtherWorld":
        """Give a world that goes on from here by itself, with the same devices.

        Args:
            site: with other limits, perhaps. state: the present one, cleared of what is sifted.
        """
        made = copy.copy(self)
        made.lead(site, state, sift)
        return made

    def lead(self, site: Site, state: SiteState, sift: Sift) -> None:
        """Lead this world, just copied, apart from the one it was copied from."""
        was = self.state
        self._own, self._opened = dict(self._own), dict(self._opened)
        self._shared = set(self._shared)
        self._apart = self._apart | _differ(state, was, slice(None))
        self.site, self.state, self._sift = site, state, sift

    def moved(self, step: Step, state: SiteState, acts: tuple[f.Fact, ...]) -> None:
        """Take the state after a row, and note whose the opened switches are."""
        done = {fact.switch_id for fact in step.row.acts if isinstance(fact, f.SwitchOpened)}
        for fact in acts:
            if not isinstance(fact, f.SwitchOpened):
                continue
            if fact.switch_id in done:
                self._shared.add(fact.switch_id)
            else:
                due_ns = state.now_ns + self._lasts_us(fact) * 1_000
                self._own[fact.switch_id] = (fact, due_ns)
        for real in step.row.acts:
            if isinstance(real, f.SwitchOpened):
                self._opened[real.switch_id] = real
        self.state = state
        was = step.state
        self._apart = _differ(state, was, self._theirs)

    # --- the start --------------------------------------------------------------------------

    def _set_out(self, state: SiteState) -> SiteState:
        """Give the state of this world at the start: the same, but for what is overridden."""
        if not self._same_fleet:
            names = tuple(name for name, _ in (*COLUMNS, *STEP_COLUMNS))
            columns = {name: getattr(state, name)[self._source].copy() for name in names}
            for name in ("lease_no", "switch_no"):
                columns[name][self._copies] = -1
            fresh = new_state(self.site, state.instant)
            away = np.isin(columns["activity"][self._copies], (SWITCHING, SERVE))
            for name in ("activity", "origin", "target"):
                columns[name][self._copies[away]] = getattr(fresh, name)[self._copies[away]]
            state = replace(state, **columns)
        return replace(
            state,
            market=other_market(state.market, self._overrides),
            switch_costs=tuple(row for row in state.switch_costs if not self._assumed(row)),
            policy=other_policy(state.policy, self.site.site_id, self._overrides),
        )

    def _kind_of(self, class_name: str) -> DeviceKind:
        at = self.base.class_index(class_name)
        assert at is not None, "a site's devices are of its classes"
        return self.base.classes[at].model.kind

    # --- facts ------------------------------------------------------------------------------

    def _pass(self, fact: f.Fact) -> tuple[f.Fact, ...]:
        match fact:
            case f.MarketSeen():
                return (f.MarketSeen(other_tick(fact.tick, self._overrides)),)
            case f.PolicySeen():
                policy = other_policy(fact.policy, self.site.site_id, self._overrides)
                assert policy is not None, "a policy stays one"
                return (f.PolicySeen(policy),)
            case f.ReadingsSeen():
                return self._readings(fact)
            case f.SwitchClosed():
                return self._closed(fact)
            case f.SwitchOpened():
                self._shared.add(fact.switch_id)  # resumed after a restart
                return (fact,)
            case f.NodeAdopted():
                return (self._adopted(fact),)
            case f.NodeSaid():
                return self._said(fact)
        return () if isinstance(fact, f.SwitchCost) and self._assumed(fact) else (fact,)

    def _assumed(self, fact: f.SwitchCost) -> bool:
        """Tell whether the other world assumes another start of a class: nothing learnt stands."""
        was, told = (
            next((row for row in one.classes if row.class_name == fact.device_class), None)
            for one in (self.base, self.site)
        )
        return was is not None and told is not None and was.mine_start_s != told.mine_start_s

    def _closed(self, fact: f.SwitchClosed) -> tuple[f.Fact, ...]:
        self._learn(fact)
        if fact.switch_id not in self._shared:
            return ()
        own = tuple(key for key in self._instances_on(fact.device_ids) if _OWN in key)
        return (fact, f.MetersPassed(closed=own)) if own else (fact,)

    def _learn(self, fact: f.SwitchClosed) -> None:
        real = self._opened.pop(fact.switch_id, None)
        if real is not None and real.device_ids and "committed" in fact.outcomes:
            self._took_us[self._kinds[real.device_ids[0]], real.to_activity] = fact.took_us

    def _readings(self, fact: f.ReadingsSeen) -> tuple[f.Fact, ...]:
        """Give readings to the devices that stand where theirs stood; the others say their own."""
        if fact.site_digest != self.base.digest:
            return (fact,) if self._same_fleet else ()
        if self._same_fleet and not self._apart.any():
            return (fact,)
        row = f.unpack_readings(fact)
        if self._same_fleet and not self._apart[row.index].any():
            return (fact,)
        place = np.full(len(self.base), -1, dtype=np.int64)
        place[row.index] = np.arange(len(row.index))
        at = np.flatnonzero(place[self._source] >= 0)
        entry = place[self._source[at]]
        apart = self._apart[at]
        columns = {name: getattr(row, name)[entry] for name in _READ_COLUMNS}
        for name in ("power_w", "hashrate_ths", "utilisation"):
            columns[name] = np.where(apart, getattr(self.state, name)[at], columns[name])
        activity = np.where(apart, UNKNOWN, row.activity[entry]).astype(np.uint8)
        told = f.ReadingColumns(at.astype(np.int32), activity, row.reachable[entry], **columns)
        return (f.pack_readings(self.site.digest, told),)

    def _rejoined(self, was: SiteState) -> tuple[f.Fact, ...]:
        """Give the last readings of devices that stand again where theirs stand."""
        state = self.state
        stale = np.logical_or.reduce(
            [getattr(state, name) != getattr(was, name)[self._theirs] for name in _READ_COLUMNS]
        )
        at = np.flatnonzero(stale & ~self._apart & (state.switch_no < 0) & (state.read_ns > 0))
        source = self._source[at]
        # A reading from before the last change says nothing of the present.
        sound = (was.switch_no[source] < 0) & (was.read_ns[source] >= was.since_ns[source])
        other = np.zeros(len(at), dtype=np.bool_)
        for name in _READ_COLUMNS:
            mine, theirs = getattr(state, name)[at], getattr(was, name)[source]
            # What is not known is not equal to itself, and still the same.
            other |= (mine != theirs) & ~(np.isnan(mine) & np.isnan(theirs))
        at = at[sound & other]
        if not len(at):
            return ()
        source = self._source[at]
        columns = {name: getattr(was, name)[source] for name in _READ_COLUMNS}
        return (self._own_readings(at, was.reachable[source].astype(np.uint8), **columns),)

    def _own_readings(
        self, at: IntColumn, reachable: np.ndarray, **columns: np.ndarray
    ) -> f.ReadingsSeen:
        return f.pack_readings(
            self.site.digest,
            f.ReadingColumns(
                at.astype(np.int32), np.full(len(at), UNKNOWN, dtype=np.uint8), reachable, **columns
            ),
        )

    # --- switches of its own ----------------------------------------------------------------

    def _lasts_us(self, fact: f.SwitchOpened) -> int:
        at = self.site.index_of(fact.device_ids[0])
        assert at is not None, "an intent names devices of the site"
        row = self.site.classes[int(self.site.class_of[at])]
        kind = row.model.kind
        known = self._took_us.get((kind, fact.to_activity))
        if known is not None:
            return known
        if kind is not DeviceKind.ASIC:
            return _GPU_US
        return int(row.warmup_s * 1e6) if fact.to_activity is Activity.MINE else _SLEEP_US

    def _closings(self, instant: f.Instant) -> tuple[f.Fact, ...]:
        """End this world's switches that are due; after a boot all of them are."""
        booted = instant.boot_id != self.state.instant.boot_id
        due = [row for row, due_ns in self._own.values() if booted or due_ns <= instant.now_ns]
        facts: list[f.Fact] = []
        for fact in due:
            took_us = self._lasts_us(fact)
            del self._own[fact.switch_id]
            opened = fact.instances if fact.to_activity is Activity.SERVE else ()
            outcomes = ("committed",) * len(fact.device_ids)
            left = self._instances_on(fact.device_ids) if not opened else ()
            facts.append(f.SwitchClosed(fact.switch_id, fact.device_ids, outcomes, took_us, opened))
            if left:
                facts.append(f.MetersPassed(closed=left))
            facts.append(self._mode_readings(fact))
        return tuple(facts)

    def _mode_readings(self, fact: f.SwitchOpened) -> f.ReadingsSeen:
        """Give what devices read in the mode that they have just entered."""
        at = self.site.indices_of(fact.device_ids)
        code = CODE_OF[fact.to_activity]
        power_w = self.site.nameplate_w[self.site.class_of[at], code]
        known = self.state.mine_w[at]
        if code == MINE:
            power_w = np.where(np.isnan(known), power_w, known)
        rate = self.state.mine_ths[at] if code == MINE else np.zeros(len(at))
        return self._own_readings(
            at,
            self.state.reachable[at].astype(np.uint8),
            power_w=power_w,
            hashrate_ths=rate,
            temp_c=self.state.temp_c[at],
            utilisation=self.state.utilisation[at],
        )

    # --- leases -----------------------------------------------------------------------------

    def _slot_of(self, device_id: str) -> Slot | None:
        """Give the slot of a live or ending lease that has work on a device."""
        for entry in self.state.leases:
            if entry.status is LeaseStatus.CLOSED:
                continue
            for slot in entry.slots:
                if slot.device_id == device_id and slot.instance_id:
                    return slot
        return None

    def _instances_on(self, device_ids: tuple[str, ...]) -> tuple[str, ...]:
        slots = (self._slot_of(device_id) for device_id in device_ids)
        return tuple(slot.instance_id for slot in slots if slot is not None)

    def _adopted(self, fact: f.NodeAdopted) -> f.NodeAdopted:
        """Let a node speak of the devices that do here what it says."""
        if self._same_fleet and not self._apart.any():
            told = fact.devices
        else:
            told = tuple(device for device in fact.devices if self._holds(device))
        return fact if len(told) == len(fact.devices) else replace(fact, devices=told)

    def _holds(self, device: NodeDevice) -> bool:
        at = self.site.index_of(device.device_id)
        if at is None or self._apart[at]:
            return False
        if device.work is None:
            return True
        slot = self._slot_of(device.device_id)
        return slot is not None and slot.instance_id == device.work.instance_id

    def _said(self, fact: f.NodeSaid) -> tuple[f.Fact, ...]:
        """Let events of instances reach the instance that does the work here."""
        event = fact.event
        if event.instance_id is None or event.lease_id is None:
            return (fact,)
        entry = lease_by_id(self.state, event.lease_id)
        slots = () if entry is None else entry.slots
        if any(
            slot.instance_id == event.instance_id and slot.device_id == event.device_id
            for slot in slots
        ):
            return (fact,)
        if event.kind is NodeEventKind.DEVICE_LOST:
            return (replace(fact, event=replace(event, lease_id=None, instance_id=None)),)
        serving = next((slot for slot in slots if slot.serving and not slot.completed), None)
        if event.kind is not NodeEventKind.COMPLETED or serving is None:
            return ()
        moved = replace(event, device_id=serving.device_id, instance_id=serving.instance_id)
        return (replace(fact, event=moved), f.MetersPassed(closed=(serving.instance_id,)))


def _differ(state: SiteState, was: SiteState, source: IntColumn | slice) -> np.ndarray:
    """Tell which devices do not do the same in two worlds."""
    names = ("activity", "target", "step", "step_to")
    apart = [
        getattr(state, name) != getattr(was, name)[source]
        for name in names
        if not isinstance(source, slice) or getattr(state, name) is not getattr(was, name)
    ]
    if not apart:
        return np.zeros(len(state.activity), dtype=np.bool_)
    out: np.ndarray = np.logical_or.reduce(apart)
    return out

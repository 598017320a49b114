"""The node link: agent <-> node on one connection, length-prefixed MessagePack.

The agent connects, says ``Hello`` and reads the node's ``Inventory`` first: what the node holds is
adopted, never overwritten. A phase is asked for by (switch_id, phase); asking again gives the
stored result, so a lost answer costs nothing. Phases that need no word of the agent between them
may be asked for at once (``then``). Readings are kept long after ``ReadingsAck``, so that
an agent restored from an older copy meters again what it forgot, with equal results. What is to be
held ready for a likely switch is desired state: each beat says all of it, and it lapses.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from protocol.lease import AccessKeys, OnPartition, WorkloadSpec
from protocol.resource import Activity, DeviceKind
from protocol.units import (
    Count,
    Ident,
    Positive,
    SiteName,
    Text,
    UtcDatetime,
    check_base_url,
    check_utc,
)

# More GPUs than one host has.
PREPARE_MAX = 64
# The code of an engine that is ready whether anybody asks or not.
STANDING = "standing"
# An agent that is started anew says again what it wants before this.
PREPARE_LAPSES_S = 30.0
# An operator's word on a fence holds so long at the agent, and at a node without its agent.
RELEASE_LAPSES_S = 30.0


class Phase(StrEnum):
    """Phases of a switch, in order; rollback undoes, quarantine gives up on the device."""

    VALIDATE = "validate"
    DRAIN = "drain"
    PAUSE = "pause"
    SAVE = "save"
    HANDOVER = "handover"
    ACTIVATE = "activate"
    VERIFY = "verify"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    QUARANTINE = "quarantine"


class LeaseWork(Struct, frozen=True, kw_only=True):
    """The work of a lease on a device; ``instance_id`` names this start of it."""

    lease_id: Ident
    workload_id: Ident
    attempt: Positive
    instance_id: Ident
    device_class: Ident
    spec: WorkloadSpec
    on_partition: OnPartition = OnPartition.STAY
    lapse_after_s: Positive = 300


class DeviceStep(Struct, frozen=True, kw_only=True):
    """What one device leaves and enters in a switch; ``work`` is given when it enters ``serve``."""

    device_id: Ident
    from_activity: Activity
    to_activity: Activity
    work: LeaseWork | None = None


class DeviceOutcome(Struct, frozen=True, kw_only=True):
    """How one phase ended on one device: ``done``, ``refused``, ``failed`` or ``unknown``.

    Args:
        strategy: by which the device is switched, where its host has one; empty: not told.
        moved_mib: weights and state that this phase moved; None: not told.
        engine_us: of its time, waited for the workloads' own acts; None: not told.
        saved: what became of what a workload was at when its program was ended: ``kept``, ``lost``,
            ``used``, ``anew`` or ``dropped``; empty: nothing to say, or not told.
    """

    device_id: Ident
    status: Ident
    code: str = ""
    detail: Text = ""
    at: UtcDatetime | None = None
    strategy: str = ""
    moved_mib: Count | None = None
    engine_us: Count | None = None
    saved: str = ""


# agent -> node


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """First message; an ``agent_epoch`` below the highest one seen is refused.

    Args:
        readings_seq: the agent has the usage of readings up to here. It may lie below what was
            acked once (an older copy of the agent's store was put back): then the node gives again
            what it still keeps. None: go on after the last ack.
    """

    site_id: SiteName
    agent_epoch: Count
    readings_seq: Count | None = None


class NextPhase(Struct, frozen=True, kw_only=True):
    """A phase to go on to, with its own deadline from when it begins."""

    phase: Phase
    deadline_ms: Positive


class PhaseDo(Struct, frozen=True, kw_only=True, tag="phase_do"):
    """Carry out one phase of a switch on some of the node's devices within ``deadline_ms``.

    Args:
        then: phases to go on to, in order, for as long as every device of the request has done
            each: a node that knows of none answers after the first, and is asked for the next.
    """

    agent_epoch: Count
    switch_id: Ident
    phase: Phase
    deadline_ms: Positive
    steps: tuple[DeviceStep, ...]
    then: tuple[NextPhase, ...] = ()

    @property
    def walk(self) -> tuple[NextPhase, ...]:
        """Give the asked phase and those to follow."""
        return (NextPhase(phase=self.phase, deadline_ms=self.deadline_ms), *self.then)

    @property
    def walk_ms(self) -> int:
        """Give the longest time for all of it."""
        return sum(one.deadline_ms for one in self.walk)


class ReadingsAck(Struct, frozen=True, kw_only=True, tag="readings_ack"):
    """The usage of every reading up to ``seq`` is durable at the agent."""

    seq: Count


class LeaseKeys(Struct, frozen=True, kw_only=True):
    """Who may use what a lease serves."""

    lease_id: Ident
    keys: AccessKeys = ()


class Prepare(Struct, frozen=True, kw_only=True):
    """What a device will likely enter: its engine is to be held ready, and nothing is switched.

    Args:
        enters: ``mine`` or ``serve``. probability: that it is needed ``within_s`` seconds.
        earns_usd_per_h: lost while the engine is not there. energy_usd_per_mwh: at its plug.
        draw_w: most that it draws while it is made ready.
        anew: it may be started, as there is room for that; False: it was ready, and is only kept.
    """

    device_id: Ident
    enters: Activity
    probability: Annotated[float, Meta(ge=0, le=1)]
    within_s: Annotated[float, Meta(ge=0)]
    earns_usd_per_h: float = 0.0
    energy_usd_per_mwh: float = 0.0
    draw_w: Annotated[float, Meta(ge=0)] = 0.0
    why: Text = ""
    anew: bool = True


class GpuRelease(Struct, frozen=True, kw_only=True):
    """An operator's word on one fence of a device; another one of it stays."""

    device_id: Ident
    code: str
    since: UtcDatetime


class AgentBeat(Struct, frozen=True, kw_only=True, tag="agent_beat"):
    """Every 2 s, and before a switch begins and before it opens gates.

    Args:
        hub_heard_age_ms: since the last hub message; None: never in this boot.
        lease_keys: of every lease that the site holds on the node's devices; one that is missing is
            over. None: not told.
        prepare: everything that is to be held ready now; what is missing is let go, and so is all
            of it when no beat comes for ``PREPARE_LAPSES_S``. A node that knows of none does none.
        release: fences that an operator ends now. A node that knows of none ends none.
    """

    agent_epoch: Count
    hub_heard_age_ms: Count | None = None
    lease_keys: tuple[LeaseKeys, ...] | None = None
    prepare: Annotated[tuple[Prepare, ...], Meta(max_length=PREPARE_MAX)] = ()
    release: Annotated[tuple[GpuRelease, ...], Meta(max_length=PREPARE_MAX)] = ()


# node -> agent


class HelloRefused(Struct, frozen=True, kw_only=True, tag="hello_refused"):
    """Wrong site or an epoch from the past."""

    code: Ident
    highest_epoch: Count


class NodeDevice(Struct, frozen=True, kw_only=True):
    """One device as the node knows it: its durable assignment, not a guess."""

    device_id: Ident
    device_class: Ident
    kind: DeviceKind
    activity: Activity
    work: LeaseWork | None = None
    gate_open: bool = False
    quarantined: bool = False


class ReadingKind(StrEnum):
    """Why a reading was taken; LOST closes an interval at the last durable value."""

    OPEN = "open"
    MINUTE = "minute"
    CLOSE = "close"
    LOST = "lost"


class MeterReading(Struct, frozen=True, kw_only=True):
    """Cumulative counters of one instance's meter at one instant, in the order of ``seq``."""

    seq: Positive
    kind: ReadingKind
    lease_id: Ident
    workload_id: Ident
    attempt: Positive
    device_id: Ident
    device_class: Ident
    instance_id: Ident
    boot_id: Ident
    boottime_ns: Count
    at: UtcDatetime
    served_ns: Count
    energy_mj: Count

    def __post_init__(self) -> None:
        """Check the time."""
        check_utc("at", self.at)


class Inventory(Struct, frozen=True, kw_only=True, tag="inventory"):
    """What the node holds, sent once after ``Hello``: devices, and the last reading seq given.

    Args:
        proxy_url: base of the addresses under which customers reach its workload host's proxy;
            None: unknown.
    """

    node_id: Ident
    boot_id: Ident
    at: UtcDatetime
    devices: tuple[NodeDevice, ...]
    last_seq: Count
    through: UtcDatetime | None = None
    proxy_url: str | None = None

    def __post_init__(self) -> None:
        """Check the address."""
        if self.proxy_url is not None:
            check_base_url("proxy_url", self.proxy_url)


class PhaseEnd(Struct, frozen=True, kw_only=True):
    """Result of a phase for the devices asked; ``took_us``: None: not told."""

    phase: Phase
    outcomes: tuple[DeviceOutcome, ...]
    took_us: Count | None = None


class PhaseDone(Struct, frozen=True, kw_only=True, tag="phase_done"):
    """Stored result of (switch_id, phase) for the devices asked.

    Args:
        then: of the phases to follow that were begun; all but the last begun were done by all.
    """

    switch_id: Ident
    phase: Phase
    outcomes: tuple[DeviceOutcome, ...]
    took_us: Count | None = None
    then: tuple[PhaseEnd, ...] = ()

    @property
    def walk(self) -> tuple[PhaseEnd, ...]:
        """Give the results of every phase that was begun, in order."""
        return (
            PhaseEnd(phase=self.phase, outcomes=self.outcomes, took_us=self.took_us),
            *self.then,
        )


class Readings(Struct, frozen=True, kw_only=True, tag="readings"):
    """Readings in order; ``through``: every reading taken at or before it has been sent."""

    readings: tuple[MeterReading, ...]
    through: UtcDatetime | None = None


# Code of a fence of every card of a host that cannot read what it had written down of them.
FENCE_UNREADABLE = "record-unreadable"


class GpuFence(Struct, frozen=True, kw_only=True):
    """What stays true of a GPU until an operator has looked at it and releases it.

    Args:
        code: all that was seen, such as ``xid-79`` or ``xid-48+ecc``; stable for programs.
        ends_by: what ends it, in words. stands: what is still seen of its cause, so that a
            release is refused; empty: nothing.
    """

    code: str
    since: UtcDatetime
    ends_by: Text = ""
    stands: Text = ""


class GpuSample(Struct, frozen=True, kw_only=True):
    """Telemetry of one GPU; None is unknown.

    ``unreleased``: why its host did not end its fence when it was told to; empty: it was not told.
    """

    device_id: Ident
    power_w: float | None = None
    temp_c: float | None = None
    utilisation: float | None = None
    memory_used_mib: float | None = None
    hashrate_mhs: float | None = None
    healthy: bool = True
    fence: GpuFence | None = None
    unreleased: Text = ""


class PrepareStage(StrEnum):
    """How far an engine that is to be held ready has come."""

    PREPARING = "preparing"
    PREPARED = "prepared"
    REFUSED = "refused"
    FAILED = "failed"


class Prepared(Struct, frozen=True, kw_only=True):
    """What became of a ``Prepare``; ``code``: why not, or ``STANDING``; stable for programs."""

    device_id: Ident
    enters: Activity
    stage: PrepareStage
    code: str = ""
    detail: Text = ""


class NodeFacts(Struct, frozen=True, kw_only=True, tag="node_facts"):
    """Once a second: samples of all devices, their present activity, and the proxy's address.

    Args:
        prepared: of everything that is to be held ready, as far as the workload host has told.
        unheard: since its start this node has heard nothing of that from its host.
    """

    at: UtcDatetime
    samples: tuple[GpuSample, ...]
    devices: tuple[NodeDevice, ...]
    proxy_url: str | None = None
    prepared: tuple[Prepared, ...] = ()
    unheard: bool = False

    def __post_init__(self) -> None:
        """Check the address."""
        if self.proxy_url is not None:
            check_base_url("proxy_url", self.proxy_url)


class NodeEventKind(StrEnum):
    """What happened on a node without being asked."""

    INSTANCE_LOST = "instance_lost"
    COMPLETED = "completed"
    LAPSED = "lapsed"
    DEVICE_LOST = "device_lost"
    DEVICE_BACK = "device_back"


class NodeEvent(Struct, frozen=True, kw_only=True, tag="node_event"):
    """A workload or device changed by itself; the node has already made it durable."""

    kind: NodeEventKind
    device_id: Ident
    at: UtcDatetime
    lease_id: str | None = None
    attempt: int | None = None
    instance_id: str | None = None
    detail: Text = ""


AgentToNode = Hello | PhaseDo | ReadingsAck | AgentBeat
NodeToAgent = HelloRefused | Inventory | PhaseDone | Readings | NodeFacts | NodeEvent

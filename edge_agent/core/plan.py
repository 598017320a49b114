"""The plan: intents, lease decisions, and a decision record for every device as columns."""

from enum import IntEnum, IntFlag

from msgspec import Struct

from edge_agent.core.site import CodeColumn, FlagColumn, FloatColumn, IntColumn
from protocol.event import ReleaseOutcome
from protocol.resource import Activity

# Detail of a lease that is ended for the cap; a feeder's name may follow.
POWER_CAP = "power cap"


class Reason(IntEnum):
    """Why a device does what it does; codes stand in columns and the journal, never renumber."""

    KEEP_BEST = 0
    GAIN = 1
    SKI_RENTAL = 2
    HYSTERESIS = 3
    GAIN_BELOW_COST = 4
    DWELL = 5
    HOLD_STALE = 6
    SAFE_POLICY = 7
    LEASE = 8
    LEASE_END = 9
    CAP = 10
    RAMP = 11
    CURTAIL_ORDER = 12
    DRAINED = 13
    HELD = 14
    QUARANTINED = 15
    UNREACHABLE = 16
    SWITCHING = 17
    NO_OPTION = 18
    SHED = 19
    NOT_OWNER = 20
    QUARANTINE_OVER = 21
    CREDIT = 22
    GRID_ORDER = 23
    RESERVE = 24
    STEP_KEEP = 25
    STEP_GAIN = 26
    STEP_OVERDUE = 27
    STEP_WAITS = 28
    STEP_DWELL = 29
    STEP_CAP = 30
    STEP_RAMP = 31
    STEP_LIMIT = 32
    STEP_TRADE = 33
    STEP_REFUSED = 34
    STEP_UNKNOWN = 35


class Gates(IntFlag):
    """Gates that a change has to pass; a set bit is a gate passed."""

    FRESH = 1
    REACHABLE = 2
    FREE = 4
    GAIN = 8
    HYSTERESIS = 16
    DWELL = 32
    CAP = 64
    RAMP = 128


class DecisionRecords(Struct, frozen=True, eq=False):
    """One row per device: activity, best option, money over the expected stay, reason, gates.

    ``step`` and ``step_reason``: the power step that each miner is to take, and why; None where the
    agent sets none. They stand in no digest of their own: changes of step are intents.
    """

    activity: CodeColumn
    best: CodeColumn
    target: CodeColumn
    gain_usd: FloatColumn
    cost_usd: FloatColumn
    reason: CodeColumn
    gates: CodeColumn
    step: CodeColumn | None = None
    step_reason: CodeColumn | None = None


class Intent(Struct, frozen=True, eq=False, kw_only=True):
    """One switch to make: 1..n devices of one class, from one activity to another.

    ``lease_id`` is set when the devices enter ``serve`` for it; such a switch is all or none.
    ``mode`` is set when running miners are to take another power mode: they mine before and after.
    """

    class_index: int
    indices: IntColumn
    from_activity: Activity
    to_activity: Activity
    reason: Reason
    lease_id: str | None = None
    gain_usd: float | None = None
    cost_usd: float | None = None
    mode: str = ""


class Score(Struct, frozen=True):
    """Why a device was picked for a lease; higher totals are better."""

    device_id: str
    total: float
    temperature: float
    utilisation: float
    earnings: float
    locality: float


class TakeLease(Struct, frozen=True):
    """Reserve these devices for the lease."""

    lease_id: str
    scores: tuple[Score, ...]


class RefuseLease(Struct, frozen=True):
    """Not all of ``count`` can be had."""

    lease_id: str
    reason: str


class EndLease(Struct, frozen=True):
    """Begin to end a lease by the edge's own decision."""

    lease_id: str
    outcome: ReleaseOutcome
    detail: str


class ReplaceDevice(Struct, frozen=True):
    """Give a lease another device for one that it lost."""

    lease_id: str
    old_device_id: str
    new_device_id: str


class CloseLease(Struct, frozen=True):
    """Everything of the lease has stopped and its meters are closed: release it."""

    lease_id: str


LeaseAct = TakeLease | RefuseLease | EndLease | ReplaceDevice | CloseLease


class Resume(Struct, frozen=True):
    """Carry on a switch of a former life that waited, or turn it back."""

    switch_id: str
    forward: bool


class PowerView(Struct, frozen=True):
    """The site's power in site watts (PUE included); None is unknown."""

    cap_w: float
    counted_w: float
    measured_w: float | None
    headroom_w: float
    ramp_left_w: float


class ModeShare(Struct, frozen=True):
    """How many devices of a class would run in a mode."""

    device_class: str
    mode: str
    devices: int


class ModeAdvice(Struct, frozen=True):
    """The best power modes of the miners that run, what they would earn, and the gap to the bound.

    Where the site file does not let the agent set modes, it is told for a person or a script.
    """

    shares: tuple[ModeShare, ...]
    worth_usd_per_h: float
    gap_usd_per_h: float


class AllocationView(Struct, frozen=True):
    """How near the miners under the cap are to the best that the cap allows, in USD/h.

    Args:
        worth_usd_per_h: of the devices that mine by this plan, of those that the rule wants to
            mine. bound_usd_per_h: what the linear programme could earn with them under the cap.
        modes: what they could do where the site's file knows power modes.
    """

    worth_usd_per_h: float
    bound_usd_per_h: float
    modes: ModeAdvice | None = None

    @property
    def gap_usd_per_h(self) -> float:
        """Give what the bound is above the plan."""
        return max(self.bound_usd_per_h - self.worth_usd_per_h, 0.0)


class Plan(Struct, frozen=True, eq=False, kw_only=True):
    """What to do now; a plan does nothing by itself.

    ``allocation`` is None while a price is unknown. ``feeder_bound``: devices whose reason CAP or
    SHED is their feeder's; None: a site without feeders. ``resumes``: held switches of a former
    life that go on, or back.
    """

    intents: tuple[Intent, ...]
    leases: tuple[LeaseAct, ...]
    records: DecisionRecords
    power: PowerView
    alarms: tuple[tuple[str, str], ...] = ()
    feeder_bound: FlagColumn | None = None
    allocation: AllocationView | None = None
    resumes: tuple[Resume, ...] = ()

"""What each phase of a switch does on one device: a table of acts, pure.

Theory of operation.
1. A switch leaves one activity and enters another. DRAIN, PAUSE and HANDOVER undo what the device
   holds; HANDOVER, ACTIVATE, VERIFY and COMMIT set up what it enters. The acts follow from what the
   node knows of the device, not from what the agent believes: so they are right after any crash.
2. Every act is idempotent on the driver, so a phase may be carried out again.
3. A gate opens in COMMIT alone and shuts in DRAIN; money depends on nothing else here.
4. ROLLBACK goes back to the durable assignment. Served work whose gate has shut is not served on
   under the same instance: it is reported lost, and the agent starts it anew.
5. QUARANTINE makes the device safe as far as it still obeys.
"""

from msgspec import Struct

from edge_agent.node.state import Assignment, MeterState
from protocol.node import DeviceStep, LeaseWork, Phase
from protocol.resource import Activity


class MineOn(Struct, frozen=True):
    """Start the miner."""


class MineOff(Struct, frozen=True):
    """Stop the miner; the answer carries the counter that now stands still."""


class Prepare(Struct, frozen=True):
    """Make the instance of a lease exist."""

    work: LeaseWork


class Activate(Struct, frozen=True):
    """Make an instance ready."""

    instance_id: str


class CheckCanary(Struct, frozen=True):
    """Compare the instance's first output with what it must be."""

    instance_id: str


class CheckHashing(Struct, frozen=True):
    """See the hash counter move."""


class OpenGate(Struct, frozen=True):
    """Begin to serve and to bill."""

    instance_id: str


class ShutGate(Struct, frozen=True):
    """End serving and billing."""

    instance_id: str


class Stop(Struct, frozen=True):
    """Remove an instance."""

    instance_id: str


Act = (
    MineOn | MineOff | Prepare | Activate | CheckCanary | CheckHashing | OpenGate | ShutGate | Stop
)

# Phases after which readings, or an assignment, must be durable before the answer goes out.
SYNCED_PHASES = frozenset({Phase.DRAIN, Phase.COMMIT, Phase.ROLLBACK, Phase.QUARANTINE})
# A failed try of these is not remembered: asked again, they are tried again.
RETRIED_PHASES = frozenset({Phase.ROLLBACK, Phase.QUARANTINE})


class DeviceView(Struct, frozen=True, kw_only=True):
    """What the node knows of a device when a phase begins.

    Args:
        meters: of every instance not known to be gone. mining: by the last sample; None unknown.
        host_up: the workload host answers. held: its card takes no new work.
    """

    assignment: Assignment
    meters: tuple[MeterState, ...]
    mining: bool | None
    healthy: bool | None
    temp_c: float | None
    lapsed: bool = False
    host_up: bool = True
    held: bool = False


class Refusal(Struct, frozen=True):
    """Why a phase is not begun."""

    code: str
    detail: str


def refusal(phase: Phase, step: DeviceStep, view: DeviceView, temp_c_max: float) -> Refusal | None:
    """Give the reason not to begin a phase on a device; None: begin."""
    if phase in RETRIED_PHASES:
        return None
    entered = step.to_activity
    if entered is Activity.SERVE and step.work is None:
        return Refusal("no_work", "a step to serve must name its work")
    if view.assignment.activity is Activity.FAULT and step.from_activity is not Activity.FAULT:
        return Refusal("fault", view.assignment.ended_detail or "the device is out of use")
    if phase in {Phase.VALIDATE, Phase.COMMIT} and entered is Activity.SERVE and view.lapsed:
        return Refusal("lapsed", "the hub was not heard for longer than the work allows")
    return _unready(step, view, temp_c_max) if phase is Phase.VALIDATE else None


def _unready(step: DeviceStep, view: DeviceView, temp_c_max: float) -> Refusal | None:
    if not view.host_up:
        return Refusal("host_away", "the workload host does not answer")
    if step.from_activity is not Activity.SERVE and any(one.serving for one in view.meters):
        return Refusal("serving", f"{step.device_id} serves {_served(view)}")
    if step.to_activity in {Activity.SERVE, Activity.MINE} or step.from_activity is Activity.FAULT:
        unfit = _unfit(view, temp_c_max)
        if unfit is None and step.to_activity is Activity.SERVE and view.held:
            return Refusal("held", "its card goes on with what runs, and takes no new work")
        return unfit
    return None


def _unfit(view: DeviceView, temp_c_max: float) -> Refusal | None:
    if view.healthy is not True:
        return Refusal("unhealthy", "the device is not healthy, or was not seen of late")
    if view.temp_c is not None and view.temp_c >= temp_c_max:
        return Refusal("too_hot", f"{view.temp_c:.0f} C, at most {temp_c_max:.0f} C")
    return None


def acts(phase: Phase, step: DeviceStep, view: DeviceView) -> tuple[Act, ...]:
    """Give the acts of a phase on a device, in order."""
    if phase is Phase.ROLLBACK:
        return _rollback(step, view)
    if phase is Phase.QUARANTINE:
        return (*_removal(view.meters), MineOff())
    return (*_leave(phase, step, view), *_enter(phase, step))


def _leave(phase: Phase, step: DeviceStep, view: DeviceView) -> tuple[Act, ...]:
    entered = step.work if step.to_activity is Activity.SERVE else None
    kept = None if entered is None else entered.instance_id
    leaving = tuple(one for one in view.meters if one.work.instance_id != kept)
    match phase:
        case Phase.DRAIN:
            return tuple(ShutGate(one.work.instance_id) for one in leaving if _may_be_open(one))
        case Phase.PAUSE if step.to_activity is not Activity.MINE and _may_mine(step, view):
            return (MineOff(),)
        case Phase.HANDOVER:
            return tuple(Stop(one.work.instance_id) for one in leaving)
        case _:
            return ()


def _enter(phase: Phase, step: DeviceStep) -> tuple[Act, ...]:
    if step.to_activity is Activity.MINE:
        return _ENTER_MINE.get(phase, ())
    if step.to_activity is not Activity.SERVE or step.work is None:
        return ()
    match phase:
        case Phase.HANDOVER:
            return (Prepare(step.work),)
        case Phase.ACTIVATE:
            return (Activate(step.work.instance_id),)
        case Phase.VERIFY:
            return (CheckCanary(step.work.instance_id),)
        case Phase.COMMIT:
            return (OpenGate(step.work.instance_id),)
        case _:
            return ()


_ENTER_MINE: dict[Phase, tuple[Act, ...]] = {
    Phase.ACTIVATE: (MineOn(),),
    Phase.VERIFY: (CheckHashing(),),
}


def _rollback(step: DeviceStep, view: DeviceView) -> tuple[Act, ...]:
    held = view.assignment
    removal = _removal(tuple(one for one in view.meters if not still_served(held, one)))
    if held.activity is Activity.MINE:
        return (*removal, MineOn(), CheckHashing())
    if step.to_activity is Activity.MINE or view.mining is not False:
        return (*removal, MineOff())
    return removal


def still_served(held: Assignment, meter: MeterState) -> bool:
    """Tell whether the meter is that of the assigned work, with its gate still open."""
    work = held.work if held.activity is Activity.SERVE else None
    return work is not None and work.instance_id == meter.work.instance_id and meter.serving


def _removal(meters: tuple[MeterState, ...]) -> tuple[Act, ...]:
    shuts = tuple(ShutGate(one.work.instance_id) for one in meters if _may_be_open(one))
    return (*shuts, *(Stop(one.work.instance_id) for one in meters))


def _may_be_open(meter: MeterState) -> bool:
    # Not opened by the last page is no proof: the gate may have opened since.
    return not meter.closed


def _may_mine(step: DeviceStep, view: DeviceView) -> bool:
    mine = Activity.MINE
    return (
        step.from_activity is mine or view.assignment.activity is mine or view.mining is not False
    )


def _served(view: DeviceView) -> str:
    return ", ".join(one.work.lease_id for one in view.meters if one.serving)

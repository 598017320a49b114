"""The switch of 1..n devices of one class, as a transition table.

Theory of operation. All live devices walk the phases in step. In each phase the executor asks, and
every answer, and the phase's deadline, is an event. A node goes on by itself through the phases
between which nobody else has a say (``_further``); its answers are events of each phase all the
same. A device that fails waits, failed; when the
walk ends, the failed ones are rolled back, and those that cannot be rolled back are quarantined. A
switch that is all or none fails whole with its first device. ``step`` is a pure function; an effect
may be carried out again with the same (switch_id, phase), on which nodes and fleets are idempotent,
so ``Begun`` on an open switch just asks its present phase again.
"""

from datetime import datetime
from enum import StrEnum

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.core.curve import ModePoint
from edge_agent.core.errors import JournalError
from protocol.node import DeviceOutcome, LeaseWork, Phase, PhaseEnd
from protocol.resource import Activity, DeviceKind


class Status(StrEnum):
    """Where one device of a switch stands."""

    LIVE = "live"
    FAILED = "failed"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    QUARANTINED = "quarantined"
    # Of a power mode: the miner said no, and mines on in the mode that it had.
    REFUSED = "refused"


FINAL = (Status.COMMITTED, Status.ROLLED_BACK, Status.QUARANTINED, Status.REFUSED)
# How a change of power mode may end at once: nothing was done, and nothing is to be undone.
_SAYS_NO = ("mode.refused", "mode.unsupported")
TAKEN_OVER = "switch.superseded"


class Stage(StrEnum):
    """Stages of the table: a forward phase, the two backward ones, and the end."""

    FORWARD = "forward"
    ROLLBACK = "rollback"
    QUARANTINE = "quarantine"
    CLOSED = "closed"


class Verdict(StrEnum):
    """What the answers of a phase come to, once all are in or the deadline has passed."""

    CLEAN = "clean"
    MIXED = "mixed"
    DEAD = "dead"


# (stage, last forward phase?, verdict) -> next stage. FORWARD from a phase that is not the last
# means its successor. A switch that dies in VALIDATE has touched nothing, and there is nothing to
# undo: see ``_advance``.
TABLE: dict[tuple[Stage, bool, Verdict], Stage] = {
    (Stage.FORWARD, False, Verdict.CLEAN): Stage.FORWARD,
    (Stage.FORWARD, False, Verdict.MIXED): Stage.FORWARD,
    (Stage.FORWARD, False, Verdict.DEAD): Stage.ROLLBACK,
    (Stage.FORWARD, True, Verdict.CLEAN): Stage.CLOSED,
    (Stage.FORWARD, True, Verdict.MIXED): Stage.ROLLBACK,
    (Stage.FORWARD, True, Verdict.DEAD): Stage.ROLLBACK,
    (Stage.ROLLBACK, False, Verdict.CLEAN): Stage.CLOSED,
    (Stage.ROLLBACK, False, Verdict.MIXED): Stage.QUARANTINE,
    (Stage.ROLLBACK, False, Verdict.DEAD): Stage.QUARANTINE,
    (Stage.QUARANTINE, False, Verdict.CLEAN): Stage.CLOSED,
    (Stage.QUARANTINE, False, Verdict.MIXED): Stage.CLOSED,
    (Stage.QUARANTINE, False, Verdict.DEAD): Stage.CLOSED,
}

PATHS: dict[DeviceKind, tuple[Phase, ...]] = {
    DeviceKind.GPU: (
        Phase.VALIDATE,
        Phase.DRAIN,
        Phase.PAUSE,
        Phase.SAVE,
        Phase.HANDOVER,
        Phase.ACTIVATE,
        Phase.VERIFY,
        Phase.COMMIT,
    ),
    # An ASIC's fleet commands, waits for the effect and confirms it in one act.
    DeviceKind.ASIC: (Phase.ACTIVATE,),
}
PATHS[DeviceKind.CPU] = PATHS[DeviceKind.GPU]

_UNDO = {Stage.ROLLBACK: Phase.ROLLBACK, Stage.QUARANTINE: Phase.QUARANTINE}

WORD_CHARS_MAX = 32
# How long what a switch saved may be gone back to.
SAVED_S = 86_400.0

DEADLINE_S: dict[Phase, float] = {
    Phase.VALIDATE: 3.0,
    Phase.DRAIN: 10.0,
    Phase.PAUSE: 10.0,
    Phase.SAVE: 10.0,
    Phase.HANDOVER: 15.0,
    Phase.ACTIVATE: 30.0,
    Phase.VERIFY: 15.0,
    Phase.COMMIT: 10.0,
    Phase.ROLLBACK: 30.0,
    Phase.QUARANTINE: 10.0,
}


class SwitchDevice(Struct, frozen=True, array_like=True):
    """One device: what it leaves (the undo), what it enters, and where it stands.

    ``strategy``, ``moved_mib`` and ``engine_us`` (what its workloads took of the time) are what its
    node told of the way it is switched. ``ready``: what it enters was held ready when it began.
    ``saved``: what became of what its workload was at when it was ended; empty: nothing to say.
    """

    device_id: str
    node_id: str | None
    from_activity: Activity
    work: LeaseWork | None = None
    status: Status = Status.LIVE
    answered: bool = False
    code: str = ""
    committed_at: datetime | None = None
    strategy: str = ""
    moved_mib: int = 0
    engine_us: int = 0
    from_mode: ModePoint | None = None
    ready: bool = False
    saved: str = ""


class PhaseSpan(Struct, frozen=True, array_like=True):
    """How long a phase took."""

    phase: Phase
    took_us: int


class Switch(Struct, frozen=True, array_like=True):
    """One switch; the stored form is the intent and its undo.

    ``resumed``: carried on after a restart, or an answer was lost: later phases than the present
    one may have run.
    ``mode``: the power mode that running miners are to take; each device keeps the one it leaves.
    """

    switch_id: str
    kind: DeviceKind
    device_class: str
    to_activity: Activity
    reason: str
    lease_id: str | None
    all_or_none: bool
    opened_ns: int
    activate_s: float
    gain_usd: float | None
    cost_usd: float | None
    devices: tuple[SwitchDevice, ...]
    stage: Stage
    phase: Phase
    phase_ns: int
    spans: tuple[PhaseSpan, ...] = ()
    commit_asked: bool = False
    resumed: bool = False
    mode: ModePoint | None = None


class Begun(Struct, frozen=True):
    """Start, or carry on after a restart."""


class Answered(Struct, frozen=True):
    """Some devices answered the phase; a phase other than the present one is stale."""

    phase: Phase
    outcomes: tuple[DeviceOutcome, ...]


class Expired(Struct, frozen=True):
    """The deadline of a phase passed; what has not answered has failed, its effect is unknown."""

    phase: Phase


class Lost(Struct, frozen=True):
    """A node may have heard an ask of several phases, and its answer was lost."""


Event = Begun | Answered | Expired | Lost


class TimedPhase(Struct, frozen=True):
    """A phase with its deadline in seconds from when it begins."""

    phase: Phase
    deadline_s: float


class Ask(Struct, frozen=True):
    """Ask these devices for a phase, within ``deadline_s``, and to go on to those of ``then``."""

    phase: Phase
    devices: tuple[SwitchDevice, ...]
    deadline_s: float
    then: tuple[TimedPhase, ...] = ()


class Closed(Struct, frozen=True):
    """The switch is over."""


Effect = Ask | Closed


def step(switch: Switch, event: Event, now_ns: int) -> tuple[Switch, tuple[Effect, ...]]:
    """Give the switch after one event, and what to do."""
    if switch.stage is Stage.CLOSED:
        return switch, ()
    match event:
        case Begun():
            return switch, (_ask(switch),)
        case Answered(phase, outcomes):
            if phase is not switch.phase:
                return switch, ()
            switch = _take(switch, outcomes)
        case Expired(phase):
            if phase is not switch.phase:
                return switch, ()
            switch = _expire(switch)
        case Lost():
            return replace(switch, resumed=True), ()
    if any(not device.answered for device in _concerned(switch)):
        return switch, ()
    return _advance(switch, now_ns)


class Said(Struct, frozen=True):
    """What one node, or the fleet, said to an ask.

    Args:
        ends: results by phase, in order; empty: nothing in time. lost: it may have heard the ask
            once without being heard.
    """

    ends: tuple[PhaseEnd, ...]
    lost: bool = False


def hear(
    switch: Switch, ask: Ask, said: tuple[Said, ...], began_ns: int, now_ns: int
) -> tuple[Switch, tuple[Effect, ...]]:
    """Give the switch after all answers to an ask, and what to do next.

    Args:
        began_ns: when it was asked. now_ns: when the last answer came. The times that nodes tell of
            their phases lie in between; the rest is the last phase's.
    """
    if ask.then and any(one.lost for one in said):
        switch, _ = step(switch, Lost(), now_ns)
    effects: tuple[Effect, ...] = ()
    ends = _by_phase(ask, said)
    at_ns = began_ns
    for number, end in enumerate(ends):
        if end.phase is not switch.phase:
            break  # it fails as a whole: what the other nodes went on to is undone
        at_ns = min(at_ns + (end.took_us or 0) * 1_000, now_ns)
        last = number == len(ends) - 1
        switch, effects = step(switch, Answered(end.phase, end.outcomes), now_ns if last else at_ns)
    if effects:
        return switch, effects
    if switch.phase is ask.phase:
        return step(switch, Expired(ask.phase), now_ns)
    # A node stopped on the way, at a failure: its other devices are asked to go on.
    return step(switch, Begun(), now_ns)


def _by_phase(ask: Ask, said: tuple[Said, ...]) -> tuple[PhaseEnd, ...]:
    """Put together what all of them said of each phase, as far as any of them went."""
    ends = []
    for phase in (ask.phase, *(one.phase for one in ask.then)):
        told = [end for one in said for end in one.ends if end.phase is phase]
        if not told:
            break
        outcomes = tuple(outcome for end in told for outcome in end.outcomes)
        took_us = max(end.took_us or 0 for end in told)
        ends.append(PhaseEnd(phase=phase, outcomes=outcomes, took_us=took_us))
    return tuple(ends)


def expired(switch: Switch) -> Switch:
    """Give a switch whose saved state has outlived its time: it goes back, not on.

    What ``PAUSE`` and ``SAVE`` kept (jobs, nonce ranges, requests) means nothing after so long. A
    switch that may have committed goes on: its gates may be open, and the nodes know.
    """
    if switch.stage is not Stage.FORWARD or switch.commit_asked or switch.kind is DeviceKind.ASIC:
        return switch
    return turned_back(switch, "expired")


def turned_back(switch: Switch, code: str) -> Switch:
    """Give a switch that goes back, not on; one that has nothing to undo is over.

    Args:
        code: why, for devices that have none yet.
    """
    devices = tuple(
        replace(device, status=Status.FAILED, answered=False, code=device.code or code)
        if device.status in (Status.LIVE, Status.FAILED)
        else device
        for device in switch.devices
    )
    if not any(device.status is Status.FAILED for device in devices):
        return replace(switch, stage=Stage.CLOSED, devices=devices)
    return replace(switch, stage=Stage.ROLLBACK, phase=Phase.ROLLBACK, devices=devices)


def left_to(switch: Switch, device_ids: frozenset[str]) -> Switch:
    """Give a switch without the devices that a newer one has taken over from it.

    Args:
        device_ids: those that are still its own.
    """
    devices = tuple(
        replace(device, status=Status.ROLLED_BACK, code=TAKEN_OVER)
        if device.status in (Status.LIVE, Status.FAILED) and device.device_id not in device_ids
        else device
        for device in switch.devices
    )
    return replace(switch, devices=devices)


def outcomes_of(switch: Switch) -> tuple[str, ...]:
    """Give how each device ended."""
    return tuple(device.status.value for device in switch.devices)


def codes_of(switch: Switch) -> tuple[str, ...]:
    """Give why devices did not commit; nothing where all did."""
    codes = tuple(
        "" if device.status is Status.COMMITTED else device.code for device in switch.devices
    )
    return codes if any(codes) else ()


def encode_switch(switch: Switch) -> bytes:
    """Encode for the store."""
    return _ENCODER.encode(switch)


def decode_switch(data: bytes) -> Switch:
    """Decode what the store kept.

    Raises:
        JournalError: the bytes are no switch.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError) as exc:
        raise JournalError("bad_switch", str(exc)) from exc


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Switch)


def _concerned(switch: Switch) -> tuple[SwitchDevice, ...]:
    """Give the devices that the present phase is about."""
    wanted = Status.LIVE if switch.stage is Stage.FORWARD else Status.FAILED
    return tuple(device for device in switch.devices if device.status is wanted)


def _take(switch: Switch, outcomes: tuple[DeviceOutcome, ...]) -> Switch:
    said = {outcome.device_id: outcome for outcome in outcomes}
    devices = []
    concerned = Status.LIVE if switch.stage is Stage.FORWARD else Status.FAILED
    for device in switch.devices:
        outcome = said.get(device.device_id)
        if outcome is None or device.answered or device.status is not concerned:
            devices.append(device)
            continue
        judged = _judge(switch.stage, device, done=outcome.status == "done", code=outcome.code)
        if switch.mode is not None:
            judged = _judge_mode(judged, outcome.code)
        judged = replace(
            judged,
            strategy=outcome.strategy[:WORD_CHARS_MAX] or device.strategy,
            moved_mib=device.moved_mib + (outcome.moved_mib or 0),
            engine_us=device.engine_us + (outcome.engine_us or 0),
            saved=outcome.saved[:WORD_CHARS_MAX] or device.saved,
        )
        if switch.phase is Phase.COMMIT:
            judged = replace(judged, committed_at=outcome.at)
        devices.append(judged)
    return _whole(replace(switch, devices=tuple(devices)))


def _expire(switch: Switch) -> Switch:
    concerned = Status.LIVE if switch.stage is Stage.FORWARD else Status.FAILED
    devices = tuple(
        _judge(switch.stage, device, done=False, code="deadline")
        if device.status is concerned and not device.answered
        else device
        for device in switch.devices
    )
    return _whole(replace(switch, devices=devices))


def _judge(stage: Stage, device: SwitchDevice, *, done: bool, code: str) -> SwitchDevice:
    if stage is Stage.FORWARD:
        status = Status.LIVE if done else Status.FAILED
        return replace(device, status=status, answered=True, code=device.code or code)
    if stage is Stage.ROLLBACK:
        status = Status.ROLLED_BACK if done else Status.FAILED
        return replace(device, status=status, answered=True)
    return replace(device, status=Status.QUARANTINED, answered=True)


def _judge_mode(device: SwitchDevice, code: str) -> SwitchDevice:
    """Leave a miner alone that refused the mode, or that a newer switch has taken over."""
    if device.status is not Status.FAILED:
        return device
    if code in _SAYS_NO:
        return replace(device, status=Status.REFUSED)
    return replace(device, status=Status.ROLLED_BACK) if code == TAKEN_OVER else device


def _whole(switch: Switch) -> Switch:
    """Fail every live device of an all-or-none switch as soon as one has failed."""
    if switch.stage is not Stage.FORWARD or not switch.all_or_none:
        return switch
    if not any(device.status is Status.FAILED for device in switch.devices):
        return switch
    devices = tuple(
        replace(device, status=Status.FAILED, answered=True, code=device.code or "with_others")
        if device.status is Status.LIVE
        else device
        for device in switch.devices
    )
    return replace(switch, devices=devices)


def _advance(switch: Switch, now_ns: int) -> tuple[Switch, tuple[Effect, ...]]:
    took = PhaseSpan(switch.phase, max(now_ns - switch.phase_ns, 0) // 1_000)
    switch = replace(switch, spans=(*switch.spans, took), phase_ns=now_ns)
    path = PATHS[switch.kind]
    last = switch.stage is Stage.FORWARD and switch.phase is path[-1]
    verdict = _verdict(switch)
    if last:
        switch = _commit_live(switch)
    stage = TABLE[switch.stage, last, verdict]
    if switch.phase is Phase.VALIDATE and not switch.resumed:
        switch = _untouched(switch)
        stage = Stage.CLOSED if verdict is Verdict.DEAD else stage
    if stage is Stage.CLOSED:
        return replace(switch, stage=stage), (Closed(),)
    phase = _UNDO.get(stage) or path[path.index(switch.phase) + 1]
    devices = tuple(replace(device, answered=False) for device in switch.devices)
    commit_asked = switch.commit_asked or phase is Phase.COMMIT
    switch = replace(switch, stage=stage, phase=phase, devices=devices, commit_asked=commit_asked)
    return switch, (_ask(switch),)


def _verdict(switch: Switch) -> Verdict:
    failed = any(device.status is Status.FAILED for device in switch.devices)
    if switch.stage is not Stage.FORWARD:
        return Verdict.MIXED if failed else Verdict.CLEAN
    live = any(device.status is Status.LIVE for device in switch.devices)
    if not live:
        return Verdict.DEAD
    return Verdict.MIXED if failed else Verdict.CLEAN


def _commit_live(switch: Switch) -> Switch:
    devices = tuple(
        replace(device, status=Status.COMMITTED) if device.status is Status.LIVE else device
        for device in switch.devices
    )
    return replace(switch, devices=devices)


def _untouched(switch: Switch) -> Switch:
    """Count what VALIDATE refused as undone: a device that cannot be undone is quarantined."""
    devices = tuple(
        replace(device, status=Status.ROLLED_BACK) if device.status is Status.FAILED else device
        for device in switch.devices
    )
    return replace(switch, devices=devices)


def _ask(switch: Switch) -> Ask:
    devices = tuple(device for device in _concerned(switch) if not device.answered)
    then = tuple(TimedPhase(phase, _deadline_s(switch, phase)) for phase in _further(switch))
    return Ask(switch.phase, devices, _deadline_s(switch, switch.phase), then)


def _further(switch: Switch) -> tuple[Phase, ...]:
    """Give the phases that a node goes on to by itself.

    COMMIT is for the agent to ask for, once every device has been verified. No node of several
    drains its devices before all of them have agreed to the switch.
    """
    path = PATHS[switch.kind]
    if switch.stage is not Stage.FORWARD or Phase.COMMIT not in path:
        return ()
    nodes = {device.node_id for device in _concerned(switch)}
    if switch.phase is Phase.VALIDATE and len(nodes) > 1:
        return ()
    return path[path.index(switch.phase) + 1 : path.index(Phase.COMMIT)]


def _deadline_s(switch: Switch, phase: Phase) -> float:
    if phase in (Phase.ACTIVATE, Phase.ROLLBACK):
        return max(DEADLINE_S[phase], switch.activate_s)
    return DEADLINE_S[phase]

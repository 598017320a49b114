"""From samples and events to a verdict on the card: gates with reasons. Pure; `now` is given.

Each gate says ok, hold (nothing new starts here) or fence (the card is made safe), and the worst
counts. Heat and power come and go: they fence at one limit and let go below another, so that a
card at its limit does not flap. What an Xid, an uncorrected error or a failed row remap says stays
true until somebody has looked: those gates open again by `released` alone, and only when nothing
that is seen of the card `stands` against it. What needed a reboot is over with it (`rebooted`).
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final

from msgspec import Struct, structs

from firmware_bridges.nvml.samples import EventKind, GpuEvent, GpuSample
from firmware_bridges.nvml.states import GpuState, GpuView
from firmware_bridges.nvml.xid import Effect, Need, XidRow, row_of
from protocol.node import FENCE_UNREADABLE

NS_PER_S: Final = 1_000_000_000
XIDS_KEPT: Final = 16
# Gates that stay shut until they are released.
_REMEMBERED: Final = frozenset({"xid", "ecc", "unavailable", "record", "quarantine"})
# Gates whose fence says that the card failed; heat and power say that it is worked too hard.
_FAILURES: Final = frozenset({"lost", "reset", "silent"})
_TEMPERATURE_CALL: Final = "nvmlDeviceGetTemperature"
# Gates that show the cause of a remembered fence, or that nobody can see whether it is gone.
_CAUSES: Final = frozenset({"unknown", "lost", "reset", "silent", "remap", "recovery"})
# Recovery actions of nvml.h from which on the driver wants the card reset, or the host.
_ACTIONS: Final = {
    1: Need.RESET, 2: Need.REBOOT, 3: Need.RESET, 4: Need.RESET, 5: Need.INSPECT, 6: Need.RESET,
    7: Need.REBOOT,
}  # fmt: skip


class Standing(IntEnum):
    """What may be done with the card, the worst last."""

    OK = 0
    HOLD = 1
    FENCED = 2


class HealthLimits(Struct, frozen=True, kw_only=True):
    """Where the gates stand.

    Args:
        temp_c_max: fences; temp_c_back: lets go. The card's own slowdown limit binds as well.
        memory_temp_c_max: the same for its memory, with memory_temp_c_back and the card's limit.
        margin_c: this far below the card's own limits.
        power_ratio_max: power over its limit in force; fences after power_s.
        fault_s: a card that is silent for so long is fenced; shorter, it is held: the probe of
            another one may have kept it waiting. A lost card is fenced at once.
        failures_max: a card that failed so often within failures_s is in quarantine: it would take
            the next customer's work with it as well.
    """

    temp_c_max: float = 90.0
    temp_c_back: float = 75.0
    memory_temp_c_max: float = 100.0
    memory_temp_c_back: float = 90.0
    margin_c: float = 0.0
    power_ratio_max: float = 1.1
    power_s: float = 10.0
    fault_s: float = 5.0
    failures_max: int = 3
    failures_s: float = 3_600.0


class Finding(Struct, frozen=True):
    """What one gate says."""

    gate: str
    standing: Standing
    reason: str
    need: Need = Need.NONE


class GpuHealth(Struct, frozen=True, kw_only=True):
    """The verdict on a card, and what the next one needs to know.

    Args:
        findings: of every gate that is not ok, the worst first.
        xids: those that hold or fence, until released. hot, memory_hot: above the limit, and not
            yet below the other one. over_power_ns: since when the power is too high.
        uncorrected: uncorrected ECC errors at the last sample; None: never told. new_uncorrected:
            there are such that nobody has looked at. unavailable: the driver said so, once.
        unreadable: what was written down of the card is not known, so that anything may stand.
        failures_ns: when it failed of late. quarantined: too often.
    """

    card: str
    at_ns: int
    findings: tuple[Finding, ...] = ()
    xids: tuple[int, ...] = ()
    hot: bool = False
    memory_hot: bool = False
    over_power_ns: int | None = None
    silent_ns: int | None = None
    uncorrected: int | None = None
    new_uncorrected: bool = False
    unavailable: bool = False
    unreadable: bool = False
    failures_ns: tuple[int, ...] = ()
    quarantined: bool = False

    @property
    def standing(self) -> Standing:
        """Give the worst of all gates."""
        return self.findings[0].standing if self.findings else Standing.OK

    @property
    def is_healthy(self) -> bool:
        """Tell whether what runs on the card may go on."""
        return self.standing is not Standing.FENCED

    @property
    def is_held(self) -> bool:
        """Tell whether nothing new may be started on the card."""
        return self.standing is not Standing.OK

    @property
    def reason(self) -> str:
        """Say why, for a person; empty when all is well."""
        return "; ".join(finding.reason for finding in self.findings)

    @property
    def need(self) -> Need:
        """Say what must be done, by the worst gate that needs anything."""
        needs = [finding.need for finding in self.findings if finding.need is not Need.NONE]
        return needs[0] if needs else Need.NONE


def judged(
    before: GpuHealth,
    view: GpuView,
    events: Sequence[GpuEvent],
    limits: HealthLimits,
    now_ns: int,
) -> GpuHealth:
    """Give the verdict at `now_ns`.

    Args:
        events: new ones of this card since `before`; each is given once.
    """
    health = _remembering(before, view, events, limits, now_ns)
    faults = [*_fault_findings(view, health, limits, now_ns)]
    if view.state is not GpuState.SILENT or view.hangs:
        # not when all are silent because the driver is being replaced
        health = _counting(health, faults, limits, now_ns)
    findings = [
        *faults,
        *_event_findings(health),
        *_heat_findings(view.sample, health),
        *_power_findings(view.sample, health, limits, now_ns),
        *_memory_findings(view.sample, health),
    ]
    findings.sort(key=lambda finding: -finding.standing)
    return structs.replace(health, findings=tuple(findings), at_ns=now_ns)


def released(health: GpuHealth) -> GpuHealth:
    """Forget what a person has looked at: Xids, uncorrected errors, the driver's word, a record."""
    return structs.replace(
        health, xids=(), new_uncorrected=False, unavailable=False, unreadable=False,
        failures_ns=(), quarantined=False,
    )  # fmt: skip


def remembered(health: GpuHealth) -> tuple[str, ...]:
    """Give codes of all that stays true until it is released, such as ``xid-79``, ``ecc``."""
    said = (
        ("ecc", health.new_uncorrected),
        ("unavailable", health.unavailable),
        (FENCE_UNREADABLE, health.unreadable),
        ("quarantine", health.quarantined),
    )
    xids = tuple(f"xid-{number}" for number in health.xids)
    return (*xids, *(code for code, is_true in said if is_true))


def stands(health: GpuHealth) -> str:
    """Say what is still seen of a card that keeps it from being released; empty: nothing."""
    seen = [finding.reason for finding in health.findings if finding.gate in _CAUSES]
    if health.uncorrected:
        seen.append(f"{health.uncorrected} uncorrected ECC errors since its last reset")
    return "; ".join(seen)


def ends_by(health: GpuHealth) -> str:
    """Say what a remembered fence is ended by, for a person."""
    needs = [finding.need for finding in health.findings if finding.gate in _REMEMBERED]
    if set(needs) == {Need.REBOOT}:
        return "a reboot, or an operator's release"
    words = ", ".join(dict.fromkeys(need.value for need in needs))
    return f"an operator's release, after: {words}"


def rebooted(health: GpuHealth) -> GpuHealth:
    """Forget the Xids that a reboot cures; the card was seen to be well in another boot."""
    left = tuple(number for number in health.xids if row_of(number).need is not Need.REBOOT)
    return structs.replace(health, xids=left)


def unjudged(card: str) -> GpuHealth:
    """Give what stands before the first verdict."""
    return GpuHealth(card=card, at_ns=0)


def _remembering(
    before: GpuHealth,
    view: GpuView,
    events: Sequence[GpuEvent],
    limits: HealthLimits,
    now_ns: int,
) -> GpuHealth:
    """Carry over what outlives one sample."""
    sample = view.sample if view.state is GpuState.LIVE else None
    since_ns = now_ns if before.silent_ns is None else before.silent_ns
    silent_ns = None if view.state is GpuState.LIVE else since_ns
    health = structs.replace(before, xids=_xids(before.xids, events), silent_ns=silent_ns)
    kinds = {event.kind for event in events}
    if EventKind.ECC_DOUBLE in kinds:
        health = structs.replace(health, new_uncorrected=True)
    if EventKind.UNAVAILABLE in kinds:
        health = structs.replace(health, unavailable=True)
    if sample is None:
        return health
    info, margin_c = sample.info, limits.margin_c
    temp_max = _least(limits.temp_c_max, info.slowdown_c, margin_c)
    memory_max = _least(limits.memory_temp_c_max, info.memory_c_max, margin_c)
    return structs.replace(
        health,
        hot=_is_hot(before.hot, sample.temp_c, temp_max, limits.temp_c_back),
        memory_hot=_is_hot(
            before.memory_hot, sample.memory_temp_c, memory_max, limits.memory_temp_c_back
        ),
        over_power_ns=_over_power_since(before.over_power_ns, sample, limits, now_ns),
        **_uncorrected(health, sample.ecc_uncorrected_volatile),
    )


def _counting(
    health: GpuHealth, faults: Sequence[Finding], limits: HealthLimits, now_ns: int
) -> GpuHealth:
    """Count a failure when it begins; a card that fails too often is in quarantine."""
    fails = any(one.standing is Standing.FENCED for one in faults)
    failed = any(one.gate in _FAILURES and one.standing is Standing.FENCED
                 for one in health.findings)  # fmt: skip
    if not fails or failed:
        return health
    since_ns = now_ns - round(limits.failures_s * NS_PER_S)
    recent = (*(at_ns for at_ns in health.failures_ns if at_ns > since_ns), now_ns)
    many = len(recent) >= limits.failures_max
    return structs.replace(
        health,
        failures_ns=recent[-limits.failures_max :],
        quarantined=health.quarantined or many,
    )


def _xids(held: tuple[int, ...], events: Sequence[GpuEvent]) -> tuple[int, ...]:
    for event in events:
        if event.kind is not EventKind.XID or event.number in held:
            continue
        if row_of(event.number).effect in {Effect.HOLD, Effect.FENCE}:
            held = (*held, event.number)
    if len(held) > XIDS_KEPT:
        # the first ones tell what began it, but a fence is never forgotten for a hold
        held = tuple(sorted(held, key=lambda number: -_standing_of(row_of(number))))
    return held[:XIDS_KEPT]


def _uncorrected(health: GpuHealth, count: int | None) -> dict[str, object]:
    """Compare with the errors seen before; a lower count is a reset, and counts from there."""
    if count is None:
        return {}
    before = health.uncorrected or 0
    grown = count > (before if count >= before else 0)
    return {"uncorrected": count, "new_uncorrected": health.new_uncorrected or grown}


def _is_hot(was_hot: bool, temp_c: float | None, max_c: float, back_c: float) -> bool:  # noqa: FBT001 - the state before
    if temp_c is None:
        return was_hot
    # a card whose own limit is below the way back would never be let go
    return temp_c > min(back_c, max_c - 1.0) if was_hot else temp_c >= max_c


def _least(limit_c: float, card_c: int | None, margin_c: float) -> float:
    return limit_c if card_c is None else min(limit_c, card_c - margin_c)


def _over_power_since(
    since_ns: int | None, sample: GpuSample, limits: HealthLimits, now_ns: int
) -> int | None:
    if sample.power_w is None or not sample.power_limit_w:
        return since_ns
    if sample.power_w <= sample.power_limit_w * limits.power_ratio_max:
        return None
    return now_ns if since_ns is None else since_ns


def _fault_findings(
    view: GpuView, health: GpuHealth, limits: HealthLimits, now_ns: int
) -> Iterator[Finding]:
    match view.state:
        case GpuState.LIVE:
            return
        case GpuState.UNKNOWN:
            yield Finding("unknown", Standing.HOLD, "not read yet")
        case GpuState.LOST:
            yield Finding("lost", Standing.FENCED, f"lost: {view.detail}", Need.REBOOT)
        case GpuState.RESET_REQUIRED:
            yield Finding("reset", Standing.FENCED, "the card wants a reset", Need.RESET)
        case GpuState.SILENT | GpuState.UNREADABLE:
            since_ns = now_ns if health.silent_ns is None else health.silent_ns
            long = now_ns - since_ns >= limits.fault_s * NS_PER_S
            standing = Standing.FENCED if long else Standing.HOLD
            yield Finding("silent", standing, f"{view.state}: {view.detail}", Need.INSPECT)


def _event_findings(health: GpuHealth) -> Iterator[Finding]:
    if health.unreadable:
        yield Finding("record", Standing.FENCED, "fence record unreadable", Need.INSPECT)
    if health.unavailable:
        yield Finding("unavailable", Standing.FENCED, "the driver cannot use it", Need.RESET)
    if health.quarantined:
        yield Finding("quarantine", Standing.FENCED, "it failed again and again", Need.INSPECT)
    for row in map(row_of, health.xids):
        yield Finding("xid", _standing_of(row), f"Xid {row.xid}: {row.meaning}", row.need)


def _standing_of(row: XidRow) -> Standing:
    return Standing.FENCED if row.effect is Effect.FENCE else Standing.HOLD


def _heat_findings(sample: GpuSample | None, health: GpuHealth) -> Iterator[Finding]:
    if sample is not None and sample.temp_c is None and _TEMPERATURE_CALL in sample.failed_calls:
        # not a card without a sensor: one whose sensor does not answer, so that this gate is blind
        yield Finding("heat", Standing.HOLD, "its temperature cannot be read", Need.INSPECT)
    if health.hot:
        temp_c = None if sample is None else sample.temp_c
        yield Finding("heat", Standing.FENCED, f"{_said(temp_c)} C")
    if health.memory_hot:
        temp_c = None if sample is None else sample.memory_temp_c
        yield Finding("memory heat", Standing.FENCED, f"memory at {_said(temp_c)} C")


def _power_findings(
    sample: GpuSample | None, health: GpuHealth, limits: HealthLimits, now_ns: int
) -> Iterator[Finding]:
    since_ns = health.over_power_ns
    if since_ns is None or sample is None:
        return
    long = now_ns - since_ns >= limits.power_s * NS_PER_S
    reason = f"{_said(sample.power_w)} W over a limit of {_said(sample.power_limit_w)} W"
    yield Finding("power", Standing.FENCED if long else Standing.HOLD, reason)


def _memory_findings(sample: GpuSample | None, health: GpuHealth) -> Iterator[Finding]:
    if health.new_uncorrected:
        reason = f"{health.uncorrected or 'new'} uncorrected ECC errors"
        yield Finding("ecc", Standing.FENCED, reason, Need.RESET)
    if sample is None:
        return
    if sample.remap_failed:
        yield Finding("remap", Standing.FENCED, "a row could not be remapped", Need.INSPECT)
    if sample.remap_pending:
        yield Finding("remap", Standing.HOLD, "a row is remapped at the next reset", Need.RESET)
    if sample.recovery_action:
        # an action that this table does not know is not harmless
        need = _ACTIONS.get(sample.recovery_action, Need.INSPECT)
        reason = f"the driver asks for recovery action {sample.recovery_action}"
        yield Finding("recovery", Standing.FENCED, reason, need)


def _said(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"

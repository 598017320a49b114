"""Every state x event; and a machine that always ends committed, rolled back or quarantined."""

from datetime import UTC, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from edge_agent.core.errors import JournalError
from edge_agent.core.switching import (
    FINAL,
    PATHS,
    TABLE,
    Answered,
    Ask,
    Begun,
    Closed,
    Event,
    Expired,
    Stage,
    Status,
    Switch,
    SwitchDevice,
    Verdict,
    decode_switch,
    encode_switch,
    step,
)
from protocol.node import DeviceOutcome, Phase
from protocol.resource import Activity, DeviceKind

AT = datetime(2026, 1, 1, tzinfo=UTC)


def make(kind: DeviceKind, devices: int, *, all_or_none: bool) -> Switch:
    return Switch(
        switch_id="s-1",
        kind=kind,
        device_class="X",
        to_activity=Activity.SERVE,
        reason="lease",
        lease_id=None,
        all_or_none=all_or_none,
        opened_ns=0,
        activate_s=0.0,
        gain_usd=None,
        cost_usd=None,
        devices=tuple(SwitchDevice(f"d{n}", "n", Activity.MINE) for n in range(devices)),
        stage=Stage.FORWARD,
        phase=PATHS[kind][0],
        phase_ns=0,
    )


def said(phase: Phase, **status: str) -> Answered:
    rows = tuple(DeviceOutcome(device_id=key, status=value, at=AT) for key, value in status.items())
    return Answered(phase, rows)


def test_the_table_defines_every_verdict_of_every_stage() -> None:
    for verdict in Verdict:
        for last in (False, True):
            assert (Stage.FORWARD, last, verdict) in TABLE
        assert (Stage.ROLLBACK, False, verdict) in TABLE
        assert (Stage.QUARANTINE, False, verdict) in TABLE


@pytest.mark.parametrize("kind", [DeviceKind.GPU, DeviceKind.ASIC])
def test_every_state_takes_every_event(kind: DeviceKind) -> None:
    states = [make(kind, 2, all_or_none=flag) for flag in (False, True)]
    seen = 0
    for _ in range(20):
        following: list[Switch] = []
        for switch in states:
            events: list[Event] = [Begun(), Expired(switch.phase)]
            events += [Expired(phase) for phase in Phase]
            for phase in Phase:
                events += [said(phase, d0="done"), said(phase, d0="failed"), said(phase, d1="x")]
                events += [said(phase, d0="done", d1="done"), said(phase, zz="done")]
            for event in events:
                after, effects = step(switch, event, 1)
                assert isinstance(after.stage, Stage)
                assert all(isinstance(effect, (Ask, Closed)) for effect in effects)
                assert (after.stage is Stage.CLOSED) == any(
                    isinstance(effect, Closed) for effect in effects
                ) or switch.stage is Stage.CLOSED
                if after != switch and after not in following and after not in states:
                    following.append(after)
                seen += 1
        states = following[:12]
        if not states:
            break
    assert seen > 500


def test_all_phases_done_commits_in_order() -> None:
    switch = make(DeviceKind.GPU, 3, all_or_none=True)
    switch, effects = step(switch, Begun(), 0)
    walked = []
    for at in range(8):
        ask = effects[0]
        assert isinstance(ask, Ask)
        walked.append(ask.phase)
        switch, effects = step(switch, said(ask.phase, d0="done", d1="done", d2="done"), at * 1_000)
    assert tuple(walked) == PATHS[DeviceKind.GPU]
    assert isinstance(effects[0], Closed)
    assert {device.status for device in switch.devices} == {Status.COMMITTED}
    assert [span.took_us for span in switch.spans] == [0, 1, 1, 1, 1, 1, 1, 1]


def test_what_validate_refuses_is_not_undone_because_nothing_was_touched() -> None:
    switch = make(DeviceKind.GPU, 2, all_or_none=True)
    switch, effects = step(switch, said(Phase.VALIDATE, d0="done", d1="refused"), 0)
    assert isinstance(effects[0], Closed)
    assert {device.status for device in switch.devices} == {Status.ROLLED_BACK}
    # After a restart the stored phase may lie behind what was done: then it is undone.
    resumed = replace(make(DeviceKind.GPU, 2, all_or_none=True), resumed=True)
    _, effects = step(resumed, said(Phase.VALIDATE, d0="done", d1="refused"), 0)
    assert isinstance(effects[0], Ask)
    assert effects[0].phase is Phase.ROLLBACK


def test_one_device_that_validate_refuses_does_not_stop_the_others() -> None:
    switch = make(DeviceKind.GPU, 2, all_or_none=False)
    switch, effects = step(switch, said(Phase.VALIDATE, d0="done", d1="refused"), 0)
    while not isinstance(effects[0], Closed):
        ask = effects[0]
        assert isinstance(ask, Ask)
        assert [device.device_id for device in ask.devices] == ["d0"]
        switch, effects = step(switch, said(ask.phase, d0="done"), 0)
    assert [device.status for device in switch.devices] == [Status.COMMITTED, Status.ROLLED_BACK]


@pytest.mark.parametrize("failing", PATHS[DeviceKind.GPU][1:])
def test_all_or_none_rolls_everything_back_at_each_phase(failing: Phase) -> None:
    switch = make(DeviceKind.GPU, 2, all_or_none=True)
    for phase in PATHS[DeviceKind.GPU]:
        status = "refused" if phase is failing else "done"
        switch, effects = step(switch, said(phase, d0="done", d1=status), 0)
        if phase is failing:
            break
    ask = effects[0]
    assert isinstance(ask, Ask)
    assert ask.phase is Phase.ROLLBACK
    assert {device.device_id for device in ask.devices} == {"d0", "d1"}
    switch, effects = step(switch, said(Phase.ROLLBACK, d0="done", d1="failed"), 0)
    assert [device.status for device in switch.devices] == [Status.ROLLED_BACK, Status.FAILED]
    assert switch.phase is Phase.QUARANTINE
    switch, effects = step(switch, Expired(Phase.QUARANTINE), 0)
    assert [device.status for device in switch.devices] == [
        Status.ROLLED_BACK,
        Status.QUARANTINED,
    ]


def test_a_fleet_switch_commits_the_good_and_rolls_back_the_bad() -> None:
    switch = make(DeviceKind.ASIC, 3, all_or_none=False)
    switch, _ = step(switch, said(Phase.ACTIVATE, d0="done", d1="refused", d2="done"), 0)
    assert switch.stage is Stage.ROLLBACK
    switch, _ = step(switch, said(Phase.ROLLBACK, d1="done"), 0)
    assert [device.status.value for device in switch.devices] == [
        "committed",
        "rolled_back",
        "committed",
    ]


class SwitchMachine(RuleBasedStateMachine):
    """Any answers, late, doubled, lost, with restarts between."""

    def __init__(self) -> None:
        super().__init__()
        self.switch = make(DeviceKind.GPU, 3, all_or_none=False)
        self.now = 0
        self.final: dict[str, Status] = {}

    def _step(self, event: Event) -> None:
        self.now += 1_000
        self.switch, effects = step(self.switch, event, self.now)
        if self.switch.stage is not Stage.CLOSED and effects:
            assert isinstance(effects[0], Ask)
            assert effects[0].devices

    @rule(whole=st.booleans(), kind=st.sampled_from([DeviceKind.GPU, DeviceKind.ASIC]))
    @precondition(lambda self: not self.switch.spans)
    def begin(self, *, whole: bool, kind: DeviceKind) -> None:
        self.switch = make(kind, 3, all_or_none=whole)
        self._step(Begun())

    @rule(
        device=st.sampled_from(["d0", "d1", "d2"]),
        status=st.sampled_from(["done", "done", "done", "failed", "refused", "unknown"]),
    )
    def answer(self, device: str, status: str) -> None:
        self._step(said(self.switch.phase, **{device: status}))

    @rule(phase=st.sampled_from(list(Phase)), device=st.sampled_from(["d0", "d2"]))
    def stale(self, phase: Phase, device: str) -> None:
        if phase is not self.switch.phase:
            before = self.switch
            self._step(said(phase, **{device: "failed"}))
            assert self.switch == before

    @rule()
    def all_done(self) -> None:
        self._step(said(self.switch.phase, d0="done", d1="done", d2="done"))

    @rule()
    def expire(self) -> None:
        self._step(Expired(self.switch.phase))

    @rule()
    def restart(self) -> None:
        self.switch = decode_switch(encode_switch(self.switch))
        self._step(Begun())

    @invariant()
    def final_is_final(self) -> None:
        for device in self.switch.devices:
            if not self.switch.spans:
                self.final = {}
            if device.device_id in self.final:
                assert device.status is self.final[device.device_id]
            if device.status in FINAL:
                self.final[device.device_id] = device.status

    @invariant()
    def closed_means_every_device_is_final(self) -> None:
        if self.switch.stage is Stage.CLOSED:
            assert all(device.status in FINAL for device in self.switch.devices)
            whole = self.switch.all_or_none
            committed = [row.status is Status.COMMITTED for row in self.switch.devices]
            assert not whole or all(committed) or not any(committed)

    def teardown(self) -> None:
        for _ in range(20):
            self._step(Expired(self.switch.phase))
        assert self.switch.stage is Stage.CLOSED


SwitchMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestSwitchMachine = SwitchMachine.TestCase


def test_stored_garbage_is_refused() -> None:
    with pytest.raises(JournalError):
        decode_switch(b"\xc1garbage")

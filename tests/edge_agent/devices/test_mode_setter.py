"""Power modes set by the agent's fleet, on simulated miners of every steered firmware."""

import asyncio

import pytest

from edge_agent.core.curve import ModePoint
from edge_agent.devices.asic_driver import (
    CODE_SUPERSEDED,
    CODE_UNCONFIRMED,
    AsicDriver,
    DrivenAsic,
    DriverSettings,
)
from edge_agent.devices.late import LateEffects
from edge_agent.devices.mode_setter import (
    CODE_ASLEEP,
    CODE_REFUSED,
    CODE_UNSUPPORTED,
    ModeSetter,
    command_for,
    has_already,
)
from edge_agent.devices.ports import AsicAction, DeviceOutcome, OutcomeState, StateCode
from edge_agent.devices.turns import Turns
from firmware_bridges.base import MinerState, ReadDetail, Reading, WorkMode, WriteResult, WriteState
from firmware_bridges.commands import Command, SetMode, SetPowerLimit, SetPowerPercent
from firmware_bridges.sheet import Capability
from simulators.asic_models import MODELS
from tests.edge_agent.devices.scripted import OK, S21, ScriptedMiner, loop_clock, run, silence
from tests.edge_agent.devices.test_every_firmware import KINDS, fleet_of, until
from tests.edge_agent.devices.test_simulated_fleet import simulator

LOW = ModePoint(mode="low", rate_ths=130.0, power_w=1_950.0)
NORMAL = ModePoint(mode="normal", rate_ths=200.0, power_w=3_500.0)
# What each of them can be told, by the firmware matrix; the two older Braiins take no limit.
NO_WAY = {"s19xp-braiins-old", "s19xp-braiins-graphql"}


class ModalMiner(ScriptedMiner):
    """A scripted miner with modes or a limit: it restarts into another one."""

    def __init__(self, *abilities: Capability, mode: WorkMode = WorkMode.NORMAL) -> None:
        super().__init__(mode)
        self.abilities = abilities or (Capability.POWER_MODE,)
        self.limit_w = 3_500
        self.share = 1.0
        self.restart_s = 30.0
        self._changed_s = -1e9

    def effect_s(self, capability: Capability) -> float | None:
        return 120.0 if capability in self.abilities else None

    async def read(self, detail: ReadDetail) -> Reading:
        reading = await super().read(detail)
        if self.told is WorkMode.SLEEP:
            return reading
        running = self._now_s() - self._changed_s >= self.restart_s
        return Reading(
            address=reading.address,
            hashrate_ths=200.0 * self.share if running else 0.0,
            power_w=3_500.0 * self.share if running else 20.0,
            power_limit_w=float(self.limit_w),
            configured_mode=self.told,
            state=MinerState.MINING if running else MinerState.STARTING,
            is_mining=running,
        )

    async def write(self, command: Command) -> WriteResult:
        self.commands.append(command)
        await asyncio.sleep(self.write_takes_s)
        if self.answer.state is WriteState.REFUSED or not self.obeys:
            return self.answer
        if isinstance(command, SetMode):
            self.told = command.mode
            self.share = {WorkMode.LOW: 0.56, WorkMode.HIGH: 1.28}.get(command.mode, 1.0)
        elif isinstance(command, SetPowerLimit):
            self.limit_w, self.share = command.power_w, command.power_w / 3_500.0
        self._changed_s = self._now_s()
        return self.answer


def setter_of(miner: ScriptedMiner) -> tuple[ModeSetter, AsicDriver]:
    device = DrivenAsic(device_id="a1", bridge=miner, nameplate=S21)
    settings, late, turns = DriverSettings(), LateEffects(), Turns(4)
    clock = loop_clock()
    return (
        ModeSetter({"a1": device}, clock=clock, settings=settings, late=late, turns=turns),
        AsicDriver([device], clock=clock, settings=settings, late=late, turns=turns),
    )


def set_once(
    miner: ScriptedMiner, mode: ModePoint = LOW, deadline_s: float = 600.0
) -> DeviceOutcome:
    async def main() -> DeviceOutcome:
        setter, _ = setter_of(miner)
        return (await setter.apply("s1", "activate", mode, ("a1",), deadline_s))[0]

    return run(main())


@pytest.mark.parametrize(
    ("abilities", "mode", "command"),
    [
        ((Capability.POWER_MODE, Capability.POWER_LIMIT), LOW, SetMode(WorkMode.LOW)),
        ((Capability.POWER_LIMIT,), LOW, SetPowerLimit(1_950)),
        (
            (Capability.POWER_MODE, Capability.POWER_LIMIT),
            ModePoint(mode="2500 W", rate_ths=160.0, power_w=2_500.0),
            SetPowerLimit(2_500),
        ),
        ((Capability.POWER_PERCENT,), LOW, SetPowerPercent(56)),
        ((Capability.SLEEP,), LOW, None),
    ],
)
def test_the_way_follows_from_what_the_firmware_has(
    abilities: tuple[Capability, ...], mode: ModePoint, command: Command | None
) -> None:
    assert command_for(ModalMiner(*abilities), mode, S21) == command


def test_a_mode_is_confirmed_when_it_is_told_and_the_power_fell() -> None:
    miner = ModalMiner()
    outcome = set_once(miner)
    assert (outcome.state, miner.commands) == (OutcomeState.CONFIRMED, [SetMode(WorkMode.LOW)])
    assert outcome.acknowledged_ns is not None
    limited = ModalMiner(Capability.POWER_LIMIT)
    assert set_once(limited).state is OutcomeState.CONFIRMED
    assert limited.commands == [SetPowerLimit(1_950)]


def test_a_mode_that_it_has_already_is_not_written_again() -> None:
    miner = ModalMiner()
    assert set_once(miner, NORMAL).state is OutcomeState.CONFIRMED
    assert miner.commands == []
    reading = Reading(address="1", power_limit_w=1_960.0)
    assert has_already(SetPowerLimit(1_950), reading)
    assert not has_already(SetPowerLimit(2_500), reading)
    assert not has_already(SetPowerPercent(50), reading)


@pytest.mark.parametrize(
    ("miner", "code"),
    [(ModalMiner(), CODE_REFUSED), (ModalMiner(Capability.SLEEP), CODE_UNSUPPORTED)],
)
def test_a_no_is_told_apart_from_a_failure(miner: ModalMiner, code: str) -> None:
    miner.answer = WriteResult(state=WriteState.REFUSED, code="45", detail="permission denied")
    outcome = set_once(miner)
    assert (outcome.state, outcome.code) == (OutcomeState.REFUSED, code)
    assert miner.told is WorkMode.NORMAL


def test_a_miner_that_says_yes_and_does_nothing_is_unknown_and_one_that_is_away_untouched() -> None:
    liar = ModalMiner()
    liar.obeys = False
    outcome = set_once(liar)
    assert (outcome.state, outcome.code) == (OutcomeState.UNKNOWN, CODE_UNCONFIRMED)
    away = ModalMiner()
    away.read_error = silence()
    outcome = set_once(away)
    assert (outcome.state, outcome.code) == (OutcomeState.REFUSED, "bridge.timeout")
    assert away.commands == []


def test_a_sleeping_miner_is_not_touched() -> None:
    miner = ModalMiner(mode=WorkMode.SLEEP)
    assert set_once(miner).code == CODE_ASLEEP
    assert miner.commands == []


def test_a_newer_command_takes_the_miner_over() -> None:
    async def main() -> tuple[DeviceOutcome, DeviceOutcome, WorkMode | None]:
        miner = ModalMiner()
        miner.obeys = True
        miner.restart_s = 90.0
        setter, driver = setter_of(miner)
        high = ModePoint(mode="high", rate_ths=230.0, power_w=4_485.0)
        raising = asyncio.ensure_future(setter.apply("s1", "activate", high, ("a1",), 600.0))
        await asyncio.sleep(10.0)
        off = await driver.apply("s2", "activate", AsicAction.CURTAIL, ("a1",), 60.0)
        return (await raising)[0], off[0], miner.told

    raised, off, mode = run(main())
    assert (raised.state, raised.code) == (OutcomeState.UNKNOWN, CODE_SUPERSEDED)
    assert (off.state, mode) == (OutcomeState.CONFIRMED, WorkMode.SLEEP)


def test_asked_again_it_answers_the_same_and_writes_nothing() -> None:
    async def main() -> list[Command]:
        miner = ModalMiner()
        setter, _ = setter_of(miner)
        first = await setter.apply("s1", "activate", LOW, ("a1",), 600.0)
        again = await setter.apply("s1", "activate", LOW, ("a1",), 600.0)
        assert first == again
        other, _ = setter_of(miner)
        assert (await other.apply("s1", "activate", LOW, ("a1",), 600.0))[0].state is (
            OutcomeState.CONFIRMED
        )
        return miner.commands

    assert run(main()) == [SetMode(WorkMode.LOW)]
    assert OK.state is WriteState.ACKNOWLEDGED


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_every_firmware_goes_down_and_up_again_or_says_that_it_cannot() -> None:
    options = ("--count", str(len(KINDS)), "--model", ",".join(KINDS), "--time-scale", "100")
    async with (
        simulator(*options, "--seed", "4", "--v3-port", "0") as addresses,
        asyncio.timeout(180),
        asyncio.TaskGroup() as group,
    ):
        fleet = fleet_of(addresses)
        polling = group.create_task(fleet.run(), name="polling")
        await until(fleet, StateCode.MINING)
        told: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for number, (name, share) in enumerate((("low", 0.75), ("normal", 1.0))):
            outcomes = await asyncio.gather(*(
                fleet.set_mode(
                    f"s{number}-{kind}", "activate",
                    ModePoint(
                        mode=name, rate_ths=MODELS[kind].hashrate_ths * share,
                        power_w=MODELS[kind].power_w * share,
                    ),
                    (f"asic-{place}",), 60.0,
                )
                for place, kind in enumerate(KINDS)
            ))  # fmt: skip
            for kind, (outcome,) in zip(KINDS, outcomes, strict=True):
                good = outcome.state is OutcomeState.CONFIRMED
                told[kind].append("done" if good else f"{outcome.code} {outcome.detail}")
        polling.cancel()
    wrong = {kind: rows for kind, rows in told.items() if rows != ["done", "done"]}
    assert set(wrong) == {*NO_WAY, "a1566"}, wrong
    unable = [row.startswith(CODE_UNSUPPORTED) for kind in NO_WAY for row in wrong[kind]]
    # An Avalon has normal and high, and no low.
    unable += [wrong["a1566"][0].startswith(CODE_UNSUPPORTED), wrong["a1566"][1] == "done"]
    assert all(unable), wrong

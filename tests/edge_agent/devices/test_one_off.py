"""One-off commands: done when their effect is seen, never sent twice."""

from edge_agent.devices.asic_driver import DrivenAsic, DriverSettings
from edge_agent.devices.late import LateEffects
from edge_agent.devices.one_off import OneOffDriver
from firmware_bridges.base import WriteResult, WriteState
from firmware_bridges.commands import Locate, Reboot
from tests.edge_agent.devices.scripted import S21, ScriptedMiner, loop_clock, run


def one_offs(miner: ScriptedMiner) -> OneOffDriver:
    devices = {"asic-0": DrivenAsic(device_id="asic-0", bridge=miner, nameplate=S21)}
    return OneOffDriver(devices, clock=loop_clock(), settings=DriverSettings(), late=LateEffects())


def test_an_act_is_done_when_its_effect_is_seen() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        acts = one_offs(miner)
        assert (await acts.act("locate", "asic-0"))[0] == "done"
        assert (await acts.act("locate_off", "asic-0"))[0] == "done"
        assert (await acts.act("reboot", "asic-0"))[0] == "done"
        assert miner.commands == [Locate(on=True), Locate(on=False), Reboot()]

    run(main())


def test_an_act_without_effect_has_failed_and_is_not_sent_again() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        miner.obeys = False
        miner.effect_within_s = 10.0
        outcome, detail = await one_offs(miner).act("locate", "asic-0")
        assert outcome == "failed"
        assert "effect.none" in detail
        assert len(miner.commands) == 1

    run(main())


def test_what_cannot_be_done_is_refused() -> None:
    async def main() -> None:
        miner = ScriptedMiner()
        acts = one_offs(miner)
        assert (await acts.act("explode", "asic-0"))[0] == "refused"
        assert (await acts.act("reboot", "asic-9"))[0] == "refused"
        miner.answer = WriteResult(state=WriteState.REFUSED, code="45", detail="access denied")
        assert await acts.act("reboot", "asic-0") == ("refused", "45: access denied")

    run(main())

"""Control of VNish with a miner of written answers: presets behind a limit, refusals, silence."""

import pytest

from firmware_bridges.base import WorkMode, WriteState
from firmware_bridges.commands import (
    Command,
    Locate,
    PoolTarget,
    Reboot,
    RestartMining,
    SetMode,
    SetPools,
    SetPowerLimit,
    SetPowerPercent,
    Sleep,
    Wake,
)
from firmware_bridges.errors import (
    BridgeAuthError,
    BridgeError,
    BridgeGarbledError,
    BridgeTimeoutError,
    BridgeUnsupportedError,
)
from firmware_bridges.vnish.control import VnishControl, dearest_within
from tests.firmware_bridges.scripted import Scripted, context

YES = {"success": True}
PRESETS = [{"name": "disabled"}, {"name": "2550"}, {"name": "2800"}, {"name": "3160"}]
POOLS = SetPools(pools=(PoolTarget(url="stratum+tcp://p:1", user="u", password="s"),))


@pytest.mark.parametrize(
    ("command", "path", "body"),
    [
        (Sleep(), "mining/stop", None),
        (Wake(), "mining/start", None),
        (Wake(mode=WorkMode.NORMAL), "mining/start", None),
        (RestartMining(), "mining/restart", None),
        (Reboot(), "system/reboot", {"after": 0}),
        (Locate(on=True), "find-miner", {"on": True}),
        (SetPowerPercent(percent=20), "mining/throttle", {"percent": 20}),
        (
            POOLS,
            "settings",
            {"miner": {"pools": [
                {"url": "stratum+tcp://p:1", "user": "u", "pass": "s", "order": 0}]}},
        ),
    ],
)  # fmt: skip
async def test_each_command_is_one_post(command: Command, path: str, body: object) -> None:
    miner = Scripted(YES)
    told = await VnishControl(context(miner)).write(command)
    assert told.state is WriteState.ACKNOWLEDGED
    assert miner.asked == [("POST", f"/api/v1/{path}", body)]


@pytest.mark.parametrize(("limit_w", "preset"), [(2_800, "2800"), (3_000, "2800"), (9_000, "3160")])
async def test_a_limit_is_the_dearest_preset_within_it(limit_w: int, preset: str) -> None:
    miner = Scripted(PRESETS, {"restart_required": True})
    told = await VnishControl(context(miner)).write(SetPowerLimit(power_w=limit_w))
    assert (told.state, told.detail) == (WriteState.ACKNOWLEDGED, "restart required")
    assert miner.asked[1][2] == {"miner": {"overclock": {"preset": preset}}}


async def test_a_limit_below_every_preset_is_refused_and_not_sent() -> None:
    miner = Scripted(PRESETS)
    told = await VnishControl(context(miner)).write(SetPowerLimit(power_w=2_000))
    assert told.state is WriteState.REFUSED
    assert len(miner.asked) == 1


@pytest.mark.parametrize(
    "command", [SetMode(mode=WorkMode.HIGH), SetPowerPercent(percent=19), Wake(mode=WorkMode.LOW)]
)
async def test_what_it_does_not_have_is_not_sent(command: Command) -> None:
    miner = Scripted()
    with pytest.raises(BridgeUnsupportedError):
        await VnishControl(context(miner)).write(command)
    assert miner.asked == []


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (b"", WriteState.ACKNOWLEDGED),
        ({"err": "already stopped"}, WriteState.REFUSED),
        ({"success": False}, WriteState.REFUSED),
        ([1], WriteState.UNKNOWN),
        (b"<html>", WriteState.UNKNOWN),
        (BridgeTimeoutError("a", "late", sent=True), WriteState.UNKNOWN),
        (BridgeTimeoutError("a", "no connection"), WriteState.REFUSED),
        (BridgeAuthError("a", "401", sent=True), WriteState.REFUSED),
    ],
)
async def test_what_it_says_decides_what_is_known(said: object, state: WriteState) -> None:
    told = await VnishControl(context(Scripted(said))).write(Sleep())
    assert told.state is state


async def test_the_mode_is_read_from_the_summary() -> None:
    stopped = {"miner": {"miner_status": {"miner_state": "stopped"}}}
    assert await VnishControl(context(Scripted(stopped))).mode() is WorkMode.SLEEP
    with pytest.raises(BridgeError):
        await VnishControl(context(Scripted(BridgeGarbledError("a", "no")))).mode()


def test_presets_that_are_no_watts_are_passed_over() -> None:
    assert dearest_within(["disabled", None, "2x", "\u0662", "1500", "900"], 1_000) == "900"
    assert dearest_within(["disabled"], 1_000) is None

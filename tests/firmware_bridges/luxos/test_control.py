"""Control of LuxOS with a miner of written answers: the session, the profiles behind a limit."""

import pytest

from firmware_bridges.base import WorkMode, WriteState
from firmware_bridges.commands import (
    Command,
    Locate,
    Reboot,
    RestartMining,
    SetMode,
    SetPowerLimit,
    SetPowerPercent,
    Sleep,
    Wake,
)
from firmware_bridges.errors import BridgeError, BridgeTimeoutError, BridgeUnsupportedError
from firmware_bridges.luxos.control import LuxosControl
from tests.firmware_bridges.scripted import Scripted, context, status

LOGON = status("S", 316, "Session created", SESSION=[{"SessionID": "abcd1234"}])
YES = status("S", 335, "done")
NO = status("E", 324, "no")
HELD = status("E", 317, "Another session is active")
LATE = BridgeTimeoutError("a", "late", sent=True)


def shown(session: str) -> object:
    return status("S", 319, "Session information", SESSION=[{"SessionID": session}])


def profile(name: str, step: str, watts: object) -> dict[str, object]:
    return {"Profile Name": name, "Step": step, "Watts": watts}


PROFILES = status(
    "S",
    323,
    "List profiles",
    PROFILES=[
        profile("190MHz", "-4", 1000),
        profile("290MHz", "-3", 2000),
        profile("340MHz", "-2", "2200 W"),
        profile("390MHz", "-1", 2600),
        profile("default", "0", 3000),
        profile("440MHz", "1", 3300),
        profile("broken", "2", "much"),
    ],
)
SIMPLE = [
    (Sleep(), "curtail", "abcd1234,sleep", True),
    (Wake(mode=WorkMode.LOW), "curtail", "abcd1234,wakeup", True),
    (Locate(on=True), "ledset", "abcd1234,red,blink", True),
    (Locate(on=False), "ledset", "abcd1234,red,auto", True),
    (RestartMining(), "resetminer", "abcd1234", False),
    (Reboot(), "rebootdevice", "abcd1234", False),
]


@pytest.mark.parametrize(("command", "word", "parameter", "logs_off"), SIMPLE)
async def test_a_command_takes_the_session_and_gives_it_back(
    command: Command, word: str, parameter: str, *, logs_off: bool
) -> None:
    miner = Scripted(LOGON, YES, YES)
    result = await LuxosControl(context(miner)).write(command)
    assert (result.state, result.code) == (WriteState.ACKNOWLEDGED, "335")
    expected: list[tuple[str, str, object]] = [("4028", "logon", None), ("4028", word, parameter)]
    if logs_off:
        expected.append(("4028", "logoff", "abcd1234"))
    assert miner.asked == expected


async def test_a_session_of_somebody_else_is_reported_and_not_used() -> None:
    miner = Scripted(HELD, shown("zzzz9999"))
    result = await LuxosControl(context(miner)).write(Sleep())
    assert (result.state, result.code) == (WriteState.REFUSED, "luxos.session_held")
    assert [key for _, key, _ in miner.asked] == ["logon", "session"]


async def test_a_logon_that_fails_without_a_session_is_told_with_its_code() -> None:
    miner = Scripted(HELD, shown(""))
    result = await LuxosControl(context(miner)).write(Sleep())
    assert (result.state, result.code) == (WriteState.REFUSED, "317")


async def test_a_logon_without_a_session_writes_nothing() -> None:
    miner = Scripted(status("S", 316, "Session created"))
    assert (await LuxosControl(context(miner)).write(Sleep())).state is WriteState.REFUSED
    assert len(miner.asked) == 1


async def test_our_own_session_left_open_by_a_lost_answer_is_used_again() -> None:
    miner = Scripted(LOGON, LATE, shown("abcd1234"), YES, YES)
    control = LuxosControl(context(miner))
    assert (await control.write(Sleep())).state is WriteState.UNKNOWN
    assert (await control.write(Sleep())).state is WriteState.ACKNOWLEDGED
    assert [key for _, key, _ in miner.asked] == [
        "logon",
        "curtail",
        "session",
        "curtail",
        "logoff",
    ]


async def test_our_own_session_that_ended_meanwhile_is_taken_anew() -> None:
    miner = Scripted(LOGON, YES, LATE, shown(""), LOGON, YES, YES)
    control = LuxosControl(context(miner))
    assert (await control.write(Sleep())).state is WriteState.ACKNOWLEDGED
    assert (await control.write(Wake())).state is WriteState.ACKNOWLEDGED
    assert [key for _, key, _ in miner.asked[3:]] == ["session", "logon", "curtail", "logoff"]


async def test_a_logon_that_is_not_answered_is_an_error_and_no_write() -> None:
    with pytest.raises(BridgeError):
        await LuxosControl(context(Scripted(LATE))).write(Sleep())


async def test_a_refusal_keeps_its_code_and_ends_the_session() -> None:
    miner = Scripted(LOGON, NO, YES)
    result = await LuxosControl(context(miner)).write(Sleep())
    assert (result.state, result.code) == (WriteState.REFUSED, "324")
    assert miner.asked[-1] == ("4028", "logoff", "abcd1234")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (SetPowerLimit(power_w=2599), "340MHz"),
        (SetPowerLimit(power_w=2600), "390MHz"),
        (SetPowerLimit(power_w=9000), "440MHz"),
        (SetPowerPercent(percent=100), "default"),
        (SetPowerPercent(percent=70), "290MHz"),
        (SetMode(mode=WorkMode.NORMAL), "default"),
        (SetMode(mode=WorkMode.LOW), "340MHz"),
    ],
)
async def test_a_limit_becomes_the_profile_with_the_most_watts_within_it(
    command: Command, name: str
) -> None:
    miner = Scripted(PROFILES, LOGON, YES, YES, YES)
    assert (await LuxosControl(context(miner)).write(command)).state is WriteState.ACKNOWLEDGED
    assert miner.asked[2:4] == [
        ("4028", "atmset", "abcd1234,enabled=false"),
        ("4028", "profileset", f"abcd1234,{name}"),
    ]


async def test_a_profile_named_like_a_board_is_not_taken_for_one() -> None:
    profiles = status("S", 323, "List", PROFILES=[profile("2", "0", 3000)])
    miner = Scripted(profiles, LOGON, YES, YES, YES)
    await LuxosControl(context(miner)).write(SetPowerLimit(power_w=3000))
    assert miner.asked[3] == ("4028", "profileset", "abcd1234,0,2")


async def test_no_profile_is_set_while_the_thermal_management_cannot_be_switched_off() -> None:
    miner = Scripted(PROFILES, LOGON, NO, YES)
    result = await LuxosControl(context(miner)).write(SetPowerLimit(power_w=3000))
    assert result.state is WriteState.REFUSED
    assert [key for _, key, _ in miner.asked] == ["profiles", "logon", "atmset", "logoff"]


@pytest.mark.parametrize(
    ("command", "profiles", "code"),
    [
        (SetPowerLimit(power_w=999), PROFILES, "luxos.no_profile"),
        (SetPowerLimit(power_w=999), status("S", 323, "List", PROFILES=[]), "luxos.no_profile"),
        (
            SetPowerPercent(percent=50),
            status("S", 323, "List", PROFILES=[profile("mine", "", 3000)]),
            "luxos.no_normal_profile",
        ),
    ],
)
async def test_what_no_profile_can_do_is_refused_before_anything_is_written(
    command: Command, profiles: object, code: str
) -> None:
    miner = Scripted(profiles)
    result = await LuxosControl(context(miner)).write(command)
    assert (result.state, result.code) == (WriteState.REFUSED, code)
    assert len(miner.asked) == 1


async def test_a_high_mode_is_unknown() -> None:
    with pytest.raises(BridgeUnsupportedError):
        await LuxosControl(context(Scripted(PROFILES))).write(SetMode(mode=WorkMode.HIGH))


@pytest.mark.parametrize(
    ("row", "mode"),
    [
        ({"CurtailMode": "Sleep", "ProfileStep": "0"}, WorkMode.SLEEP),
        ({"CurtailMode": "Idle"}, WorkMode.SLEEP),
        ({"CurtailMode": "None"}, WorkMode.NORMAL),
        ({"CurtailMode": "None", "ProfileStep": "-3", "IsAtmEnabled": True}, WorkMode.NORMAL),
        ({"CurtailMode": "None", "ProfileStep": "-3", "IsAtmEnabled": False}, WorkMode.LOW),
        ({"CurtailMode": "None", "ProfileStep": "2", "IsAtmEnabled": False}, WorkMode.HIGH),
        ({}, None),
    ],
)
async def test_the_mode_is_the_curtailment_and_the_profile_that_somebody_chose(
    row: dict[str, object], mode: WorkMode | None
) -> None:
    miner = Scripted(status("S", 33, "LUXminer config", CONFIG=[row]))
    assert await LuxosControl(context(miner)).mode() is mode

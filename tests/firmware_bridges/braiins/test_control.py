"""Control of Braiins OS with a miner of written answers: what is sent, and how it is judged."""

import pytest

from firmware_bridges.base import WorkMode, WriteState
from firmware_bridges.braiins.control_api import BraiinsApiControl
from firmware_bridges.braiins.control_rest import BraiinsRestControl
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
    BridgeRefusedError,
    BridgeTimeoutError,
    BridgeUnsupportedError,
)
from tests.firmware_bridges.scripted import Scripted, context, status

V1 = "/api/v1/"
POOL = PoolTarget(url="stratum+tcp://p:1", user="u", password="s")


def details(number: int) -> object:
    return {"status": number, "hostname": "a"}


REST = [
    (Sleep(), (False,), [("PUT", V1 + "actions/pause", None)]),
    (
        Wake(),
        (details(3), False),
        [("GET", V1 + "miner/details", None), ("PUT", V1 + "actions/resume", None)],
    ),
    (
        Wake(mode=WorkMode.NORMAL),
        (details(1), False),
        [("GET", V1 + "miner/details", None), ("PUT", V1 + "actions/start", None)],
    ),
    (
        SetPowerLimit(power_w=2900),
        ({"watt": 2900},),
        [("PUT", V1 + "performance/power-target", {"watt": 2900})],
    ),
    (
        SetPowerPercent(percent=80),
        ({"tuner_constraints": {"power_target": {"default": {"watt": 3000}}}}, {"watt": 2400}),
        [
            ("GET", V1 + "configuration/constraints", None),
            ("PUT", V1 + "performance/power-target", {"watt": 2400}),
        ],
    ),
    (RestartMining(), (True,), [("PUT", V1 + "actions/restart", None)]),
    (Reboot(), (b"",), [("PUT", V1 + "actions/reboot", None)]),
    (Locate(on=True), (True,), [("PUT", V1 + "actions/locate", True)]),
    (
        SetPools(pools=(POOL,)),
        ([{"name": "hcp", "pools": [{"url": "stratum+tcp://p:1", "user": "u"}]}],),
        [
            (
                "PUT",
                V1 + "pools/batch",
                [
                    {
                        "name": "hcp",
                        "load_balance_strategy": {"quota": {"value": 1}},
                        "pools": [
                            {
                                "enabled": True,
                                "url": "stratum+tcp://p:1",
                                "user": "u",
                                "password": "s",
                            }
                        ],
                    }
                ],
            )
        ],
    ),
]


@pytest.mark.parametrize(("command", "said", "sent"), REST, ids=[repr(row[0]) for row in REST])
async def test_each_command_of_rest_is_sent_as_the_vendor_documents_it(
    command: Command, said: tuple[object, ...], sent: list[tuple[str, str, object]]
) -> None:
    miner = Scripted(*said)
    result = await BraiinsRestControl(context(miner)).write(command)
    assert result.state is WriteState.ACKNOWLEDGED
    assert miner.asked == sent
    assert miner.left == 0


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (BridgeTimeoutError("a", "late", sent=True), WriteState.UNKNOWN),
        (BridgeTimeoutError("a", "no connection"), WriteState.REFUSED),
        (BridgeAuthError("a", "HTTP 403", sent=True), WriteState.REFUSED),
        (BridgeRefusedError("a", "HTTP 400", sent=True), WriteState.REFUSED),
        (b"\x00garbage", WriteState.UNKNOWN),
        ("no truth value", WriteState.UNKNOWN),
    ],
)
async def test_silence_and_nonsense_leave_it_open_and_a_refusal_does_not(
    error: object, state: WriteState
) -> None:
    result = await BraiinsRestControl(context(Scripted(error))).write(Sleep())
    assert result.state is state
    assert result.code.startswith("bridge.")


@pytest.mark.parametrize(
    ("command", "said", "state", "code"),
    [
        (SetPowerLimit(power_w=900), {"watt": 944}, WriteState.REFUSED, "braiins.other_target"),
        (SetPowerLimit(power_w=900), {"watt": 850}, WriteState.ACKNOWLEDGED, ""),
        (SetPowerLimit(power_w=900), {}, WriteState.UNKNOWN, "bridge.garbled"),
        (Locate(on=True), False, WriteState.REFUSED, "braiins.no_effect"),
        (Locate(on=True), b"", WriteState.UNKNOWN, "bridge.garbled"),
        (SetPools(pools=(POOL,)), [], WriteState.UNKNOWN, "braiins.other_pools"),
        (SetPools(pools=(POOL,)), {}, WriteState.UNKNOWN, "bridge.garbled"),
    ],
)
async def test_an_answer_that_tells_another_outcome_is_no_yes(
    command: Command, said: object, state: WriteState, code: str
) -> None:
    result = await BraiinsRestControl(context(Scripted(said))).write(command)
    assert (result.state, result.code) == (state, code)


async def test_a_percent_needs_the_default_target() -> None:
    miner = Scripted({"tuner_constraints": None})
    with pytest.raises(BridgeUnsupportedError):
        await BraiinsRestControl(context(miner)).write(SetPowerPercent(percent=50))
    assert len(miner.asked) == 1


@pytest.mark.parametrize(
    ("number", "mode"),
    [
        (0, None),
        (1, WorkMode.SLEEP),
        (2, WorkMode.NORMAL),
        (3, WorkMode.SLEEP),
        (4, None),
        (5, WorkMode.NORMAL),
    ],
)
async def test_the_mode_follows_from_the_status(number: int, mode: WorkMode | None) -> None:
    assert await BraiinsRestControl(context(Scripted(details(number)))).mode() is mode


async def test_there_are_no_modes_of_power_and_no_empty_list_of_pools() -> None:
    miner = Scripted()
    control = BraiinsRestControl(context(miner))
    with pytest.raises(BridgeUnsupportedError):
        await control.write(SetMode(mode=WorkMode.LOW))
    assert (await control.write(SetPools(pools=()))).state is WriteState.REFUSED
    assert miner.asked == []


@pytest.mark.parametrize(("command", "word"), [(Sleep(), "pause"), (Wake(), "resume")])
async def test_pause_and_resume_are_done_when_the_answer_says_so(
    command: Command, word: str
) -> None:
    miner = Scripted(status("S", 203, word, **{word.upper(): [True]}))
    result = await BraiinsApiControl(context(miner)).write(command)
    assert result.state is WriteState.ACKNOWLEDGED
    assert miner.asked == [("4028", word, None)]


@pytest.mark.parametrize(
    ("said", "state", "code"),
    [
        (status("E", 14, "Invalid command"), WriteState.REFUSED, "14"),
        (status("E", 45, "Access denied"), WriteState.REFUSED, "45"),
        (status("S", 203, "Pause", PAUSE=[False]), WriteState.UNKNOWN, "bridge.garbled"),
        (status("W", 302, "Unavailable"), WriteState.UNKNOWN, "bridge.garbled"),
        (b'{"STATUS":[{"STA', WriteState.UNKNOWN, "bridge.garbled"),
        (b"\0", WriteState.UNKNOWN, "bridge.garbled"),
        (BridgeTimeoutError("a", "late", sent=True), WriteState.UNKNOWN, "bridge.timeout"),
    ],
)
async def test_what_is_no_clear_yes_to_a_pause(said: object, state: WriteState, code: str) -> None:
    result = await BraiinsApiControl(context(Scripted(said))).write(Sleep())
    assert (result.state, result.code) == (state, code)


def tuner(word: str) -> object:
    rows = [{"TunerChainStatus": [{"HashchainIndex": 6, "Status": word}]}]
    return status("S", 200, "Tuner Status", TUNERSTATUS=rows)


@pytest.mark.parametrize(
    ("word", "rate_mhs", "mode"),
    [("Stable", 1e8, WorkMode.NORMAL), ("Stable", 0.0, None), ("", 1e8, WorkMode.NORMAL)],
)
async def test_without_a_word_of_the_tuner_the_rate_tells_the_mode(
    word: str, rate_mhs: float, mode: WorkMode | None
) -> None:
    summary = status("S", 11, "Summary", SUMMARY=[{"MHS 5s": rate_mhs, "Elapsed": 60}])
    assert await BraiinsApiControl(context(Scripted(tuner(word), summary))).mode() is mode


async def test_a_paused_tuner_means_sleep() -> None:
    assert await BraiinsApiControl(context(Scripted(tuner("Mining is paused")))).mode() is (
        WorkMode.SLEEP
    )


POOLS_BEFORE = status("S", 7, "2 Pool(s)", POOLS=[{"POOL": 0, "URL": "a"}, {"POOL": 1, "URL": "b"}])
POOLS_AFTER = status("S", 7, "3 Pool(s)", POOLS=[{"POOL": n, "URL": "x"} for n in (0, 1, 2)])
YES = status("S", 55, "done")


async def test_new_pools_are_added_before_the_old_ones_go() -> None:
    miner = Scripted(POOLS_BEFORE, YES, POOLS_AFTER, YES, YES, YES)
    pool = PoolTarget(url="stratum+tcp://p:1", user="u,v", password="a\\b")
    result = await BraiinsApiControl(context(miner)).write(SetPools(pools=(pool,)))
    assert result.state is WriteState.ACKNOWLEDGED
    assert miner.asked == [
        ("4028", "pools", None),
        ("4028", "addpool", "stratum+tcp://p:1,u\\,v,a\\\\b"),
        ("4028", "pools", None),
        ("4028", "switchpool", "2"),
        ("4028", "removepool", "1"),
        ("4028", "removepool", "0"),
    ]


@pytest.mark.parametrize(
    ("said", "state", "asked"),
    [
        ((POOLS_BEFORE, status("E", 53, "Invalid addpool details")), WriteState.REFUSED, 2),
        ((POOLS_BEFORE, YES, POOLS_BEFORE), WriteState.UNKNOWN, 3),
        ((POOLS_BEFORE, YES, BridgeTimeoutError("a", "late", sent=True)), WriteState.UNKNOWN, 3),
        ((POOLS_BEFORE, YES, POOLS_AFTER, status("E", 67, "active")), WriteState.REFUSED, 4),
    ],
)
async def test_a_step_that_fails_ends_the_change_of_pools(
    said: tuple[object, ...], state: WriteState, asked: int
) -> None:
    miner = Scripted(*said)
    result = await BraiinsApiControl(context(miner)).write(SetPools(pools=(POOL,)))
    assert result.state is state
    assert len(miner.asked) == asked


async def test_pools_that_cannot_be_read_are_not_written() -> None:
    miner = Scripted(BridgeTimeoutError("a", "late", sent=True))
    with pytest.raises(BridgeError):
        await BraiinsApiControl(context(miner)).write(SetPools(pools=(POOL,)))
    assert len(miner.asked) == 1


async def test_a_garbled_status_is_told_as_such() -> None:
    with pytest.raises(BridgeGarbledError):
        await BraiinsRestControl(context(Scripted(b"\x00garbage"))).mode()

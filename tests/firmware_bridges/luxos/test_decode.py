"""Decoders of LuxOS on made-up answers of the documented shapes, of several releases."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridges.base import MinerState, Partial, WorkMode
from firmware_bridges.errors import BridgeError
from firmware_bridges.luxos.family import LUXOS
from firmware_bridges.query import Exchange, cgminer
from firmware_bridges.recognise import decode_exchanges, decode_query
from tests.firmware_bridges.jsonish import assert_plausible, values_under
from tests.firmware_bridges.scripted import status


def say(command: str, body: object) -> Partial:
    ((_, outcome),) = decode_query(LUXOS, cgminer(command), json.dumps(body).encode(), "a")
    assert isinstance(outcome, Partial)
    return outcome


def config(**row: object) -> Partial:
    return say("config", status("S", 33, "LUXminer config", CONFIG=[row]))


def test_a_release_that_poses_as_stock_firmware_is_named_by_its_own_number() -> None:
    row = {
        "API": "3.7",
        "BMMiner": "1.0.0",
        "LUXminer": "2024.2.19.131822-ef17c0c4",
        "Miner": "uart_trans.1.3",
        "Type": "Antminer S9",
    }
    body = json.dumps(status("S", 22, "LUXminer versions", VERSION=[row])).encode()
    decoded = decode_exchanges([Exchange(query=cgminer("version"), body=body)], "10.0.0.1")
    assert decoded.family is LUXOS
    assert decoded.reading.fw_version == "2024.2.19.131822"
    assert decoded.reading.model == "Antminer S9"
    assert decoded.reading.make == "Bitmain"


def test_the_name_of_other_firmware_is_no_release_of_luxos() -> None:
    row = {"API": "3.7", "Miner": "uart_trans.1.3"}
    assert say("version", status("S", 22, "", VERSION=[row])).fw_version is None


@pytest.mark.parametrize(
    ("row", "state", "mode"),
    [
        ({"CurtailMode": "Sleep", "SystemStatus": "Normal"}, MinerState.ASLEEP, WorkMode.SLEEP),
        ({"CurtailMode": "idle"}, MinerState.ASLEEP, WorkMode.SLEEP),
        ({"CurtailMode": "None", "SystemStatus": "Normal"}, None, WorkMode.NORMAL),
        (
            {"CurtailMode": "None", "SystemStatus": "Initializing"},
            MinerState.STARTING,
            WorkMode.NORMAL,
        ),
        ({"SystemStatus": "Shutdown: overheat"}, MinerState.OVERHEATED, None),
        ({"SystemStatus": "Shutdown"}, MinerState.STOPPED, None),
        ({}, None, None),
    ],
)
def test_curtailment_and_system_status(
    row: dict[str, object], state: MinerState | None, mode: WorkMode | None
) -> None:
    partial = config(**row)
    assert (partial.state, partial.configured_mode) == (state, mode)


def test_a_power_target_is_the_limit_only_where_it_is_followed() -> None:
    assert config(IsPowerTargetEnabled=True, ActualPowerTarget=3320).power_limit_w == 3320.0
    assert config(IsPowerTargetEnabled=False, ActualPowerTarget=3320).power_limit_w is None
    assert config(IsPowerTargetEnabled=True, ActualPowerTarget=0).power_limit_w is None
    atm = status("S", 339, "", ATM=[{"Enabled": False, "PowerTarget": 3320, "PowerLimit": 3500}])
    assert say("atm", atm).power_limit_w == 3320.0
    assert say("atm", status("S", 339, "", ATM=[{"Enabled": True}])).power_limit_w is None


def test_the_limit_of_other_machines_is_that_of_their_profile() -> None:
    profiles = [{"Profile Name": "a", "Watts": 1}, {"Profile Name": "b", "Watts": 2}]
    bodies = {
        "config": status("S", 33, "LUXminer config", CONFIG=[{"OS": "LuxOS", "Profile": "b"}]),
        "profiles": status("S", 323, "", PROFILES=profiles),
    }
    exchanges = [
        Exchange(query=cgminer(name), body=json.dumps(body).encode())
        for name, body in bodies.items()
    ]
    assert decode_exchanges(exchanges, "10.0.0.1").reading.power_limit_w == 2.0


def test_sensors_are_told_by_their_names() -> None:
    rows = [
        {"ID": 0, "TEMP": 99, "TopLeft": 47.0, "BottomRight": 51.0, "WaterInlet": 90.0},
        {"ID": 1, "Top Left": -273, "Board": 44.0, "ChipMax": 71.5},
    ]
    partial = say("temps", status("S", 201, "", TEMPS=rows))
    assert (partial.board_temp_c_max, partial.chip_temp_c_max) == (51.0, 71.5)


def test_boards_that_the_owner_shut_down_stop_the_machine_and_ramping_ones_start_it() -> None:
    def devs(*rows: object) -> Partial:
        return say("devs", status("S", 9, "", DEVS=rows))

    off, on = {"IsUserShutdown": True}, {"IsUserShutdown": False, "IsRamping": False}
    assert devs(off, off).state is MinerState.STOPPED
    assert devs(off, on).state is None
    assert devs(on, {"IsRamping": True}).state is MinerState.STARTING
    assert devs(on, on).board_count == 2


def test_a_sleeping_machine_answers_with_a_rate_of_nothing() -> None:
    bodies = {
        "summary": status("S", 11, "Summary", SUMMARY=[{"GHS 5s": 0.0, "GHS av": 0.0}]),
        "config": status("S", 33, "LUXminer config", CONFIG=[{"CurtailMode": "Sleep"}]),
        "power": status("S", 311, "", POWER=[{"PSU": False, "Watts": 0}]),
    }
    exchanges = [
        Exchange(query=cgminer(name), body=json.dumps(body).encode())
        for name, body in bodies.items()
    ]
    reading = decode_exchanges(exchanges, "10.0.0.1").reading
    assert (reading.state, reading.is_mining) == (MinerState.ASLEEP, False)
    assert reading.power_w is None, "0 W stands for unknown"


def test_a_cut_configuration_tells_no_mode_that_the_cut_may_have_changed() -> None:
    row = {"CurtailMode": "None", "IsAtmEnabled": False, "ProfileStep": "-3", "Profile": "x"}
    whole = json.dumps(status("S", 33, "LUXminer config", CONFIG=[row])).encode()
    for length in range(1, len(whole)):
        for _, outcome in decode_query(LUXOS, cgminer("config"), whole[:length], "a"):
            if isinstance(outcome, Partial):
                assert outcome.configured_mode in (None, WorkMode.LOW)


NAMES = [
    "CONFIG",
    "POWER",
    "PROFILES",
    "TEMPS",
    "FANS",
    "EVENTS",
    "DEVS",
    "VERSION",
    "DEVDETAILS",
    "ATM",
    "STATUS",
    "CurtailMode",
    "SystemStatus",
    "ProfileStep",
    "IsAtmEnabled",
    "RedLed",
    "NameplateTHS",
    "MACAddr",
    "Watts",
    "RPM",
    "TopLeft",
    "ChipMax",
    "ID",
    "Profile",
    "Temperature",
    "IsUserShutdown",
    "IsRamping",
    "Chips",
    "Model",
    "Target",
    "Description",
    "Code",
    "PowerTarget",
    "IsPowerTargetEnabled",
    "ActualPowerTarget",
    "LUXminer",
    "Miner",
    "Profile Name",
]


@settings(max_examples=80, deadline=None)
@given(value=values_under(NAMES), command=st.sampled_from(sorted(LUXOS.answers)))
def test_no_value_breaks_a_decoder_or_comes_out_implausible(value: object, command: str) -> None:
    body = json.dumps({command.upper(): value}).encode()
    for _, outcome in decode_query(LUXOS, cgminer(command), body, "a"):
        if isinstance(outcome, Partial):
            assert_plausible(outcome)


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=200), command=st.sampled_from(sorted(LUXOS.answers)))
def test_no_bytes_break_a_decoder(body: bytes, command: str) -> None:
    for _, outcome in decode_query(LUXOS, cgminer(command), body, "a"):
        assert isinstance(outcome, Partial | BridgeError)

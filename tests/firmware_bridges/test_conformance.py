"""What every family must keep: its sheet says what its control can do, and nothing else is sent."""

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
from firmware_bridges.errors import BridgeError, BridgeTimeoutError, BridgeUnsupportedError
from firmware_bridges.families import FAMILIES, FAMILY_OF
from firmware_bridges.family import ControlContext, Family
from firmware_bridges.query import Query, cgminer, keys_of
from firmware_bridges.sheet import Capability
from firmware_bridges.transport import Deadlines

STEERED = [family for family in FAMILIES if family.control is not None]
EXAMPLE: dict[Capability, tuple[Command, ...]] = {
    Capability.SLEEP: (Sleep(),),
    Capability.WAKE: (Wake(), Wake(mode=WorkMode.NORMAL)),
    Capability.POWER_MODE: (SetMode(mode=WorkMode.NORMAL),),
    Capability.POWER_LIMIT: (SetPowerLimit(power_w=3000),),
    Capability.POWER_PERCENT: (SetPowerPercent(percent=80),),
    Capability.RESTART: (RestartMining(),),
    Capability.REBOOT: (Reboot(),),
    Capability.LOCATE: (Locate(on=True), Locate(on=False)),
    Capability.POOLS: (
        SetPools(pools=(PoolTarget(url="stratum+tcp://p:1", user="u", password="s"),)),
    ),
}


class Silent:
    """A miner that takes every request and never answers."""

    def __init__(self) -> None:
        self.asked: list[Query] = []

    async def ask(self, query: Query, deadlines: Deadlines | None = None) -> bytes:
        self.asked.append(query)
        raise BridgeTimeoutError("10.0.0.1:1", "no answer", sent=True)


def context(asker: Silent) -> ControlContext:
    return ControlContext(
        asker=asker,
        credentials=None,
        address="10.0.0.1:1",
        wall_s=lambda: 1_800_000_000.0,
        random_text=lambda: "0123456789abcdef",
    )


@pytest.mark.parametrize("family", STEERED, ids=lambda family: family.name)
@pytest.mark.parametrize("capability", list(EXAMPLE), ids=lambda capability: capability.name)
async def test_what_the_sheet_promises_is_sent_and_nothing_else(
    family: Family, capability: Capability
) -> None:
    assert family.control is not None
    promised = family.sheet.ability(capability) is not None
    for command in EXAMPLE[capability]:
        asker = Silent()
        control = family.control(context(asker))
        if not promised:
            with pytest.raises(BridgeUnsupportedError):
                await control.write(command)
            assert asker.asked == []
            continue
        try:
            result = await control.write(command)
        except BridgeUnsupportedError:
            pytest.fail(f"{family.name} promises {capability.value} and does not know {command!r}")
        except BridgeError:
            continue  # something had to be read first and could not be: nothing was written
        assert result.state is WriteState.UNKNOWN, "silence after a write is no refusal"


@pytest.mark.parametrize("family", STEERED, ids=lambda family: family.name)
def test_a_steered_family_can_put_its_miners_to_sleep_and_wake_them(family: Family) -> None:
    for capability in (Capability.SLEEP, Capability.WAKE):
        row = family.sheet.ability(capability)
        assert row is not None
        assert row.effect_s is not None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_everything_that_a_family_asks_is_decoded(family: Family) -> None:
    if family.reads is None:
        return
    line = [family]
    while line[-1].base is not None:
        line.append(FAMILY_OF[line[-1].base])
    line.append(FAMILY_OF["cgminer"])
    known = {key for each in line for key in each.answers}
    known |= {key for each in line for _, key in each.documents}
    asked = keys_of((*family.reads.fast, *family.reads.slow))
    assert set(asked) <= known
    wires = {query.wire for query in (*family.reads.fast, *family.reads.slow)}
    assert wires <= set(family.ports), "each wire has a default port"


def test_names_of_families_are_their_own() -> None:
    assert len(FAMILY_OF) == len(FAMILIES)


def test_a_pool_password_is_in_no_printed_form() -> None:
    assert "hunter2" not in repr(PoolTarget(url="u", user="w", password="hunter2"))


@pytest.mark.parametrize("power_w", [0, -1, 100_001])
def test_a_power_limit_that_no_miner_can_have_is_refused_by_name(power_w: int) -> None:
    with pytest.raises(ValueError, match="power_w"):
        SetPowerLimit(power_w=power_w)


@pytest.mark.parametrize("percent", [0, 101])
def test_a_share_outside_its_range_is_refused_by_name(percent: int) -> None:
    with pytest.raises(ValueError, match="percent"):
        SetPowerPercent(percent=percent)


@pytest.mark.parametrize("user", ["x" * 513, "a\nb", "a\0"])
def test_a_pool_that_would_break_a_request_is_refused_by_name(user: str) -> None:
    with pytest.raises(ValueError, match=r"pool\.user"):
        PoolTarget(url="stratum+tcp://p:1", user=user)


def test_a_request_longer_than_a_miner_reads_is_not_made() -> None:
    with pytest.raises(ValueError, match="4095"):
        cgminer("addpool", parameter="x" * 5_000)
    with pytest.raises(ValueError, match="command"):
        cgminer("summary|x")

"""Merging partial answers, and what an address may be."""

import pytest

from firmware_bridges.base import Failure, MinerAddress, MinerState, Partial, merge


def test_the_first_source_that_knows_a_field_wins() -> None:
    reading = merge(
        "10.0.0.1",
        [
            Partial(source="stats", hashrate_ths=200.0, rejected=("fan1",)),
            Partial(source="summary", hashrate_ths=190.0, uptime_s=60),
        ],
        [Failure("pools", "bridge.timeout")],
    )
    assert (reading.hashrate_ths, reading.uptime_s) == (200.0, 60)
    assert reading.answered == ("stats", "summary")
    assert reading.failed == (Failure("pools", "bridge.timeout"),)
    assert reading.rejected == ("stats.fan1",)
    assert reading.power_w is None


@pytest.mark.parametrize(
    ("partials", "state", "is_mining"),
    [
        ([Partial(source="a", hashrate_ths=1.0)], MinerState.MINING, True),
        ([Partial(source="a", hashrate_ths=0.0)], MinerState.IDLE, False),
        ([Partial(source="a", state=MinerState.ASLEEP)], MinerState.ASLEEP, False),
        (
            [Partial(source="a", state=MinerState.ASLEEP), Partial(source="b", hashrate_ths=5.0)],
            MinerState.MINING,
            True,
        ),
        (
            [Partial(source="a", state=MinerState.ASLEEP), Partial(source="b", hashrate_ths=0.0)],
            MinerState.ASLEEP,
            False,
        ),
        (
            # The rate that counts is that of the most trusted source, as in the reading.
            [
                Partial(source="a", hashrate_ths=0.0, state=MinerState.ASLEEP),
                Partial(source="b", hashrate_ths=0.001),
            ],
            MinerState.ASLEEP,
            False,
        ),
        ([Partial(source="a", uptime_s=5)], None, None),
        ([], None, None),
    ],
)
def test_mining_is_judged_by_evidence_and_unknown_without(
    partials: list[Partial], state: MinerState | None, is_mining: object
) -> None:
    reading = merge("10.0.0.1", partials)
    assert reading.state is state
    assert reading.is_mining is is_mining


@pytest.mark.parametrize("host", ["miner-1", "", "10.0.0.256"])
def test_an_address_must_be_an_ip_address(host: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        MinerAddress(host=host)


@pytest.mark.parametrize("port", [0, 65_536, -1])
def test_a_port_must_be_in_range(port: int) -> None:
    with pytest.raises(ValueError, match="web_port"):
        MinerAddress(host="127.0.0.1", web_port=port)

"""Each part of the site's model changes what is decided: the same price, with it and without."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.difficulty import EPOCH_BLOCKS
from edge_agent.core.economics import hashprice_usd_per_ths_day, value
from edge_agent.core.restart import ClassBelief, RestartBelief
from edge_agent.core.site import CURTAILED, IDLE, MINE, DeviceClass, Site
from protocol.market import GpuRate
from tests.edge_agent.core.plant import Plant, make_site, tick

# One S21 of the plant by hand: 200 TH/s at 3,500 W (20 W asleep), PUE 1.05, 5 USD/MWh on top, 2 %
# to the pool; 65,000 USD, 83.1 T, 3.125 coins a block. Mining pays below some 105 USD/MWh.
PER_THS_DAY = 3.125 * 65_000.0 * 86_400.0 / (83.1e12 * 2**32) * 1e12
SAVED_MW = (3_500.0 - 20.0) * 1.05 / 1e6


def break_even(
    fees: float = 0.0, fee: float = 0.02, adder: float = 5.0, pue: float = 1.05
) -> float:
    revenue_h = 200.0 * PER_THS_DAY * (3.125 + fees) / 3.125 * (1.0 - fee) / 24.0
    return revenue_h / (SAVED_MW * pue / 1.05) - adder


def activity_at(
    price: float,
    change: Callable[[DeviceClass], DeviceClass] = lambda row: row,
    *,
    fees: float = 0.0,
    passes: int = 30,
) -> int:
    """Give what a miner does after hours at a price."""
    plain = make_site(asics=2, gpus=0)
    site = Site("s", tuple(change(row) for row in plain.classes), plain.devices, plain.limits)
    plant = Plant(site)
    plant.settle(100.0, tick(20.0, 100.0, fees_btc=fees), plant.readings())
    for _ in range(passes):
        plant.settle(900.0, tick(price, plant.at_s + 900.0, fees_btc=fees), passes=2)
    at = site.index_of("a1")
    assert at is not None
    return int(plant.state.activity[at])


def test_the_formula_by_hand_is_that_of_the_core() -> None:
    told = hashprice_usd_per_ths_day(3.125, 0.0, 65_000.0, 83.1e12)
    assert told == pytest.approx(PER_THS_DAY, rel=1e-12)


def test_fees_per_block_keep_a_miner_on() -> None:
    # The day of a halving: 6 BTC of fees a block.
    price = (break_even() + break_even(fees=6.0)) / 2.0
    assert (activity_at(price), activity_at(price, fees=6.0)) == (CURTAILED, MINE)


def test_a_pool_s_fee_turns_a_miner_off() -> None:
    price = (break_even() + break_even(fee=0.3)) / 2.0
    dear = activity_at(price, lambda row: replace(row, pool_fee=0.3))
    assert (activity_at(price), dear) == (MINE, CURTAILED)


def test_what_is_paid_on_top_of_the_settlement_price_turns_a_miner_off() -> None:
    price = break_even(adder=35.0) + 10.0
    dear = activity_at(price, lambda row: replace(row, adder_usd_per_mwh=35.0))
    assert (activity_at(price), dear) == (MINE, CURTAILED)


def test_a_hot_room_turns_a_miner_off() -> None:
    price = (break_even() + break_even(pue=1.4)) / 2.0
    assert activity_at(price, lambda row: replace(row, pue=1.4)) == CURTAILED


def test_wear_keeps_a_miner_on_through_a_short_spike() -> None:
    # One interval at twice the break-even: about 0.10 USD lost by mining.
    spike = 2.0 * break_even()
    worn = activity_at(spike, lambda row: replace(row, wear_usd=2.0), passes=1)
    free = activity_at(spike, lambda row: replace(row, wear_usd=0.0, warmup_s=0.0), passes=1)
    assert (worn, free) == (MINE, CURTAILED)


@pytest.mark.parametrize(("rate_usd_per_h", "expected"), [(0.2, MINE), (0.01, IDLE)])
def test_the_rate_of_a_gpu_s_mining_decides_whether_it_mines(
    rate_usd_per_h: float, expected: int
) -> None:
    # Power above idle: 550 W at PUE 1.25 and 45 USD/MWh in all, 0.031 USD/h.
    plant = Plant(make_site(asics=0, gpus=2))
    rates = (GpuRate(device_class="H100", serve_usd_per_h=2.0, mine_usd_per_h=rate_usd_per_h),)

    def told(at_s: float) -> f.MarketSeen:
        seen = tick(40.0, at_s)
        return f.MarketSeen(replace(seen.tick, gpu_rates=rates))

    plant.settle(100.0, told(100.0), plant.readings())
    for _ in range(30):
        plant.settle(900.0, told(plant.at_s + 900.0), passes=1)
    assert set(plant.state.activity.tolist()) == {expected}


def test_what_restarts_have_taught_decides_by_the_time_they_take() -> None:
    # No wear: all of the cost is the 300 s without shares, 0.034 USD as assumed.
    spike = 1.6 * break_even()
    taught = {}
    for factor in (0.25, 1.0, 5.0):
        plain = make_site(asics=2, gpus=0)
        classes = tuple(replace(row, wear_usd=0.0) for row in plain.classes)
        plant = Plant(Site("s", classes, plain.devices, plain.limits))
        belief = ClassBelief("S21", RestartBelief(factor=factor, seen=100.0))
        plant.state = replace(plant.state, restarts=(belief,))
        plant.settle(100.0, tick(20.0, 100.0), plant.readings())
        at = plant.site.index_of("a1")
        assert at is not None
        cost = value(plant.site, plant.state).restart_usd[at]
        revenue_h = 200.0 * PER_THS_DAY * 0.98 / 24.0
        assert cost == pytest.approx(revenue_h * 300.0 / 3_600.0 * factor, rel=1e-9)
        plant.settle(900.0, tick(spike, plant.at_s + 900.0), passes=2)
        taught[factor] = int(plant.state.activity[at])
    assert taught == {0.25: CURTAILED, 1.0: CURTAILED, 5.0: MINE}


def course_before_a_step(prices: list[float], block_s: float, *, told: bool) -> list[int]:
    """Give what a miner that restarts easily does by interval, the last two hours of an epoch."""
    plain = make_site(asics=2, gpus=0)
    classes = tuple(replace(row, wear_usd=0.02, warmup_s=60.0) for row in plain.classes)
    plant = Plant(Site("s", classes, plain.devices, plain.limits))
    at = plant.site.index_of("a1")
    assert at is not None

    def seen(price: float, dt_s: float, block: int) -> f.MarketSeen:
        height = {"block_height": 400 * EPOCH_BLOCKS + block} if told else {}
        return tick(price, plant.at_s + dt_s, **height)

    plant.settle(100.0, seen(20.0, 100.0, 0), plant.readings())
    near = EPOCH_BLOCKS - 14
    plant.settle(near * block_s, seen(20.0, near * block_s, near), plant.readings())
    out = []
    for number, price in enumerate(prices, 1):
        block = near + int(900.0 * number / block_s)
        plant.settle(900.0, seen(price, 900.0, block), passes=2)
        out.append(int(plant.state.activity[at]))
    return out


def test_a_miner_does_not_come_back_for_two_hours_before_the_difficulty_rises() -> None:
    # Blocks of 564 s: six per cent more. At 94 % of the break-even mining pays, and then no more.
    prices = [3.0 * break_even()] * 2 + [0.94 * break_even()] * 6
    assert 0.94 > 564.0 / 600.0 - 0.01
    without, told = (course_before_a_step(prices, 564.0, told=told) for told in (False, True))
    assert without[:2] == told[:2] == [CURTAILED] * 2
    assert without[-4:] == [MINE] * 4
    assert told[-4:] == [CURTAILED] * 4


def test_a_miner_stays_on_through_a_loss_that_an_easier_difficulty_ends() -> None:
    # Blocks of 690 s: 13 per cent less. At 110 % of the break-even mining loses, and then no more.
    prices = [20.0] * 4 + [1.1 * break_even()] * 3
    assert 1.1 < 690.0 / 600.0
    without, told = (course_before_a_step(prices, 690.0, told=told) for told in (False, True))
    assert without[-2:] == [CURTAILED] * 2
    assert told[-3:] == [MINE] * 3

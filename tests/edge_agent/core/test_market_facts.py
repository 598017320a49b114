"""What a tick leaves for the outlook: day-ahead prices, that of the hour before among them."""

from datetime import timedelta

from edge_agent.core.facts import MarketSeen
from edge_agent.core.prospect import known_prices
from protocol.market import MarketTick
from tests.edge_agent.core.plant import START, Plant, make_site

# START is a whole hour; the day-ahead price of each hour from it on.
HOURS = (30.0, 40.0, 55.0, 70.0, 35.0, 20.0)


def told(interval: int, hours: tuple[float, ...] = HOURS) -> MarketSeen:
    at = START + timedelta(seconds=900.0 * interval)
    ahead = hours[interval // 4 : interval // 4 + 3]
    tick = MarketTick(
        feed="a",
        measured_at=at,
        source_at=at,
        price_usd_per_mwh=25.0,
        day_ahead_usd_per_mwh=ahead,
    )
    return MarketSeen(tick)


def ahead_after(*intervals: int) -> tuple[float, ...]:
    """Give what the outlook takes after ticks at these intervals, each heard as it begins."""
    plant = Plant(make_site())
    for interval in intervals:
        plant.step(900.0 * interval - plant.at_s, told(interval), plant.readings())
    return tuple(map(float, known_prices(plant.state.market).ahead))


def test_the_hour_before_is_kept_as_it_was_told() -> None:
    assert START.minute == 0
    assert ahead_after(1, 4) == (40.0, 55.0, 70.0, 30.0)
    assert ahead_after(1, 4, 5, 7) == (40.0, 55.0, 70.0, 30.0)
    assert ahead_after(1, 4, 8) == (55.0, 70.0, 35.0, 40.0)


def test_an_hour_that_was_missed_was_told_before() -> None:
    assert ahead_after(1, 8) == (55.0, 70.0, 35.0, 40.0)
    assert ahead_after(1, 12) == (70.0, 35.0, 20.0, 55.0)


def test_an_hour_before_that_nobody_told_is_as_this_hour() -> None:
    assert ahead_after(4) == (40.0, 55.0, 70.0, 40.0)
    # Away so long that the hour before was never heard of; the source is still consecutive.
    plant = Plant(make_site())
    plant.step(900.0, told(1), plant.readings())
    plant.step(15 * 900.0, told(20, (*HOURS, 90.0, 80.0)), plant.readings())
    assert tuple(map(float, known_prices(plant.state.market).ahead)) == (20.0, 90.0, 80.0, 20.0)

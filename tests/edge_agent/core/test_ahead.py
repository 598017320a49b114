"""What GPUs will likely enter next."""

from edge_agent.core import facts as f
from edge_agent.core.ahead import ahead
from edge_agent.core.economics import value
from edge_agent.core.prospect import outlook
from protocol.resource import Activity
from tests.edge_agent.core.plant import Plant, make_lease, make_site, tick


def test_without_gpus_or_prices_nothing_is_said() -> None:
    assert ahead((plant := Plant(make_site(gpus=0))).site, plant.state) == ()
    plant = Plant(make_site())
    plant.step(100.0, plant.readings())
    assert ahead(plant.site, plant.state) == ()


def test_a_mining_gpu_will_go_idle_by_what_the_share_lacks_to_one() -> None:
    plant = Plant(make_site())
    plant.settle(100.0, tick(30.0, 100.0), plant.readings())
    said = ahead(plant.site, plant.state)
    assert [row.device_id for row in said] == ["g0", "g1", "g2", "g3"]
    share = float(outlook(plant.site, plant.state, value(plant.site, plant.state))[0].share[6])
    assert {row.enters for row in said} == {Activity.IDLE}
    assert said[0].probability == 1.0 - share
    assert said[0].within_s == 900.0


def test_an_idle_gpu_will_mine_by_the_share() -> None:
    plant = Plant(make_site(), Activity.IDLE)
    plant.step(100.0, plant.readings(), tick(4_000.0, 100.0))
    said = ahead(plant.site, plant.state)
    assert {row.enters for row in said} == {Activity.MINE}
    share = float(outlook(plant.site, plant.state, value(plant.site, plant.state))[0].share[6])
    assert said[0].probability == share


def test_a_lease_that_waits_for_its_device_is_certain() -> None:
    # A clock that is suspected holds up new gates: the lease is taken, and does not start.
    plant = Plant(make_site())
    plant.settle(100.0, tick(30.0, 100.0), plant.readings())
    plant.step(1.0, f.ClockSuspected(suspect=True), f.LeaseSeen(make_lease("w1.1")))
    (row,) = (row for row in ahead(plant.site, plant.state) if row.enters is Activity.SERVE)
    assert (row.probability, row.within_s, row.why) == (1.0, 0.0, "lease w1.1 waits for it")
    plant.settle(1.0, f.ClockSuspected(suspect=False))
    serving = {row.device_id for row in ahead(plant.site, plant.state)}
    assert len(serving) == 3  # the one that serves is in nobody's way any more

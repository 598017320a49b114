import numpy as np
import pytest
from msgspec.structs import replace

from edge_agent.core.facts import Instant, unpack_readings
from edge_agent.core.site import CURTAILED, IDLE, MINE
from edge_agent.core.site_state import SiteState, new_state, set_activity
from edge_agent.devices.ports import AsicReadings, StateCode
from edge_agent.services.readings_buffer import ReadingsBuffer
from tests.edge_agent.services.brain_world import START, build_site

SITE = build_site(asics=1, gpus=0)
AT = np.array([0])


def state_in(code: int) -> SiteState:
    state = new_state(SITE, Instant("boot", 1_000, START))
    return replace(state, **set_activity(state, AT, code, code, code))


def reading(state: StateCode, power_w: float) -> AsicReadings:
    return AsicReadings(
        at_ns=2_000,
        device_ids=(SITE.devices[0].device_id,),
        hashrate_ths=np.array([0.0]),
        power_w=np.array([power_w]),
        temp_c=np.array([40.0]),
        state=np.array([state], dtype=np.int8),
        reachable=np.array([1], dtype=np.int8),
        measured_ns=np.array([2_000]),
    )


@pytest.mark.parametrize(
    ("before", "said", "power_w", "activity"),
    [
        # S21: 3,500 W mining, 350 W awake without a rate, 20 W asleep.
        (CURTAILED, StateCode.IDLE, 20.0, CURTAILED),
        (CURTAILED, StateCode.IDLE, float("nan"), CURTAILED),
        (CURTAILED, StateCode.IDLE, 900.0, IDLE),
        (CURTAILED, StateCode.MINING, 3_500.0, MINE),
        (CURTAILED, StateCode.ASLEEP, 20.0, CURTAILED),
        (MINE, StateCode.IDLE, 20.0, IDLE),
    ],
)
def test_a_curtailed_miner_without_a_rate_stays_curtailed_while_it_draws_little(
    before: int, said: StateCode, power_w: float, activity: int
) -> None:
    buffer = ReadingsBuffer(SITE)
    buffer.take_asics(reading(said, power_w))
    seen = buffer.collect(state_in(before))
    assert seen is not None
    assert unpack_readings(seen).activity.tolist() == [activity]

"""A plant for the pure core: a site, its state, and the true power behind it."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.core import facts as f
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import act, enter
from edge_agent.core.plan import Plan, Reason
from edge_agent.core.prepares import prepare_acts
from edge_agent.core.site import CODE_OF, Device, DeviceClass, Limits, Site
from edge_agent.core.site_state import SiteState, new_state
from edge_agent.services.cleared import bound
from edge_agent.services.lease_events import tell
from protocol.lease import Lease, LeaseState, WorkloadSpec
from protocol.market import GpuRate, MarketTick
from protocol.resource import MODELS, Activity

START = datetime(2026, 1, 1, tzinfo=UTC)
BOOT_NS = 10**12
RATES = (GpuRate(device_class="H100", serve_usd_per_h=2.0, mine_usd_per_h=0.2),)

# Of an intent, what a switch is made of, beside its devices.
INTENT = ("class_index", "from_activity", "to_activity", "reason", "lease_id", "mode")
# What may happen to a plant, in any order.
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("price"), st.sampled_from([-50.0, 10.0, 80.0, 3_000.0])),
        st.tuples(st.just("close"), st.sampled_from(["committed", "rolled_back"])),
        st.tuples(st.just("lease"), st.integers(1, 10)),
        st.tuples(st.just("wait"), st.sampled_from([1.0, 5.0, 120.0])),
        st.tuples(st.just("read"), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)


def make_site(
    asics: int = 6, gpus: int = 4, cap_w: float = 60_000.0, **limits: float | str | None
) -> Site:
    limits = {"ramp_w_per_min": 1e7, **limits}
    classes = (
        DeviceClass(model=MODELS["S21"], dwell_s=60.0),
        DeviceClass(model=MODELS["S19XP"], dwell_s=60.0),
        DeviceClass(model=MODELS["H100"], pue=1.25, dwell_s=60.0),
    )
    devices = [
        Device(device_id=f"a{n}", device_class="S21" if n % 2 else "S19XP") for n in range(asics)
    ]
    devices += [
        Device(device_id=f"g{n}", device_class="H100", node_id=f"n{n // 2}") for n in range(gpus)
    ]
    return Site("s", classes, tuple(devices), Limits(power_cap_w=cap_w, **limits))  # type: ignore[arg-type]


def instant(at_s: float, hub_heard_s: float | None = None) -> f.Instant:
    heard = -1 if hub_heard_s is None else BOOT_NS + int(hub_heard_s * 1e9)
    wall = START + timedelta(seconds=at_s)
    return f.Instant("b", BOOT_NS + int(at_s * 1e9), wall, heard)


def tick(price: float | None, at_s: float, **fields: float) -> f.MarketSeen:
    values = {
        "btc_price_usd": 65_000.0,
        "difficulty": 83.1e12,
        "subsidy_btc": 3.125,
        "fees_btc": 0.0,
        **fields,
    }
    at = START + timedelta(seconds=at_s)
    return f.MarketSeen(
        MarketTick(
            feed="t",
            measured_at=at,
            source_at=at,
            price_usd_per_mwh=price,
            gpu_rates=RATES,
            **values,  # type: ignore[arg-type]
        )
    )


def make_lease(lease_id: str, count: int = 1, priority: int = 5, **fields: object) -> Lease:
    values: dict[str, object] = {"state": LeaseState.RUN, "generation": 1, **fields}
    return Lease(
        hub_epoch=1,
        lease_id=lease_id,
        workload_id=lease_id.split(".", maxsplit=1)[0],
        attempt=1,
        site_id="s",
        device_class="H100",
        count=count,
        priority=priority,
        spec=WorkloadSpec(),
        issued_at=START,
        price_usd_per_h=Decimal(2),
        **values,  # type: ignore[arg-type]
    )


def same_acts(whole: Plan, acts_only: Plan) -> None:
    """Check that a plan of acts alone does what the whole plan does, bound by the same."""
    assert acts_only.leases == whole.leases
    assert acts_only.alarms == whole.alarms
    assert bound(acts_only) == bound(whole)
    assert acts_only.power == replace(whole.power, measured_w=None)
    assert len(acts_only.intents) == len(whole.intents)
    for one, other in zip(acts_only.intents, whole.intents, strict=True):
        assert one.indices.tolist() == other.indices.tolist()
        for name in INTENT:
            assert getattr(one, name) == getattr(other, name), name
        if one.reason in (Reason.GAIN, Reason.SKI_RENTAL):
            assert (one.gain_usd, one.cost_usd) == (other.gain_usd, other.cost_usd)


class Plant:
    """Drives the core by hand: facts in, plan, switches that the test closes when it likes."""

    def __init__(self, site: Site, activity: Activity = Activity.MINE) -> None:
        self.site = site
        self.at_s = 0.0
        self.state: SiteState = new_state(site, instant(0.0))
        self.activity = np.full(len(site), CODE_OF[activity], dtype=np.uint8)
        self.open: dict[str, f.SwitchOpened] = {}
        self.number = 0
        self.plan: Plan | None = None
        self.prepares: tuple[f.Fact, ...] = ()
        self.hub_heard_s: float | None = None

    def readings(self, **columns: np.ndarray) -> f.ReadingsSeen:
        n = len(self.site)
        mode = self.site.nameplate_w[self.site.class_of, self.activity]
        values = {
            "power_w": mode,
            "hashrate_ths": np.full(n, np.nan),
            "temp_c": np.full(n, 50.0),
            "utilisation": np.zeros(n),
            **columns,
        }
        return f.pack_readings(
            self.site.digest,
            f.ReadingColumns(
                np.arange(n, dtype=np.int32),
                self.activity,
                np.ones(n, dtype=np.uint8),
                **values,
            ),
        )

    def step(self, dt_s: float, *facts: f.Fact) -> Plan:
        """One pass; its lease acts and intents are taken as done."""
        self.at_s += dt_s
        self.state = enter(self.site, self.state, instant(self.at_s, self.hub_heard_s), facts)
        self.plan = plan(self.site, self.state)
        self.prepares = prepare_acts(self.site, self.state, self.plan)
        same_acts(self.plan, plan(self.site, self.state, acts_only=True))
        acts: list[f.Fact] = list(tell(self.state, self.plan.leases, START, 0).facts)
        acts += self.prepares
        for intent in self.plan.intents:
            self.number += 1
            ids = tuple(self.site.devices[int(at)].device_id for at in intent.indices)
            serves = intent.to_activity is Activity.SERVE
            opened = f.SwitchOpened(
                f"s{self.number}",
                ids,
                intent.to_activity,
                intent.reason.name,
                intent.lease_id,
                tuple(f"i{self.number}-{key}" for key in ids) if serves else (),
                intent.mode,
            )
            self.open[opened.switch_id] = opened
            acts.append(opened)
        self.state = act(self.site, self.state, tuple(acts))
        return self.plan

    def close(self, switch_id: str, outcome: str = "committed") -> f.SwitchClosed:
        """End a switch with one outcome for all its devices; gives the fact to step with."""
        opened = self.open.pop(switch_id)
        at = self.site.indices_of(opened.device_ids)
        if outcome == "committed":
            self.activity[at] = CODE_OF[opened.to_activity]
        return f.SwitchClosed(
            switch_id,
            opened.device_ids,
            (outcome,) * len(opened.device_ids),
            1_000,
            mode=opened.mode,
        )

    def settle(self, dt_s: float, *facts: f.Fact, passes: int = 6) -> None:
        """Run passes, committing every switch at once."""
        self.step(dt_s, *facts)
        for _ in range(passes):
            closed = [self.close(switch_id) for switch_id in list(self.open)]
            self.step(1.0, *closed, self.readings())

    def of(self, device_id: str) -> Activity:
        at = self.site.index_of(device_id)
        assert at is not None
        return list(CODE_OF)[int(self.state.activity[at])]

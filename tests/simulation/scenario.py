"""What a seed stands for: sites, prices, customers and faults, all drawn before the run."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal

from msgspec import Struct

from edge_agent.core.curve import ModePoint
from edge_agent.core.prewarm_limits import PrewarmLimits
from edge_agent.core.site import Device, DeviceClass, Limits, Site
from protocol.lease import OnPartition
from protocol.resource import MODELS
from simulators.faults import SiteFault, SiteFaultKind, Targets, plan

START = datetime(2026, 3, 1, 12, 41, 17, 250_000, tzinfo=UTC)
SITES = ("houston", "lubbock")
CUSTOMERS = ("c-1", "c-2")
GPUS = 3
ASICS = 3
SPAN_S = 1_800.0
FAULTS_FROM_S = 30.0
FAULTS_UNTIL_S = 1_380.0
# Links and leases converge within this after the last fault has ended.
SETTLE_S = 60.0
# A wrong clock is put right by the time server after this long.
CLOCK_WRONG_S = 90.0
# A process that is to die at its next commits does so, and is back, within this.
CRASH_MAX_S = 30.0
END_ALL_S = 1_560.0
PRICES = ((datetime(2026, 3, 1, 0, 0, tzinfo=UTC), Decimal("2.00")),
          (datetime(2026, 3, 1, 13, 0, tzinfo=UTC), Decimal("2.75")))  # fmt: skip
HOST_FAULTS = ("workload_crash", "workload_crash", "link_cut", "reboot_agent", "reboot_node")
ENERGY_USD_PER_MWH = (-30.0, 8.0, 20.0, 28.0, 35.0, 60.0, 140.0, 900.0, 4_000.0)


# Eager and forgetful: much begins, turns and expires within one life of a world.
PREWARM = PrewarmLimits(
    per_node=2, start_chance=0.2, keep_chance=0.1, horizon_s=120.0, expire_s=120.0, rest_s=60.0
)


class Order(Struct, frozen=True, kw_only=True):
    """What a customer does with one workload."""

    at_s: float
    workload_id: str
    customer_id: str
    count: int
    priority: int
    run_s: int | None
    on_partition: OnPartition
    lapse_after_s: int
    site_id: str | None
    max_price_usd_per_h: Decimal | None
    cancel_at_s: float | None
    expires_at_s: float | None


class HostFault(Struct, frozen=True, kw_only=True):
    """A fault of a site's own machines.

    Args:
        kind: ``workload_crash``, ``link_cut`` (agent and node), ``reboot_agent``, ``reboot_node``.
    """

    at_s: float
    kind: str
    site_id: str
    duration_s: float


# The highest is the nameplate, so that the caps leave as much room as without modes.
MODES = (
    ModePoint(mode="low", rate_ths=130.0, power_w=1_950.0),
    ModePoint(mode="normal", rate_ths=170.0, power_w=2_700.0),
    ModePoint(mode="high", rate_ths=200.0, power_w=3_500.0),
)


class Drained(Struct, frozen=True, kw_only=True):
    """An operator takes a device out of use on the site, and gives it back after a while.

    Args:
        for_s: how long. by_time: the drain ends by itself; else the operator ends it.
    """

    at_s: float
    site_id: str
    device_id: str
    for_s: float
    by_time: bool


class Wish(Struct, frozen=True, kw_only=True):
    """What an operator wants of a site from then on: a policy of the hub."""

    at_s: float
    site_id: str
    power_cap_w: float | None
    curtail: bool


class Scenario(Struct, frozen=True, kw_only=True):
    """One seed, drawn."""

    seed: int
    orders: tuple[Order, ...]
    faults: tuple[SiteFault, ...]
    host_faults: tuple[HostFault, ...]
    wishes: tuple[Wish, ...]
    drains: tuple[Drained, ...]
    energy: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    caps_w: tuple[float, ...]
    ramps_w_per_min: tuple[float | None, ...]
    modes: tuple[bool, ...]


def draw(seed: int) -> Scenario:
    """Draw everything that a seed stands for."""
    rng = random.Random(f"{seed}:scenario")
    faults = plan(
        rng.randrange(1 << 30),
        targets(),
        count=rng.randint(5, 9),
        from_s=FAULTS_FROM_S,
        until_s=FAULTS_UNTIL_S,
    )
    return Scenario(
        seed=seed,
        orders=tuple(_order(rng, number) for number in range(rng.randint(9, 14))),
        faults=faults,
        host_faults=_host_faults(rng),
        wishes=_wishes(rng),
        # Drawn apart, so that everything else of a seed stays as it was before there were drains.
        drains=_drains(random.Random(f"{seed}:drains")),
        energy=tuple((site, _energy(rng)) for site in SITES),
        caps_w=tuple(rng.choice((9_500.0, 12_500.0, 16_500.0)) for _ in SITES),
        ramps_w_per_min=tuple(rng.choice((None, 12_000.0)) for _ in SITES),
        modes=_modes(random.Random(f"{seed}:modes")),
    )


def _modes(rng: random.Random) -> tuple[bool, ...]:
    """Let the agent set power modes on one site of every other seed."""
    chosen = rng.choice((*SITES, *(None for _ in SITES)))
    return tuple(site == chosen for site in SITES)


def targets() -> Targets:
    """Name what faults may hit."""
    return Targets(
        clients=("hcp-hub", *(edge_client(site) for site in SITES)),
        processes=("hub", *(f"{kind}-{site}" for site in SITES for kind in ("agent", "node"))),
        hosts=("hub", *(f"{kind}-{site}" for site in SITES for kind in ("agent", "node"))),
        stores=SITES,
    )


def edge_client(site_id: str) -> str:
    """Give the MQTT client id of a site's agent."""
    return f"hcp-edge-{site_id}"


def build_site(
    site_id: str, cap_w: float, ramp_w_per_min: float | None, *, modes: bool = False
) -> Site:
    """Make a site of three GPUs on one node and three miners."""
    classes = (
        DeviceClass(
            model=MODELS["H100"],
            pue=1.2,
            dwell_s=60.0,
            serve_start_s=5.0,
            interval_s=300.0,
        ),
        # Intervals are short and a wake-up dear enough that gain and cost are often close.
        DeviceClass(
            model=MODELS["S21"],
            dwell_s=90.0,
            warmup_s=60.0,
            wear_usd=0.05,
            interval_s=300.0,
            modes=MODES if modes else (),
            set_modes=modes,
        ),
    )
    gpus = tuple(
        Device(device_id=f"{site_id}-g{n}", device_class="H100", node_id=f"n-{site_id}")
        for n in range(GPUS)
    )
    asics = tuple(
        Device(device_id=f"{site_id}-a{n}", device_class="S21", address="127.0.0.1")
        for n in range(ASICS)
    )
    limits = Limits(power_cap_w=cap_w, ramp_w_per_min=ramp_w_per_min)
    return Site(site_id, classes, gpus + asics, limits, prewarm=PREWARM)


def faults_end_s(scenario: Scenario) -> float:
    """Give when the last fault is over."""
    ends = [fault.at_s + fault.duration_s for fault in scenario.host_faults]
    for fault in scenario.faults:
        clock = fault.kind is SiteFaultKind.CLOCK_STEP
        crash = fault.kind is SiteFaultKind.CRASH
        length_s = CLOCK_WRONG_S if clock else max(fault.duration_s, CRASH_MAX_S * crash)
        # An agent may die once more right after it has started from the copy.
        length_s += CRASH_MAX_S * (fault.kind is SiteFaultKind.RESTORED_SNAPSHOT)
        ends.append(fault.at_s + length_s)
    return max(ends)


def fault_kinds(scenario: Scenario) -> frozenset[str]:
    """Name the kinds of faults of a scenario, partitions of one way apart."""
    kinds = {fault.kind.value for fault in scenario.faults}
    if any(
        fault.kind is SiteFaultKind.PARTITION and fault.direction.value != "both"
        for fault in scenario.faults
    ):
        kinds.add("one_way_partition")
    kinds |= {fault.kind for fault in scenario.host_faults}
    if scenario.drains:
        kinds.add("drain")
    return frozenset(kinds)


def _host_faults(rng: random.Random) -> tuple[HostFault, ...]:
    return tuple(
        HostFault(
            at_s=round(rng.uniform(FAULTS_FROM_S, FAULTS_UNTIL_S - 40.0), 3),
            kind=rng.choice(HOST_FAULTS),
            site_id=rng.choice(SITES),
            duration_s=round(rng.uniform(0.5, 40.0), 3),
        )
        for _ in range(rng.randint(1, 3))
    )


def _wishes(rng: random.Random) -> tuple[Wish, ...]:
    """Draw tighter policies, each lifted again before the end."""
    found: list[Wish] = []
    for site_id in SITES:
        at_s = rng.uniform(60.0, 600.0)
        while at_s < FAULTS_UNTIL_S - 300.0 and rng.random() < 0.6:
            curtail = rng.random() < 0.3
            cap_w = rng.choice((5_000.0, 8_000.0, 11_000.0))
            found.append(
                Wish(
                    at_s=round(at_s, 3),
                    site_id=site_id,
                    power_cap_w=None if curtail else cap_w,
                    curtail=curtail,
                )
            )
            at_s += rng.uniform(90.0, 300.0)
            lifted = Wish(at_s=round(at_s, 3), site_id=site_id, power_cap_w=None, curtail=False)
            found.append(lifted)
            at_s += rng.uniform(60.0, 300.0)
    return tuple(found)


def _drains(rng: random.Random) -> tuple[Drained, ...]:
    found = []
    for _ in range(rng.randint(0, 2)):
        site_id = rng.choice(SITES)
        at_s = rng.uniform(FAULTS_FROM_S, FAULTS_UNTIL_S - 200.0)
        found.append(
            Drained(
                at_s=round(at_s, 3),
                site_id=site_id,
                device_id=f"{site_id}-{rng.choice(('g', 'a'))}{rng.randrange(min(GPUS, ASICS))}",
                for_s=round(rng.uniform(5.0, 200.0), 3),
                by_time=rng.random() < 0.5,
            )
        )
    return tuple(found)


def _order(rng: random.Random, number: int) -> Order:
    at_s = round(rng.uniform(8.0, FAULTS_UNTIL_S), 3)
    run_s = rng.choice((None, rng.randint(20, 500), rng.randint(20, 500)))
    stay = rng.random() < 0.6
    expires = rng.random() < 0.12
    cancels = (run_s is None and not expires) or rng.random() < 0.15
    return Order(
        at_s=at_s,
        workload_id=f"w-{number:02d}",
        customer_id=rng.choice(CUSTOMERS),
        count=rng.choice((1, 1, 1, 2, 2, 3)),
        priority=rng.randint(1, 10),
        run_s=run_s,
        on_partition=OnPartition.STAY if stay else OnPartition.MOVE,
        lapse_after_s=300 if stay else rng.randint(30, 150),
        site_id=rng.choice((None, None, *SITES)),
        max_price_usd_per_h=rng.choice((None, None, None, Decimal("2.50"))),
        cancel_at_s=round(at_s + rng.uniform(0.0, 600.0), 3) if cancels else None,
        expires_at_s=round(at_s + rng.uniform(20.0, 500.0), 3) if expires else None,
    )


def _energy(rng: random.Random) -> tuple[tuple[float, float], ...]:
    """Draw (from second, price) steps."""
    steps, at_s = [], 0.0
    while at_s < SPAN_S:
        steps.append((round(at_s, 1), rng.choice(ENERGY_USD_PER_MWH)))
        at_s += rng.choice((45.0, 90.0, 240.0))
    return tuple(steps)

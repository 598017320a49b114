"""Figures: one decision pass over a full site, every price and reading changed since the last.

Once with miners that are on or off, and once with power modes that the agent sets.

Run: ``./dev bench decision``.
"""

import time
from datetime import UTC, datetime, timedelta

import numpy as np
from msgspec import structs

from bench.figure import Figure, at_most, quantile
from edge_agent.core.curve import ModePoint
from edge_agent.core.facts import (
    Fact,
    Instant,
    MarketSeen,
    PolicySeen,
    ReadingColumns,
    ReadingsSeen,
    pack_readings,
)
from edge_agent.core.optimizer import plan
from edge_agent.core.passes import act, enter
from edge_agent.core.plan import Reason
from edge_agent.core.prepares import prepare_acts
from edge_agent.core.prewarm_limits import PrewarmLimits
from edge_agent.core.ready import ARRIVALS_KEPT, Arrivals
from edge_agent.core.site import MINE, Device, DeviceClass, Feeder, Limits, Site
from edge_agent.core.site_state import new_state
from edge_agent.process_limits import calm_collector
from protocol.lease import SitePolicy
from protocol.market import GpuRate, MarketTick
from protocol.resource import MODELS

ASICS = 15_000
GPUS = 896
CAP_W = 60e6
PASSES = 130
# What is kept of the last passes fills up in these, page by page of fresh memory.
_WARM_UP = 10
TARGET_MS = 5.0
FEEDERS, FEEDERS_TARGET_MS, PREWARM_TARGET_MS, TURNS = 12, 0.3, 1.0, 240
START = datetime(2026, 1, 1, tzinfo=UTC)


MODES = (
    ModePoint(mode="low", rate_ths=130.0, power_w=1_950.0),
    ModePoint(mode="normal", rate_ths=200.0, power_w=3_500.0),
    ModePoint(mode="high", rate_ths=230.0, power_w=4_485.0),
)


def build_site(*, modes: bool = False) -> Site:
    """Build the site of the promise: 15,000 S21 and 896 GPUs (500 H100, 396 A100) on nodes of 8."""
    classes = (
        DeviceClass(model=MODELS["S21"], modes=MODES if modes else (), set_modes=modes),
        DeviceClass(model=MODELS["H100"], pue=1.25),
        DeviceClass(model=MODELS["A100"], pue=1.25),
    )
    asics = [Device(device_id=f"asic-{n:05d}", device_class="S21") for n in range(ASICS)]
    gpus = [
        Device(
            device_id=f"gpu-{n:03d}",
            device_class="H100" if n < 500 else "A100",
            node_id=f"node-{n // 8:03d}",
        )
        for n in range(GPUS)
    ]
    return Site("bench", classes, (*asics, *gpus), Limits(power_cap_w=CAP_W))


def readings_at(site: Site, rng: np.random.Generator) -> ReadingsSeen:
    """Draw a reading of every device: around its nameplate (or a mode of it) while mining."""
    n = len(site)
    mine_w = site.nameplate_w[site.class_of, MINE]
    rate = np.where(site.is_asic, 200.0, 0.0)
    if site.steps is not None:
        step = np.where(site.has_steps, 1 + np.arange(n) % len(MODES), 0)
        mine_w, rate = (
            table[site.class_of, step] for table in (site.steps.power_w, site.steps.rate_ths)
        )
    return pack_readings(
        site.digest,
        ReadingColumns(
            np.arange(n, dtype=np.int32),
            np.full(n, MINE, dtype=np.uint8),
            np.ones(n, dtype=np.uint8),
            mine_w * rng.normal(1.0, 0.02, n),
            rate * rng.normal(1.0, 0.02, n),
            rng.normal(65.0, 3.0, n),
            rng.uniform(0.0, 1.0, n),
        ),
    )


def with_feeders(site: Site, count: int) -> Site:
    """Give the site on so many feeders, by turns, with the site's cap in equal parts."""
    each_w = site.limits.power_cap_w / count
    feeders = tuple(Feeder(name=f"feeder-{at}", power_cap_w=each_w) for at in range(count))
    devices = tuple(
        structs.replace(device, feeder=feeders[at % count].name)
        for at, device in enumerate(site.devices)
    )
    return Site(site.site_id, site.classes, devices, site.limits, feeders)


def facts_at(site: Site, number: int, rng: np.random.Generator) -> tuple[Instant, tuple[Fact, ...]]:
    """Draw one pass; prices cross the break-even, so that some change the fleet."""
    at_s = 1_000 + 5 * number
    instant = Instant("boot", at_s * 1_000_000_000, START + timedelta(seconds=at_s))
    tick = MarketTick(
        feed="bench",
        measured_at=instant.wall,
        source_at=instant.wall,
        price_usd_per_mwh=float(rng.normal(60.0, 20.0)) if number % 7 else 900.0,
        btc_price_usd=65_000.0 + float(rng.normal(0.0, 100.0)),
        difficulty=83.1e12,
        subsidy_btc=3.125,
        fees_btc=0.1,
        gpu_rates=(
            GpuRate(device_class="H100", serve_usd_per_h=2.0, mine_usd_per_h=0.06),
            GpuRate(device_class="A100", serve_usd_per_h=1.7, mine_usd_per_h=0.04),
        ),
    )
    return instant, (MarketSeen(tick), readings_at(site, rng))


def run() -> list[Figure]:
    """Measure by the clock, with and without power modes, then by CPU time what more costs."""
    site, moded = build_site(), build_site(modes=True)
    calm_collector()  # as in the agent
    return [
        _measure("decision p95", site),
        _measure("decision p95, power modes", moded),
        _measure("decision p95, half the load to shed", site, sheds=True),
        _measure("decision p95, half the load to shed, power modes", moded, sheds=True),
        _feeders(site),
        _prewarm(site),
    ]


def _measure(name: str, site: Site, *, sheds: bool = False) -> Figure:
    """Time passes; with ``sheds`` those two after each fall of the cap in which load has to go."""
    rng = np.random.default_rng(1)
    state = new_state(site, Instant("boot", 0, START))
    took_ms: list[float] = []
    cpu_ms: list[float] = []
    for number in range(PASSES):
        instant, facts = facts_at(site, number, rng)
        if sheds:
            facts = (*facts, _capped(number))
        began, began_cpu = time.perf_counter(), time.process_time_ns()
        state = enter(site, state, instant, facts)
        made = plan(site, state)
        if sheds and not any(row.reason is Reason.SHED for row in made.intents):
            continue
        cpu_ms.append((time.process_time_ns() - began_cpu) / 1e6)
        took_ms.append((time.perf_counter() - began) * 1e3)
        assert len(made.records.reason) == len(site)
    took_ms, cpu_ms = sorted(took_ms[_WARM_UP:]), sorted(cpu_ms[_WARM_UP:])
    conditions = {
        "asics": ASICS,
        "gpus": GPUS,
        "passes": len(took_ms),
        "changed": "every price and reading",
        "p50_ms": round(quantile(took_ms, 0.5), 2),
        "max_ms": round(took_ms[-1], 2),
        # What a busy machine adds by the clock stands in none of these.
        "p50_ms_cpu": round(quantile(cpu_ms, 0.5), 2),
        "p95_ms_cpu": round(quantile(cpu_ms, 0.95), 2),
    }
    return at_most(name, quantile(took_ms, 0.95), "ms", TARGET_MS, conditions)


def _capped(number: int) -> PolicySeen:
    """Give a cap that falls by more than half for two passes, and is back for two."""
    cap_w = CAP_W if number % 4 < 2 else 0.4 * CAP_W
    policy = SitePolicy(hub_epoch=1, generation=number + 1, site_id="bench", power_cap_w=cap_w)
    return PolicySeen(policy)


def _feeders(plain: Site) -> Figure:
    sites = (plain, with_feeders(plain, FEEDERS))
    added = _added(sites, ((), ()))
    conditions = {"feeders": FEEDERS, **added[1]}
    return at_most("decision, what feeders add", added[0], "ms CPU", FEEDERS_TARGET_MS, conditions)


def _prewarm(plain: Site) -> Figure:
    """Leases of both classes came of late: for the next of each a server is held ready."""
    prewarm = PrewarmLimits(per_node=2)
    site = Site("bench", plain.classes, plain.devices, plain.limits, (), prewarm)
    came = tuple(
        Arrivals(name, tuple(n * 60_000_000_000 for n in range(ARRIVALS_KEPT)))
        for name in ("A100", "H100")
    )
    added = _added((plain, site), ((), came))
    return at_most(
        "decision, what pre-warming adds", added[0], "ms CPU", PREWARM_TARGET_MS, added[1]
    )


def _added(
    sites: tuple[Site, Site], came: tuple[tuple[Arrivals, ...], tuple[Arrivals, ...]]
) -> tuple[float, dict[str, object]]:
    """Give what a pass costs more on the second site, by turns and by CPU time, and how it was."""
    states = [
        structs.replace(new_state(site, Instant("boot", 0, START)), arrivals=arrivals)
        for site, arrivals in zip(sites, came, strict=True)
    ]
    cpu_ms: tuple[list[float], list[float]] = ([], [])
    rng = np.random.default_rng(1)
    for number in range(TURNS):
        instant, facts = facts_at(sites[0], number, rng)
        for at in (0, 1) if number % 2 else (1, 0):
            began = time.process_time_ns()
            entered = enter(sites[at], states[at], instant, facts)
            made = plan(sites[at], entered)
            states[at] = act(sites[at], entered, prepare_acts(sites[at], entered, made))
            cpu_ms[at].append((time.process_time_ns() - began) / 1e6)
    without, beside = (quantile(row, 0.5) for row in cpu_ms)
    held = sum(row.live for row in states[1].prepares)
    return beside - without, {
        "passes": TURNS,
        "p50_ms_without": round(without, 3),
        "asked_at_the_end": held,
    }

"""Phase histograms: cumulative, in Prometheus' text form, with a bounded number of series."""

import asyncio
import re

from msgspec.structs import replace

from edge_agent.core.facts import SwitchCost
from edge_agent.core.switching import PhaseSpan, Stage, Status, Switch, SwitchDevice
from edge_agent.services.agent import Agent
from edge_agent.services.switch_metrics import BOUNDS_S, SwitchMetrics
from protocol.node import Phase
from protocol.resource import Activity, DeviceKind
from tests.edge_agent.services.brain_world import World, lease, play

MS = 1_000_000


def over(
    *spans_ms: tuple[Phase, float],
    strategy: str = "resident-gate",
    statuses: tuple[Status, ...] = (Status.COMMITTED,),
    resumed: bool = False,
) -> Switch:
    return Switch(
        switch_id="s1",
        kind=DeviceKind.GPU,
        device_class="H100",
        to_activity=Activity.SERVE,
        reason="lease",
        lease_id=None,
        all_or_none=True,
        opened_ns=0,
        activate_s=0.0,
        gain_usd=None,
        cost_usd=None,
        devices=tuple(
            SwitchDevice(f"g{at}", "n0", Activity.MINE, status=status, strategy=strategy)
            for at, status in enumerate(statuses)
        ),
        stage=Stage.CLOSED,
        phase=Phase.COMMIT,
        phase_ns=0,
        spans=tuple(PhaseSpan(phase, int(ms * 1_000)) for phase, ms in spans_ms),
        resumed=resumed,
    )


def test_buckets_are_cumulative_and_sum_and_count_agree() -> None:
    metrics = SwitchMetrics()
    metrics.take(over((Phase.DRAIN, 1.0), (Phase.ACTIVATE, 30.0)), 31 * MS)
    metrics.take(over((Phase.DRAIN, 400_000.0), (Phase.ACTIVATE, 40.0)), 401_000 * MS)
    text = metrics.text()
    labels = 'phase="drain",strategy="resident-gate",outcome="committed"'
    name = "hcp_switch_phase_seconds"
    assert f'{name}_bucket{{{labels},le="0.001"}} 1\n' in text
    assert f'{name}_bucket{{{labels},le="300"}} 1\n' in text
    assert f'{name}_bucket{{{labels},le="+Inf"}} 2\n' in text
    assert f"{name}_sum{{{labels}}} 400.001000\n" in text
    assert f"{name}_count{{{labels}}} 2\n" in text
    whole = 'kind="gpu",to="serve",strategy="resident-gate",outcome="committed"'
    assert f"hcp_switch_seconds_sum{{{whole}}} 401.031000\n" in text


def test_the_worst_device_names_the_outcome_and_restarts_are_left_out() -> None:
    metrics = SwitchMetrics()
    statuses = (Status.COMMITTED, Status.ROLLED_BACK)
    metrics.take(over((Phase.DRAIN, 1.0), statuses=statuses), MS)
    metrics.take(over((Phase.DRAIN, 1.0), statuses=(Status.QUARANTINED,), resumed=True), MS)
    text = metrics.text()
    assert 'outcome="rolled_back"' in text
    assert "quarantined" not in text


def test_what_nodes_name_makes_no_more_series_than_there_are_strategies() -> None:
    metrics = SwitchMetrics()
    for number in range(50):
        metrics.take(over((Phase.DRAIN, 1.0), strategy=f'evil"{number}'), MS)
    text = metrics.text()
    assert len(re.findall(r"hcp_switch_phase_seconds_count", text)) == 1
    assert 'strategy="other"' in text


def test_every_line_has_the_form_that_prometheus_reads() -> None:
    metrics = SwitchMetrics()
    metrics.take(over((Phase.DRAIN, 1.0)), MS)
    cost = SwitchCost('H"1\\0', Activity.IDLE, Activity.MINE, 0.25, 30.0)
    lines = metrics.text((cost,)).splitlines()
    form = re.compile(
        r'[a-z_]+\{[a-z_]+="(?:[^"\\]|\\.)*"(,[a-z_]+="(?:[^"\\]|\\.)*")*\} [0-9.e+-]+'
    )
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or form.fullmatch(line), line
    assert lines[-1] == (
        'hcp_switch_cost_seconds{device_class="H\\"1\\\\0",from="idle",to="mine"} 0.25'
    )
    assert list(BOUNDS_S) == sorted(BOUNDS_S)


def test_what_became_of_saved_states_is_counted_in_a_bounded_number_of_series() -> None:
    metrics = SwitchMetrics()
    one = over((Phase.DRAIN, 1.0), statuses=(Status.COMMITTED,) * 3)
    words = ("used", "kept", "what nobody knows")
    rows = tuple(replace(row, saved=word) for row, word in zip(one.devices, words, strict=True))
    metrics.take(replace(one, devices=rows), MS)
    metrics.take(replace(one, devices=rows[:1]), MS)
    lines = [line for line in metrics.text().splitlines() if "saved_state_total{" in line]
    assert lines == [
        'hcp_switch_saved_state_total{outcome="kept"} 1',
        'hcp_switch_saved_state_total{outcome="other"} 1',
        'hcp_switch_saved_state_total{outcome="used"} 2',
    ]


def test_a_running_agent_counts_the_phases_of_its_switches() -> None:
    world = World()
    told: list[str] = []

    async def script(agent: Agent) -> None:
        await asyncio.sleep(20.0)
        await agent.offer_lease(lease(count=2))
        await asyncio.sleep(20.0)
        told.append(agent.metrics())

    play(world, script)
    for phase in ("validate", "drain", "pause", "save", "handover", "activate", "verify", "commit"):
        assert re.search(
            rf'phase_seconds_count{{phase="{phase}",strategy="",outcome="committed"}} [1-9]',
            told[0],
        ), phase

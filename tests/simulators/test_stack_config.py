from pathlib import Path

import pytest

from edge_agent.config import asic_addresses, build_site, read_config
from edge_agent.node.config import load_node_config
from simulators.stack_config import (
    DESIGN_SITES,
    HttpMarket,
    MarketSpec,
    SiteSpec,
    Tuning,
    agent_toml,
    node_toml,
    scaled,
)

MARKET = MarketSpec(directory="market", from_utc="2024-05-08T23:00:00Z")
STARTED = "2026-01-01T00:00:00Z"


def test_the_default_scale_is_large_enough_for_the_demo() -> None:
    sites = [scaled(site, 0.01) for site in DESIGN_SITES]
    assert sum(site.asic_count for site in sites) >= 300
    assert sum(site.gpu_count for site in sites) >= 24
    assert sum(not group.real for site in sites for group in site.gpus) == 3
    assert sum(group.real for site in sites for group in site.gpus) == 1


@pytest.mark.parametrize("scale", [0.0005, 0.01, 0.05])
@pytest.mark.parametrize("site", DESIGN_SITES, ids=lambda site: site.site_id)
def test_the_programs_can_read_what_is_written(
    tmp_path: Path, site: SiteSpec, scale: float
) -> None:
    small = scaled(site, scale)
    agent, node = tmp_path / "agent.toml", tmp_path / "node.toml"
    agent.write_text(
        agent_toml(
            small,
            home=tmp_path,
            broker_port=1_883,
            asic_ports={"S21": (4_028, 80), "S19XP": (4_029, 81)},
            market=MARKET,
            market_started_utc=STARTED,
            tuning=Tuning(),
        )
    )
    node.write_text(node_toml(small, small.gpus[0], home=tmp_path))
    config = read_config(agent)
    built = build_site(config)
    node_config = load_node_config(node)
    assert len(built.devices) == small.asic_count + small.gpu_count
    assert len(asic_addresses(config)) == small.asic_count
    assert [device.device_id for device in node_config.devices] == list(config.nodes[0].devices)
    assert f"unix:{config.nodes[0].address.removeprefix('unix:')}" == node_config.listen
    assert built.limits.power_cap_w == pytest.approx(site.power_cap_w * scale)


def test_the_restart_cost_shrinks_with_the_time_scale(tmp_path: Path) -> None:
    small = scaled(DESIGN_SITES[2], 0.01)
    path = tmp_path / "agent.toml"
    text = agent_toml(
        small,
        home=tmp_path,
        broker_port=1_883,
        asic_ports={"S21": (4_028, 80)},
        market=None,
        market_started_utc=STARTED,
        tuning=Tuning(time_scale=900.0),
    )
    path.write_text(text)
    rows = {row.class_name: row for row in build_site(read_config(path)).classes}
    assert rows["S21"].wear_usd == pytest.approx(0.1 / 900)
    assert rows["S21"].interval_s == pytest.approx(1.0)


def test_a_market_over_http_is_asked_where_it_listens(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    text = agent_toml(
        scaled(DESIGN_SITES[2], 0.01),
        home=tmp_path,
        broker_port=1_883,
        asic_ports={"S21": (4_028, 80)},
        market=HttpMarket(port=4_080, period_s=0.1),
        market_started_utc=STARTED,
        tuning=Tuning(quarantine_after=100),
    )
    path.write_text(text)
    config = read_config(path)
    assert (config.market.kind, config.market.port, config.market.period_s) == ("http", 4_080, 0.1)
    assert config.limits.quarantine_after == 100

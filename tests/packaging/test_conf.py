from pathlib import Path

from edge_agent.config import build_site, read_config
from edge_agent.host.config import load_host_config
from edge_agent.node.config import load_node_config
from firmware_bridges.nvml.control.bounds import control_config_from_toml
from hub.config import read_config as read_hub_config

CONF = Path(__file__).parents[2] / "packaging" / "conf"


def test_the_packaged_agent_config_is_valid_and_starts_with_no_devices() -> None:
    site = build_site(read_config(CONF / "agent.toml"))
    assert (site.site_id, len(site.devices)) == ("example", 0)


def test_what_the_agent_config_shows_in_comments_is_valid_too(tmp_path: Path) -> None:
    lines = (CONF / "agent.toml").read_text(encoding="utf-8").splitlines()
    shown = [line.removeprefix("# ") for line in lines if "=" in line or "[" in line]
    path = tmp_path / "agent.toml"
    path.write_text("\n".join([*shown, '[[classes]]\nmodel = "H100"']), encoding="utf-8")
    config = read_config(path)
    assert len(build_site(config).devices) == 242
    assert config.mqtt is not None


def test_the_packaged_node_config_is_valid() -> None:
    assert load_node_config(CONF / "node.toml").node_id == "g1"
    host = load_host_config(CONF / "host.toml")
    assert host.socket == load_node_config(CONF / "node.toml").driver.socket


def test_the_packaged_gpu_control_config_is_valid_and_lets_nothing_be_set() -> None:
    config = control_config_from_toml((CONF / "gpu-control.toml").read_text(encoding="utf-8"))
    assert (config.users, config.cards) == (("hcp-agent",), ())


def test_what_the_gpu_control_config_shows_in_comments_is_valid_too() -> None:
    lines = (CONF / "gpu-control.toml").read_text(encoding="utf-8").splitlines()
    shown = [line.removeprefix("# ") for line in lines if "=" in line or "[[" in line]
    (card,) = control_config_from_toml("\n".join(shown)).cards
    assert (card.power_w_min, card.power_w, card.power_w_max) == (300.0, 600.0, 700.0)


def test_the_packaged_hub_config_is_valid() -> None:
    assert read_hub_config(CONF / "hub.toml").http.port == 8080

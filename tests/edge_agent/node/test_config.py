"""The node's config file: every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.node.config import load_node_config, node_config_from_toml
from protocol.settings import SettingsError

GOOD = """
node_id = "lub-n1"
site_id = "lubbock"
listen = "tcp:127.0.0.1:7601"
data_dir = "/var/lib/hcp-node"

[driver]
socket = "/run/hcp/gpu.sock"

[limits]
temp_c_max = 88.0

[[device]]
device_id = "g0"
gpu = "gpu0"
device_class = "H100"
"""


def test_good_config_is_read(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(GOOD, encoding="utf-8")
    config = load_node_config(path)
    assert config.devices[0].device_id == "g0"
    assert config.limits.temp_c_max == 88.0
    assert config.limits.temp_c_back == 75.0


@pytest.mark.parametrize(
    ("old", "new", "field", "reason"),
    [
        ("node_id", "nodeid", "nodeid", "did you mean node_id"),
        ("temp_c_max", "temp_max", "limits.temp_max", "did you mean temp_c_max"),
        ("gpu =", "gpux =", "device[0].gpux", "unknown key"),
        ('gpu = "gpu0"', "gpu = 3", "device[0].gpu", "Expected `str`"),
        ('site_id = "lubbock"', 'site_id = "Lub bock"', "site_id", "regex"),
        ("tcp:127.0.0.1:7601", "7601", "listen", "want"),
        ("tcp:127.0.0.1:7601", "tcp:10.2.0.1:7601", "listen", "[tls]"),
        ("tcp:127.0.0.1:7601", "tcp:0.0.0.0:7601", "listen", "[tls]"),
        ("[limits]", '[tls]\ntls_ca = "ca"\n[limits]', "tls.tls_cert", "missing"),
        ('socket = "/run/hcp/gpu.sock"', "", "driver.socket", "socket"),
        ("temp_c_max = 88.0", "temp_c_max = 70.0", "limits.temp_c_back", "below"),
        ("[driver]", '[driver]\nkind = "vllm"', "driver.kind", "no driver"),
        ("node_id", "= ", "TOML", "line 2"),
    ],
)
def test_mistakes_are_named(old: str, new: str, field: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        node_config_from_toml(GOOD.replace(old, new, 1))
    assert caught.value.problems[0].path == field
    assert reason in caught.value.problems[0].detail


def test_doubled_gpu_and_missing_device_are_named() -> None:
    double = GOOD + '\n[[device]]\ndevice_id = "g1"\ngpu = "gpu0"\ndevice_class = "H100"\n'
    with pytest.raises(SettingsError, match=r"device\[1\]\.gpu"):
        node_config_from_toml(double)
    with pytest.raises(SettingsError, match="device"):
        node_config_from_toml(GOOD.partition("[[device]]")[0])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml"):
        load_node_config(tmp_path / "none.toml")

"""The host's config: what is read, and every problem named."""

from __future__ import annotations

import pytest

from edge_agent.addresses import split_tcp
from edge_agent.host.config import host_config_from_toml
from edge_agent.workloads.engine import Strategy
from protocol.settings import SettingsError

CONFIG = """
host_id = "h1"
socket = "/run/hcp-host/gpu.sock"
data_dir = "/var/lib/hcp-host"
[proxy]
listen = "tcp:0.0.0.0:8400"
[[gpu]]
name = "gpu0"
model = "H100"
uuid = "GPU-1"
vram_mib = 81559
[gpu.miner]
kind = "xmrig"
argv = ["/usr/bin/xmrig", "--http-port=8500"]
url = "http://127.0.0.1:8500"
[gpu.server]
kind = "vllm"
url = "http://127.0.0.1:8000"
environment = { B = "2", A = "1" }
strategy = "pinned-swap"
"""


def test_a_config_is_read_whole() -> None:
    config = host_config_from_toml(CONFIG)
    (gpu,) = config.gpus
    assert gpu.server is not None
    assert gpu.server.strategy is Strategy.PINNED_SWAP
    spec = gpu.server.spec(gpu, "server", "secret")
    assert (spec.engine_id, spec.gpu_uuid, spec.token) == ("gpu0-server", "GPU-1", "secret")
    assert spec.environment == (("A", "1"), ("B", "2"))
    assert split_tcp(config.proxy.listen) == ("0.0.0.0", 8400)
    told = CONFIG.replace("[proxy]", '[proxy]\npublic_url = "https://g1.example.net:8443/hcp"')
    assert host_config_from_toml(told).proxy.public_url == "https://g1.example.net:8443/hcp"


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('listen = "tcp:0.0.0.0:8400"', 'listen = "8400"', "proxy.listen"),
        ('socket = "/run/hcp-host/gpu.sock"', 'socket = "gpu.sock"', "socket"),
        ('url = "http://127.0.0.1:8000"', 'url = "https://x"', "gpu[0].server.url"),
        ('kind = "xmrig"', 'kinds = "xmrig"', "gpu[0].miner.kinds"),
        ('name = "gpu0"', 'name = "g p u"', "name"),
        ('strategy = "pinned-swap"', 'strategy = "magic"', "strategy"),
        ('strategy = "pinned-swap"', 'canary_sha256 = "abc"', "canary_sha256"),
    ],
)
def test_each_problem_is_named(old: str, new: str, path: str) -> None:
    assert old in CONFIG
    with pytest.raises(SettingsError) as caught:
        host_config_from_toml(CONFIG.replace(old, new))
    assert any(path in one.path for one in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    "url",
    [
        "g1.example.net", "https://", "ftp://g1", "https://g1/", "https://g1?a=b", "https://g1#a",
        "https://me:secret@g1", "https://g1:port", "https://g1:99999", "https://g 1", "http://[::1",
    ],
)  # fmt: skip
def test_a_public_address_can_be_given_to_customers(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        host_config_from_toml(CONFIG.replace("[proxy]", f'[proxy]\npublic_url = "{url}"'))
    assert [(one.path, one.line) for one in caught.value.problems] == [("proxy.public_url", 6)]


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ('url = "http://127.0.0.1:8000"', "gpu[1].server.url"),
        ('url = "http://localhost:8000/v2"', "gpu[1].server.url"),
        ('url = "http://127.0.0.1:8500"', "gpu[1].server.url"),
        ('url = "http://127.0.0.1:8001"\nengine_id = "gpu0-miner"', "gpu[1].server.engine_id"),
        ('url = "http://127.0.0.1:80000"', "gpu[1].server.url"),
    ],
)
def test_an_engine_is_behind_one_gpu_alone(changed: str, path: str) -> None:
    second = f'[[gpu]]\nname = "gpu1"\nmodel = "H100"\n[gpu.server]\nkind = "vllm"\n{changed}\n'
    with pytest.raises(SettingsError) as caught:
        host_config_from_toml(CONFIG + second)
    assert [one.path for one in caught.value.problems] == [path]


def test_gpus_have_names_of_their_own() -> None:
    twice = CONFIG + '[[gpu]]\nname = "gpu0"\nmodel = "H100"\nuuid = "GPU-1"\n'
    with pytest.raises(SettingsError) as caught:
        host_config_from_toml(twice)
    assert [one.path for one in caught.value.problems] == ["gpu[1].name", "gpu[1].uuid"]

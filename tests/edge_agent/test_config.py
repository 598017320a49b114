from pathlib import Path

import pytest

from edge_agent.config import asic_addresses, build_site, read_config
from protocol.settings import SettingsError

GOOD = """
site_id = "lubbock"
[limits]
power_cap_w = 60e6
[[classes]]
model = "S21"
wear_usd = 0.3
[[classes]]
model = "H100"
pue = 1.25
[[nodes]]
node_id = "g1"
address = "unix:/run/hcp-node/g1.sock"
device_class = "H100"
devices = ["h100-1", "h100-2"]
[[asics]]
prefix = "s21-"
device_class = "S21"
first_address = "127.64.0.254"
count = 3
[market]
kind = "csv"
directory = "market"
from_utc = "2024-05-08T23:00:00Z"
[[market.gpu_rates]]
device_class = "H100"
serve_usd_per_h = 2.0
mine_usd_per_h = 0.06
"""


def read(tmp_path: Path, text: str) -> str:
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        read_config(path)
    return str(caught.value)


def test_a_site_is_built_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD, encoding="utf-8")
    config = read_config(path)
    site = build_site(config)
    assert [device.device_id for device in site.devices] == [
        "h100-1",
        "h100-2",
        "s21-0001",
        "s21-0002",
        "s21-0003",
    ]
    assert [row.host for row in asic_addresses(config)] == [
        "127.64.0.254",
        "127.64.0.255",
        "127.64.1.0",
    ]
    assert {row.class_name: (row.pue, row.wear_usd) for row in site.classes} == {
        "S21": (1.05, 0.3),
        "H100": (1.25, 0.1),
    }


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("power_cap_w", "power_cap_kw", "limits.power_cap_kw: unknown key; did you mean"),
        ('model = "S21"', 'model = "S22"', "classes[0].model: unknown model S22"),
        ("unix:/run", "file:/run", "nodes[0].address: must be unix:PATH"),
        ("127.64.0.254", "127.64.0", "asics[0].first_address"),
        ("count = 3", "count = 0", "asics[0].count"),
        ('kind = "csv"', 'kind = "tsv"', "market.kind"),
        ('directory = "market"', "", "market.directory"),
        ("23:00:00Z", "23:00:00", "market.from_utc: needs a time zone"),
        ('device_class = "S21"', 'device_class = "S9"', "asics[0].device_class: no class S9"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, before: str, after: str, told: str) -> None:
    assert before in GOOD
    assert told in read(tmp_path, GOOD.replace(before, after, 1))


MODES = """
modes = [
  { mode = "low", rate_ths = 130.0, power_w = 1950.0 },
  { mode = "normal", rate_ths = 200.0, power_w = 3500.0 },
]
"""


def test_a_class_may_have_power_modes(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD.replace("wear_usd = 0.3", MODES), encoding="utf-8")
    row = build_site(read_config(path)).classes[0]
    assert [(step.mode, step.rate_ths, step.power_w) for step in row.steps] == [
        ("low", 130.0, 1_930.0), ("normal", 70.0, 1_550.0),
    ]  # fmt: skip


def test_modes_are_set_only_where_the_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD.replace("wear_usd = 0.3", MODES), encoding="utf-8")
    assert build_site(read_config(path)).steps is None
    path.write_text(GOOD.replace("wear_usd = 0.3", f"{MODES}\nset_modes = true"), encoding="utf-8")
    steps = build_site(read_config(path)).steps
    assert steps is not None
    assert steps.names[0] == ("low", "normal")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("wear_usd = 0.3", MODES.replace("normal", "low"), "twice"),
        ("wear_usd = 0.3", MODES.replace("1950", "15").replace("3500", "19"), "above sleep"),
        ("pue = 1.25", MODES, "no miner"),
        ("wear_usd = 0.3", "set_modes = true", "set_modes needs them"),
        (
            "[market]",
            "[backtest.duties]\ncap_low_w = 7e7\n[market]",
            "cap_low_w: is above cap_high_w",
        ),
    ],
)
def test_mistakes_of_modes_and_duties_are_named(
    tmp_path: Path, before: str, after: str, told: str
) -> None:
    assert told in read(tmp_path, GOOD.replace(before, after, 1))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_config(tmp_path / "none.toml")


RANGES = GOOD.replace(
    'first_address = "127.64.0.254"\ncount = 3',
    'addresses = ["127.64.0.8/30", "127.64.1.5-6"]\nkind = "auto"\nv3_port = 4434\nrack = "A1"',
)
LISTED = GOOD.replace(
    'first_address = "127.64.0.254"\ncount = 3', 'inventory = "miners.csv"\ncustomer = "acme"'
)


def test_ranges_give_their_hosts(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(RANGES, encoding="utf-8")
    rows = asic_addresses(read_config(path))
    assert [row.host for row in rows] == ["127.64.0.9", "127.64.0.10", "127.64.1.5", "127.64.1.6"]
    assert {(row.kind, row.v3_port, row.rack, row.port) for row in rows} == {
        ("auto", 4434, "A1", None)
    }


def test_an_inventory_gives_ports_kinds_and_labels_of_single_miners(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(LISTED, encoding="utf-8")
    (tmp_path / "miners.csv").write_text(
        "address,device_id,kind,port,rack,customer\n"
        "127.64.0.1,m-7,luxos,14028,B2,\n"
        "\n"
        "127.64.0.2,,,,,miners inc\n",
        encoding="utf-8",
    )
    first, second = asic_addresses(read_config(path))
    assert (first.device_id, first.kind, first.port, first.rack) == ("m-7", "luxos", 14028, "B2")
    assert (first.customer, second.customer) == ("acme", "miners inc")
    assert (second.device_id, second.kind) == ("s21-0002", "antminer-stock")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("address,colour\n127.0.0.1,red\n", "head: address, colour; columns are"),
        ("rack\nA1\n", "head: rack"),
        ("address\n127.0.0\n", "line 2: Expected 4 octets"),
        ("address,port\n127.0.0.1,0\n", "line 2: Expected `int` >= 1"),
        ("address,port\n127.0.0.1\n", "line 2: 1 cells, the head has 2"),
        ("address\n127.0.0.1\n127.0.0.1\n", "address 127.0.0.1 is there twice"),
        ("address,kind\n127.0.0.1,s9os\n", "kind s9os: no such firmware family"),
        ("", "head: is empty"),
    ],
)
def test_mistakes_of_an_inventory_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "miners.csv").write_text(text, encoding="utf-8")
    assert told in read(tmp_path, LISTED)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("127.64.0.8/30", "127.64.0.8/99", "asics[0].addresses: 127.64.0.8/99"),
        ('kind = "auto"', 'kind = "magic"', "kind magic: no such firmware family"),
        ('rack = "A1"', 'rak = "A1"', "asics[0].rak: unknown key"),
    ],
)
def test_mistakes_of_ranges_are_named(tmp_path: Path, before: str, after: str, told: str) -> None:
    assert told in read(tmp_path, RANGES.replace(before, after, 1))


SECOND = """
[[feeds]]
kind = "http"
port = 8091
name = "rtm"
"""


def test_further_feeds_have_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD + SECOND)
    config = read_config(path)
    assert [(row.kind, row.name) for row in config.feeds] == [("http", "rtm")]
    twice = GOOD + SECOND.replace('"rtm"', '"csv"')
    assert "feeds[0].name: csv is there twice" in read(tmp_path, twice)
    assert "feeds[0].directory: is needed by kind csv" in read(
        tmp_path, GOOD + SECOND.replace('"http"', '"csv"')
    )


def test_a_miner_s_firmware_stands_in_the_site(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD.replace("count = 3", 'count = 3\nkind = "luxos"'))
    site = build_site(read_config(path))
    assert {row.firmware for row in site.devices if row.node_id is None} == {"luxos"}

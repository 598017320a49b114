from pathlib import Path

import pytest

from edge_agent.cli.parser import build_parser
from edge_agent.config import asic_addresses, build_site, check_links, read_config
from edge_agent.programs import run_program
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
        ("unix:/run", "file:/run", "'file:/run/hcp-node/g1.sock': want unix:/path"),
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


LINK = """
[node_link]
tls_ca = "site-ca.crt"
tls_cert = "site.crt"
tls_key = "site.key"
"""


def test_a_node_on_another_machine_needs_the_site_s_certificate_to_be_run(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    far = GOOD.replace("unix:/run/hcp-node/g1.sock", "tcp:10.2.0.1:7400")
    path.write_text(far, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"nodes\[0\].address: is on another machine"):
        check_links(read_config(path), str(path))
    path.write_text(far + LINK, encoding="utf-8")
    check_links(read_config(path), str(path))
    near = GOOD.replace("unix:/run/hcp-node/g1.sock", "tcp:127.0.0.1:7400")
    path.write_text(near, encoding="utf-8")
    check_links(read_config(path), str(path))


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


CAP = "power_cap_w = 60e6"
DEVICES = 'devices = ["h100-1", "h100-2"]'


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (CAP, "power_cap_w = 0", "line 4: limits.power_cap_w: must be within 1.."),
        (CAP, "power_cap_w = -1.0", "line 4: limits.power_cap_w"),
        (CAP, "power_cap_w = nan", "line 4: limits.power_cap_w"),
        (CAP, "power_cap_w = inf", "line 4: limits.power_cap_w"),
        (CAP, "", "line 3: limits.power_cap_w: is missing"),
        (CAP, f"{CAP}\nramp_w_per_min = 0", "line 5: limits.ramp_w_per_min"),
        (CAP, f"{CAP}\npeak_interval_s = 0", "line 5: limits.peak_interval_s"),
        (CAP, f"{CAP}\nquarantine_after = 0", "line 5: limits.quarantine_after"),
        (
            CAP,
            f'{CAP}\nprice_market = "ercot"\nprice_floor_usd_per_mwh = 9000.0',
            "line 6: limits.price_floor_usd_per_mwh: 9000 is not below the ceiling of 5500",
        ),
        ("pue = 1.25", "pue = 0", "line 10: classes[1].pue"),
        ("pue = 1.25", "pue = nan", "line 10: classes[1].pue"),
        ("pue = 1.25", "dwell_s = -1", "line 10: classes[1].dwell_s"),
        ("pue = 1.25", "interval_s = 0", "line 10: classes[1].interval_s"),
        ("pue = 1.25", "warm_reserve = -1", "line 10: classes[1].warm_reserve"),
        ("pue = 1.25", "warm_reserve_max = 1025", "line 10: classes[1].warm_reserve_max"),
        ("pue = 1.25", "pue_by_ambient_c = [[30, 1.1], [10, 1.2]]", "line 10: classes[1].pue_by"),
        ("pue = 1.25", "pue_by_ambient_c = [[30, 9.1]]", "line 10: classes[1].pue_by_ambient_c[0]"),
        ('model = "H100"', 'model = "S21"', "line 8: classes[1].name: the class S21 is there"),
        (DEVICES, 'devices = ["h100-1", "h100-1"]', "line 15: nodes[0].devices: h100-1 is there"),
        (DEVICES, 'devices = ["s21-0002"]', "line 16: asics[0]: device_id s21-0002 is there"),
        (DEVICES, "devices = []", "line 15: nodes[0].devices: a node has at least one device"),
        ("unix:/run/hcp-node/g1.sock", "tcp:10.2.0.1", "line 13: nodes[0].address"),
        ("unix:/run/hcp-node/g1.sock", "tcp:10.2.0.1:99999", "line 13: nodes[0].address"),
        ('device_class = "S21"', 'device_class = "H100"', "line 18: asics[0].device_class: H100"),
        ('device_class = "H100"', 'device_class = "S21"', "line 14: nodes[0].device_class: S21"),
        ("serve_usd_per_h", "serve_usd", "line 27: market.gpu_rates[0].serve_usd: unknown key"),
        ("[limits]", "[limits", "line 3: TOML"),
    ],
)
def test_what_is_no_site_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, told: str
) -> None:
    assert before in GOOD
    path = tmp_path / "agent.toml"
    path.write_text(GOOD.replace(before, after, 1), encoding="utf-8")
    assert run_program(build_parser().parse_args(["config", "check", str(path)])) == 1
    assert f"{path}: {told}" in capsys.readouterr().out


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

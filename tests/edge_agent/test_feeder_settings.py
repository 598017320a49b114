"""``[[feeders]]`` of a site file: who hangs on what, and each mistake by name."""

from pathlib import Path

import pytest

from edge_agent.config import build_site, read_config
from protocol.settings import SettingsError
from tests.edge_agent.test_config import GOOD, read

RACKED = GOOD.replace("count = 3", 'count = 3\nrack = "R1"')
FEEDERS = """
[[feeders]]
name = "north"
power_cap_w = 5e6
racks = ["R1"]
[[feeders]]
name = "south"
power_cap_w = 1e6
nodes = ["g1"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("keys", "on_it"),
    [
        ('racks = ["R1"]', ["s21-0001", "s21-0002", "s21-0003"]),
        ('classes = ["S21"]', ["s21-0001", "s21-0002", "s21-0003"]),
        ('devices = ["s21-0002", "h100-1"]', ["h100-1", "s21-0002"]),
        ('nodes = ["g1"]\ndevices = ["s21-0003"]', ["h100-1", "h100-2", "s21-0003"]),
    ],
)
def test_devices_hang_where_the_file_says(tmp_path: Path, keys: str, on_it: list[str]) -> None:
    text = f'{RACKED}\n[[feeders]]\nname = "north"\npower_cap_w = 5e6\n{keys}\n'
    site = build_site(read_config(write(tmp_path, text)))
    assert [row.device_id for row in site.devices if row.feeder == "north"] == on_it
    assert [(row.name, row.power_cap_w) for row in site.feeders] == [("north", 5e6)]


def test_two_feeders_share_a_site(tmp_path: Path) -> None:
    site = build_site(read_config(write(tmp_path, RACKED + FEEDERS)))
    assert site.feeder_of.tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('"R1"]', '"R11"]', "feeders[0].racks: no rack R11; did you mean R1?"),
        (
            'nodes = ["g1"]',
            'classes = ["H10"]',
            "feeders[1].classes: no class H10; did you mean H100?",
        ),
        ('nodes = ["g1"]', 'devices = ["s21-001"]', "no device s21-001; did you mean s21-0001?"),
        ('nodes = ["g1"]', 'nodes = ["zz"]', "feeders[1].nodes: no node zz"),
        ('nodes = ["g1"]', "", "feeders[1]: nothing hangs on it"),
        ('"south"', '"north"', "feeders[1].name: north is there twice"),
        ('nodes = ["g1"]', 'classes = ["S21"]', "south: s21-0001 hangs on north already"),
        ("1e6", "-1.0", "power_cap_w"),
        ("racks", "rack", "feeders[0].rack: unknown key; did you mean racks?"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, before: str, after: str, told: str) -> None:
    assert before in FEEDERS
    assert told in read(tmp_path, RACKED + FEEDERS.replace(before, after, 1))


def test_a_feeder_without_a_cap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="power_cap_w"):
        read_config(write(tmp_path, RACKED + FEEDERS.replace("power_cap_w = 1e6", "")))

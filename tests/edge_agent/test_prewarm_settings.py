"""``[prewarm]`` of a site file: on unless it is switched off, bounded, each mistake by name."""

from pathlib import Path

import pytest

from edge_agent.config import build_site, read_config
from edge_agent.core.prewarm_limits import PrewarmLimits
from edge_agent.core.site_file import decode_site, encode_site
from protocol.settings import SettingsError
from tests.edge_agent.test_config import GOOD
from tests.edge_agent.test_feeder_settings import write


def limits(tmp_path: Path, text: str) -> PrewarmLimits | None:
    site = build_site(read_config(write(tmp_path, GOOD + text)))
    assert decode_site(encode_site(site, "1"))[0].prewarm == site.prewarm
    return site.prewarm


def test_a_file_that_says_nothing_pre_warms_within_the_usual_bounds(tmp_path: Path) -> None:
    assert limits(tmp_path, "") == PrewarmLimits(per_node=2)


def test_it_is_switched_off_by_one_line(tmp_path: Path) -> None:
    assert limits(tmp_path, "\n[prewarm]\nenabled = false\n") is None


def test_bounds_are_those_of_the_file(tmp_path: Path) -> None:
    text = "\n[prewarm]\nper_node = 5\nstart_chance = 0.8\nkeep_chance = 0.1\nrest_s = 7\n"
    wanted = PrewarmLimits(per_node=5, start_chance=0.8, keep_chance=0.1, rest_s=7.0)
    assert limits(tmp_path, text) == wanted


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("keep_chance = 0.9", "keep_chance"),
        ("start_chance = 1.5", "start_chance"),
        ("per_node = 0", "per_node"),
        ("expire_s = 0", "expire_s"),
        ("often = true", "often"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        limits(tmp_path, f"\n[prewarm]\n{line}\n")

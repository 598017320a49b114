"""The documents are held to the repository: what they name must exist, and what exists is named."""

import re
from pathlib import Path

import pytest

from bench.__main__ import bench_names
from edge_agent.cli.parser import build_parser

ROOT = Path(__file__).resolve().parent.parent
SPECIFICATION = (ROOT / "docs" / "SPECIFICATION.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_every_bench_has_its_figure_in_the_specification() -> None:
    named = set(re.findall(r"`\./dev bench ([a-z-]+)`", SPECIFICATION))
    assert named == set(bench_names())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_a_document_names_exist(path: Path) -> None:
    named = re.findall(r"`((?:tests|bench|docs|packaging|simulators)/[\w./-]+)`", path.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_every_promise_names_what_enforces_it_or_that_it_is_pending() -> None:
    rows = [line for line in SPECIFICATION.splitlines() if line.startswith("| ")]
    for row in rows:
        last = row.rstrip("| ").rsplit("|", 1)[-1]
        known = ("tests/", "bench", "test pending", "enforced by", "command", "---")
        assert any(word in last for word in known), row


def test_the_readme_shows_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "./dev demo\n./dev test\n" in readme


def test_every_agent_command_has_a_help_text() -> None:
    told = build_parser().format_help()
    for command in (
        "status",
        "devices",
        "why",
        "plan",
        "switches",
        "drain",
        "undrain",
        "buffer",
        "replay",
        "regret",
        "report",
        "backtest",
        "market",
        "power",
        "order",
    ):
        assert re.search(rf"^ +{command} +\w", told, re.MULTILINE), command

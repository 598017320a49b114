"""The commands that need no agent: the table of firmwares, and decoding of a recording."""

import json
from pathlib import Path

import pytest

from edge_agent.__main__ import main as agent
from firmware_bridges.families import FAMILIES
from firmware_bridges.matrix import overview
from firmware_bridges.query import Exchange, cgminer, page
from firmware_bridges.recording import REDACTED, recording_of
from firmware_bridges.tool import main

DOCS = Path(__file__).parents[2] / "docs"
SUMMARY = {
    "STATUS": [{"STATUS": "S", "When": 1, "Code": 11, "Msg": "Summary", "Description": "cgminer"}],
    "SUMMARY": [{"Elapsed": 900, "MHS av": 95_000_000.0, "MHS 5s": 96_000_000.0}],
    "id": 1,
}


def written(folder: Path, exchanges: list[object]) -> Path:
    path = folder / "miner.json"
    path.write_text(json.dumps({"schema": "asic-fixture/1", "exchanges": exchanges}))
    return path


def exchange(response: object) -> dict[str, object]:
    return {"transport": "tcp-cgminer", "port": 4028, "request": {"command": "summary"},
            "response": response}  # fmt: skip


def test_the_page_of_the_matrix_is_not_stale() -> None:
    assert (DOCS / "firmware-matrix.md").read_text() == overview(), (
        "run: hcp-agent bridge list --markdown > docs/firmware-matrix.md"
    )


def test_the_list_names_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert agent(["bridge", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["family"] for row in found["firmwares"]] == [family.name for family in FAMILIES]
    assert main(["list"]) == 0
    assert "antminer-stock" in capsys.readouterr().out


def test_an_unknown_machine_still_gives_its_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decode", str(written(tmp_path, [exchange(SUMMARY)])), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["hashrate_ths"], found["hashrate_avg_ths"]) == (96.0, 95.0)
    assert (found["is_mining"], found["model"], found["power_w"]) == (True, None, None)
    assert found["parts_missing"] == ["version", "pools"]


def test_an_answer_that_is_kept_as_text_is_decoded_as_it_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = json.dumps(SUMMARY)[:-30]
    assert main(["decode", str(written(tmp_path, [exchange(cut)])), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hashrate_avg_ths"] == 95.0
    assert found["hashrate_ths"] is None, "the value touched the cut"
    assert found["repairs"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("{", "file"),
        ('{"exchanges": 3}', "exchanges"),
        ('{"exchanges": [{"transport": "smoke"}]}', "exchanges[0].transport"),
        ('{"exchanges": [{"transport": "tcp-cgminer", "request": 1}]}', "exchanges[0].request"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, field: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert main(["decode", str(path)]) == 2
    assert field in capsys.readouterr().err


def test_a_recording_that_says_nothing_is_a_problem(tmp_path: Path) -> None:
    assert main(["decode", str(written(tmp_path, [exchange("<html>404</html>")]))]) == 1


def test_a_recording_is_written_without_secrets_and_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = b'{"pools":[{"url":"stratum+tcp://p:3333","user":"owner.1","pass":"hunter2"}]}'
    made = recording_of(
        [
            Exchange(query=cgminer("summary"), body=json.dumps(SUMMARY).encode() + b"\0"),
            Exchange(query=page("/cgi-bin/get_miner_conf.cgi"), body=conf),
            Exchange(query=page("/x"), body=b'{"token":"abc123", broken "password":"hunter2"'),
        ],
        name="mine",
        made_at="2026-11-26T00:00:00Z",
    )
    assert b"hunter2" not in made
    assert b"owner.1" not in made
    assert b"abc123" not in made
    assert REDACTED.encode() in made
    path = tmp_path / "mine.json"
    path.write_bytes(made)
    assert main(["decode", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hashrate_ths"] == 96.0

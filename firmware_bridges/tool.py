"""`hcp-agent bridge` and `python -m firmware_bridges`: look at miners without any configuration."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from firmware_bridges import matrix, probe
from firmware_bridges.fixture import FIXTURE_BYTES_MAX, FixtureError, read_fixture
from firmware_bridges.recognise import decode_exchanges
from firmware_bridges.report import VERSION, lines_of, report_of

EXIT_FINE: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2


def main(argv: Sequence[str] | None = None, prog: str = "python -m firmware_bridges") -> int:
    """Run one command; returns the exit code: 0 fine, 1 a problem was found, 2 usage."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_list(commands)
    probe.add_parsers(commands)
    _add_decode(commands)
    options = parser.parse_args(argv)
    code: int = options.run(options)
    return code


def _add_list(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("list", help="what each firmware can do, and how fast")
    parser.add_argument("--json", action="store_true", help="machine-readable, with version v")
    parser.add_argument("--markdown", action="store_true", help="as docs/firmware-matrix.md")
    parser.set_defaults(run=_list)


def _add_decode(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("decode", help="decode a recording (asic-fixture/1)")
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_decode)


def _list(options: argparse.Namespace) -> int:
    if options.json:
        _print(msgspec.json.encode({"v": VERSION, "firmwares": matrix.table()}).decode())
    elif options.markdown:
        sys.stdout.write(matrix.overview())
    else:
        for line in matrix.lines():
            _print(line)
    return EXIT_FINE


def _decode(options: argparse.Namespace) -> int:
    try:
        with options.file.open("rb") as file:
            exchanges = read_fixture(file.read(FIXTURE_BYTES_MAX + 1))
    except (OSError, FixtureError) as exc:
        sys.stderr.write(f"{options.file}: {exc}\n")
        return EXIT_USAGE
    decoded = decode_exchanges(exchanges, "recording")
    report = report_of(decoded)
    if options.json:
        _print(msgspec.json.encode(report).decode())
    else:
        for line in lines_of(report):
            _print(line)
    return EXIT_FINE if decoded.reading.answered else EXIT_PROBLEM


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")

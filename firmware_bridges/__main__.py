"""`python -m firmware_bridges decode FILE [--json]`: a recording in, one normalised reading out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from firmware_bridges.fixture import FIXTURE_BYTES_MAX, FixtureError, read_fixture
from firmware_bridges.recognise import decode_exchanges
from firmware_bridges.report import lines_of, report_of

EXIT_FINE = 0
EXIT_PROBLEM = 1
EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m firmware_bridges")
    commands = parser.add_subparsers(dest="command", required=True)
    decode = commands.add_parser("decode", help="decode a recording (asic-fixture/1)")
    decode.add_argument("file", type=Path)
    decode.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    try:
        with options.file.open("rb") as file:
            exchanges = read_fixture(file.read(FIXTURE_BYTES_MAX + 1))
    except (OSError, FixtureError) as exc:
        sys.stderr.write(f"{options.file}: {exc}\n")
        return EXIT_USAGE
    report = report_of(decode_exchanges(exchanges, "recording"))
    text = msgspec.json.encode(report).decode() if options.json else "\n".join(lines_of(report))
    sys.stdout.write(text + "\n")
    return EXIT_PROBLEM if report.is_mining is None and not report.model else EXIT_FINE


if __name__ == "__main__":
    sys.exit(main())

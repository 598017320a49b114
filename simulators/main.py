"""`hcp-sim`: the simulators as programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from simulators import (
    asic_command,
    engine_command,
    gpu_command,
    market_command,
    pool_command,
)
from simulators.errors import SimulatorError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one simulator; return 0, 1 for a problem of the world, 2 for a wrong setting."""
    parser = argparse.ArgumentParser(prog="hcp-sim", description="Simulators of HCP's world.")
    commands = parser.add_subparsers(required=True, metavar="SIMULATOR")
    asic_command.add_parser(commands)
    engine_command.add_parser(commands)
    gpu_command.add_parser(commands)
    market_command.add_parser(commands)
    pool_command.add_parser(commands)
    options = parser.parse_args(argv)
    try:
        code: int = options.run(options)
    except SimulatorError as error:
        print(f"hcp-sim: {error} [{error.code}]", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"hcp-sim: {error}", file=sys.stderr)
        return 1
    return code

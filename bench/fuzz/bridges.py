"""Coverage-guided fuzzing of every decoder of every firmware family.

Atheris is no dependency of the project. Run::

    python3.11 -m venv .cache/fuzz && .cache/fuzz/bin/pip install atheris msgspec cryptography
    .cache/fuzz/bin/python -m bench.fuzz.bridges .cache/corpus -max_total_time=600 -timeout=5

It stops at the first input that raises anything but `BridgeError`, takes over 100 ms of CPU, or
gives a value that no machine has. The first two bytes choose the decoder, the rest is the answer.
"""

import contextlib
import math
import sys
import time
from typing import Final

from firmware_bridges.base import Partial, Reading
from firmware_bridges.families import FAMILIES
from firmware_bridges.family import Family
from firmware_bridges.fixture import FixtureError, read_fixture
from firmware_bridges.query import Query, Wire
from firmware_bridges.recognise import decode_query, read_partials

SLOW_S: Final = 0.1
ADDRESS: Final = "10.0.0.1"


class SlowError(Exception):
    """A decoder took longer than the promise."""


def routes() -> list[tuple[Family, Query]]:
    """List everything that can be decoded."""
    found: list[tuple[Family, Query]] = []
    for family in FAMILIES:
        found += [(family, Query(wire=Wire.CGMINER, key=key)) for key in family.answers]
        found += [(family, Query(wire=wire, key=key)) for wire, key in family.documents]
    return found


ROUTES: Final = routes()


def decode_one(data: bytes) -> None:
    """Decode one input and check what came out.

    Raises:
        SlowError: It took too long.
        AssertionError: A value is none.
    """
    family, query = ROUTES[int.from_bytes(data[:2], "little") % len(ROUTES)]
    began = time.process_time()
    outcomes = decode_query(family, query, data[2:], ADDRESS)
    partials = [outcome for _, outcome in outcomes if isinstance(outcome, Partial)]
    check(read_partials(family, ADDRESS, partials, ()))
    with contextlib.suppress(FixtureError):
        read_fixture(data)
    took_s = time.process_time() - began
    if took_s > SLOW_S:
        raise SlowError(f"{family.name} {query.key}: {took_s:.3f} s for {len(data)} bytes")


def check(reading: Reading) -> None:
    """Refuse values that no machine has."""
    for name in ("hashrate_ths", "hashrate_avg_ths", "expected_hashrate_ths", "power_w"):
        value = getattr(reading, name)
        assert value is None or (math.isfinite(value) and value >= 0), name
    for name in ("chip_temp_c_max", "board_temp_c_max", "inlet_temp_c"):
        value = getattr(reading, name)
        assert value is None or 0 < value <= 200, name
    assert all(rpm >= 0 for rpm in reading.fans_rpm or ())


def main() -> None:
    """Fuzz until the time given on the command line is over."""
    import atheris  # noqa: PLC0415 - not a dependency: only whoever fuzzes has it

    atheris.instrument_all()
    atheris.Setup(sys.argv, decode_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""What should have been billed, from the truth files of the simulated GPU hosts alone.

An auditor's second opinion: it reads no record of the platform and shares no code with the hub's
rating. The rules are those of the published price list: served milliseconds (whole, floored on the
running counter), the price in force at the start of each minute, one line for each workload, class
and price, each line rounded half up to the cent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import msgspec
from msgspec import Struct

from simulators.gpu_host import TruthLine

_MS_PER_HOUR = 3_600_000
_MINUTE_MS = 60_000


class Price(Struct, frozen=True, kw_only=True):
    """USD per device-hour of a class from an instant on (milliseconds since 1970)."""

    device_class: str
    from_ms: int
    usd_per_h: Decimal


class Served(Struct, frozen=True, kw_only=True):
    """One stay at an open gate; `closed` is False when the truth ends while the gate was open.

    Args:
        opened_ns, ended_ns: CLOCK_BOOTTIME of the first and the last that is known of the stay.
    """

    workload_id: str
    model: str
    lease_id: str
    attempt: int
    gpu: str
    instance_id: str
    opened_ns: int
    ended_ns: int
    start_wall_ns: int
    served_before_ns: int
    served_after_ns: int
    energy_after_mj: int
    closed: bool


class TruthBill(Struct, frozen=True, kw_only=True):
    """Lines (workload, class, price, milliseconds, cents) and their total."""

    lines: tuple[tuple[str, str, Decimal, int, Decimal], ...]
    total_usd: Decimal


def read_truth(paths: Iterable[Path]) -> list[TruthLine]:
    """Read truth files; a last line cut by a kill is left out."""
    decoder = msgspec.json.Decoder(TruthLine)
    return [
        decoder.decode(line)
        for path in paths
        for line in path.read_bytes().split(b"\n")
        if line.endswith(b"}")
    ]


def stays(lines: Sequence[TruthLine]) -> list[Served]:
    """Turn truth lines into stays at open gates, in the order of their opening."""
    by_instance: dict[tuple[str, str, str], list[TruthLine]] = {}
    for line in lines:
        by_instance.setdefault((line.lease_id, line.gpu, line.instance_id), []).append(line)
    found: list[Served] = []
    for told in by_instance.values():
        opened: TruthLine | None = None
        last = told[0]
        for line in told:
            if line.t == "open":
                opened = line
            elif line.t == "close" and opened is not None:
                found.append(_stay(opened, line, closed=True))
                opened = None
            last = line
        if opened is not None:
            found.append(_stay(opened, last, closed=False))
    return sorted(found, key=lambda stay: (stay.start_wall_ns, stay.instance_id))


def bill(
    served: Sequence[Served],
    prices: Sequence[Price],
    from_ms: int,
    to_ms: int,
    cancelled_ms: Mapping[str, int] | None = None,
) -> TruthBill:
    """Rate the stays of a period.

    Args:
        served: of one customer. prices: every version of every class.
        from_ms, to_ms: minute-aligned period [from, to) in milliseconds since 1970.
        cancelled_ms: when the cancel of a workload was accepted; minutes that start later are free.
    """
    free_from = {
        name: at_ms // _MINUTE_MS * _MINUTE_MS for name, at_ms in (cancelled_ms or {}).items()
    }
    totals: dict[tuple[str, str, int], tuple[Decimal, int]] = {}
    for stay in served:
        last_ms = min(to_ms, free_from.get(stay.workload_id, to_ms) + _MINUTE_MS)
        for price, start, end in _versions(prices, stay.model, from_ms, last_ms):
            count = _counter_ms(stay, end) - _counter_ms(stay, start)
            key = (stay.workload_id, stay.model, price.from_ms)
            before = totals.get(key, (price.usd_per_h, 0))[1]
            totals[key] = (price.usd_per_h, before + count)
    lines = tuple(
        (workload, model, usd_per_h, count, _cents(usd_per_h * count / _MS_PER_HOUR))
        for (workload, model, _), (usd_per_h, count) in sorted(totals.items())
        if count
    )
    return TruthBill(lines=lines, total_usd=sum((line[4] for line in lines), Decimal(0)))


def _stay(opened: TruthLine, last: TruthLine, *, closed: bool) -> Served:
    return Served(
        workload_id=opened.lease_id.rpartition(".")[0],
        model=opened.model,
        lease_id=opened.lease_id,
        attempt=opened.attempt,
        gpu=opened.gpu,
        instance_id=opened.instance_id,
        opened_ns=opened.at_ns,
        ended_ns=last.at_ns,
        start_wall_ns=opened.wall_ns,
        served_before_ns=opened.served_ns,
        served_after_ns=last.served_ns,
        energy_after_mj=last.energy_mj,
        closed=closed,
    )


def _counter_ms(stay: Served, at_ms: int) -> int:
    passed_ns = at_ms * 1_000_000 - stay.start_wall_ns
    length_ns = stay.served_after_ns - stay.served_before_ns
    return (stay.served_before_ns + min(max(passed_ns, 0), length_ns)) // 1_000_000


def _versions(
    prices: Sequence[Price], model: str, from_ms: int, to_ms: int
) -> Iterable[tuple[Price, int, int]]:
    own = sorted((row for row in prices if row.device_class == model), key=lambda row: row.from_ms)
    for place, price in enumerate(own):
        end = own[place + 1].from_ms if place + 1 < len(own) else to_ms
        start, end = max(from_ms, _next_minute(price.from_ms)), min(to_ms, _next_minute(end))
        if start < end:
            yield price, start, end


def _next_minute(at_ms: int) -> int:
    # A minute that began before a price took effect keeps the old price to its end.
    return -(-at_ms // _MINUTE_MS) * _MINUTE_MS


def _cents(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.01"), rounding=ROUND_HALF_UP)

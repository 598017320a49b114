"""What a pass decided, in a few hundred bytes: proof that a replay is equal, and a name if not.

Two digests cover the plan bit for bit. Beside them stand, for each column of the records, its plain
sum and its sum weighted by place: when one device of a column differs, the quotient of the two
differences is its place and the plain one the value that was decided; the digest then confirms what
was found. When many differ, the first device of each class, kept whole, names one of them.
"""

from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from edge_agent.core.plan import DecisionRecords, Gates, Plan, PowerView, Reason
from edge_agent.core.site import FloatColumn, Site
from protocol.resource import ACTIVITY_CODES

DIGEST_BYTES = 16
COLUMNS: tuple[tuple[str, str], ...] = (
    ("activity", "u1"),
    ("best", "u1"),
    ("target", "u1"),
    ("reason", "u1"),
    ("gates", "u1"),
    ("gain_usd", "<f8"),
    ("cost_usd", "<f8"),
)
_POWER = tuple(field.name for field in msgspec.structs.fields(PowerView))
_SUM = np.dtype("<u8")
_ENCODER = msgspec.msgpack.Encoder()


class Decided(Struct, frozen=True, array_like=True):
    """What the journal keeps of a plan.

    Args:
        records: blake2b-16 of the record columns. rest: of intents, lease acts, power and alarms.
        sums: per part of a column (a float has two, its halves) plain and weighted sum, uint64.
        samples: the columns of the first device of each class. power: the power view, float64.
    """

    records: bytes
    rest: bytes
    sums: bytes
    samples: bytes
    power: bytes


class Mismatch(Struct, frozen=True, kw_only=True):
    """Where a plan is not what was decided; a device of None stands for the site or for several."""

    device_id: str | None
    column: str
    decided: str | float | None
    replayed: str | float | None
    detail: str = ""


def decided(site: Site, plan: Plan) -> Decided:
    """Give what the journal keeps of a plan."""
    columns = _columns(plan.records)
    first = _samples(site)
    return Decided(
        _digest(columns),
        _rest(plan),
        np.array(_sums(columns), dtype=_SUM).tobytes(),
        b"".join(column[first].tobytes() for column in columns),
        _power(plan.power).tobytes(),
    )


def mismatch(site: Site, then: Decided, plan: Plan) -> Mismatch | None:
    """Give the first difference between what was decided and a plan; None when they are equal."""
    now = decided(site, plan)
    if then == now:
        return None
    if then.records != now.records:
        found = _one_device(site, then, plan.records) or _sampled(site, then, now)
        return found or _some_column(then, now)
    power = np.frombuffer(then.power, dtype="<f8")
    for name, was, told in zip(_POWER, power, _power(plan.power), strict=False):
        if was.tobytes() != told.tobytes():
            return Mismatch(
                device_id=None, column=f"power.{name}", decided=_known(was), replayed=_known(told)
            )
    names = ("rest",) if then.rest != now.rest else ("sums", "samples", "power")
    column = next(name for name in names if getattr(then, name) != getattr(now, name))
    return Mismatch(
        device_id=None,
        column="intents" if column == "rest" else column,
        decided=getattr(then, column).hex()[:32],
        replayed=getattr(now, column).hex()[:32],
        detail="intents, lease acts or alarms differ, and no column does"
        if column == "rest"
        else "only the record of the decision itself differs",
    )


def _columns(records: DecisionRecords) -> list[np.ndarray]:
    """Give the columns in their stored form; every NaN is the same NaN, whatever made it."""
    out: list[np.ndarray] = []
    for name, dtype in COLUMNS:
        column = np.ascontiguousarray(getattr(records, name), dtype=dtype)
        if dtype == "<f8":
            column = np.where(np.isnan(column), np.nan, column)
        out.append(column)
    return out


def _digest(columns: list[np.ndarray]) -> bytes:
    hashed = blake2b(digest_size=DIGEST_BYTES)
    for column in columns:
        hashed.update(column.data)
    return hashed.digest()


def _rest(plan: Plan) -> bytes:
    intents = [
        (
            row.class_index, row.indices.astype("<i8").tobytes(), row.from_activity,
            row.to_activity, int(row.reason), row.lease_id, row.gain_usd, row.cost_usd,
            # Plans from before modes were set stay what they were.
            *((row.mode,) if row.mode else ()),
        )
        for row in plan.intents
    ]  # fmt: skip
    acts = [(type(row).__name__, row) for row in plan.leases]
    # Plans without any stay what they were.
    resumes = (plan.resumes,) if plan.resumes else ()
    body = _ENCODER.encode((intents, acts, _power(plan.power).tobytes(), plan.alarms, *resumes))
    return blake2b(body, digest_size=DIGEST_BYTES).digest()


def _parts(column: np.ndarray) -> list[np.ndarray]:
    if column.dtype == np.uint8:
        return [column.astype(np.uint64)]
    halves = column.view("<u4").astype(np.uint64)
    return [halves[0::2], halves[1::2]]


def _sums(columns: list[np.ndarray]) -> list[int]:
    """Give both sums of each part; below 65,536 devices neither overflows."""
    place = np.arange(1, len(columns[0]) + 1, dtype=np.uint64)
    out: list[int] = []
    for column in columns:
        for part in _parts(column):
            out += [int(part.sum()), int((part * place).sum())]
    return out


def _power(power: PowerView) -> FloatColumn:
    values = [getattr(power, name) for name in _POWER]
    return np.array([np.nan if value is None else value for value in values], dtype="<f8")


def _samples(site: Site) -> np.ndarray:
    return np.unique(site.class_of, return_index=True)[1]


def _one_device(site: Site, then: Decided, records: DecisionRecords) -> Mismatch | None:
    """Find the one device that differs, if it is one per column; the digest says if it is."""
    columns = _columns(records)
    was, told = np.frombuffer(then.sums, dtype=_SUM).tolist(), _sums(columns)
    if len(was) != len(told):
        return None
    found: list[tuple[int, int]] = []
    mended = [column.copy() for column in columns]
    number = 0
    for order, column in enumerate(mended):
        for part, _ in enumerate(_parts(column)):
            plain, weighted = (was[number + k] - told[number + k] for k in (0, 1))
            number += 2
            if plain == 0 and weighted == 0:
                continue
            at = weighted // plain - 1 if plain and weighted % plain == 0 else -1
            raw = column if column.dtype == np.uint8 else column.view("<u4")
            step = 1 if column.dtype == np.uint8 else 2
            if not 0 <= at < len(site) or not 0 <= int(raw[at * step + part]) + plain < 1 << (
                8 * raw.itemsize
            ):
                return None
            raw[at * step + part] = int(raw[at * step + part]) + plain
            found.append((at, order))
    if not found or _digest(mended) != then.records:
        return None
    at, order = min(found)
    detail = _more(len({place for place, _ in found}) - 1)
    return _named(site, at, order, mended[order][at], columns[order][at], detail)


def _sampled(site: Site, then: Decided, now: Decided) -> Mismatch | None:
    first = _samples(site)
    offset = 0
    found: list[tuple[int, int, Any, Any]] = []
    if len(then.samples) != len(now.samples):
        return None
    for order, (_, dtype) in enumerate(COLUMNS):
        was, told = (
            np.frombuffer(row.samples, dtype=dtype, count=len(first), offset=offset)
            for row in (then, now)
        )
        offset += was.nbytes
        for at, a, b in zip(first, was, told, strict=True):
            if a.tobytes() != b.tobytes():
                found.append((int(at), order, a, b))
    if not found:
        return None
    at, order, a, b = min(found, key=lambda row: row[:2])
    return _named(site, at, order, a, b, "other devices differ too")


def _some_column(then: Decided, now: Decided) -> Mismatch:
    was, told = (np.frombuffer(row.sums, dtype=_SUM).tolist() for row in (then, now))
    names = [name for name, dtype in COLUMNS for _ in range(2 if dtype == "u1" else 4)]
    differing = [
        number
        for number, (a, b) in enumerate(zip(was, told, strict=False))
        if a != b and number < len(names)
    ]
    number = differing[0] if differing else None
    return Mismatch(
        device_id=None,
        column="records" if number is None else names[number],
        decided=then.records.hex() if number is None else f"sum {was[number]}",
        replayed=now.records.hex() if number is None else f"sum {told[number]}",
        detail="several devices differ",
    )


def _named(site: Site, at: int, order: int, was: Any, told: Any, detail: str) -> Mismatch:  # noqa: ANN401 - a numpy scalar
    name = COLUMNS[order][0]
    return Mismatch(
        device_id=site.devices[at].device_id,
        column=name,
        decided=_value(name, was),
        replayed=_value(name, told),
        detail=detail,
    )


def _value(column: str, raw: Any) -> str | float | None:  # noqa: ANN401 - a numpy scalar
    """Give a value as a person reads it."""
    if column in ("gain_usd", "cost_usd"):
        return _known(raw)
    code = int(raw)
    if column == "gates":
        passed = [gate.name or "" for gate in Gates if gate & code]
        return "+".join(passed).lower() or "none"
    if column == "reason":
        known = {int(row): row.name.lower() for row in Reason}
        return known.get(code, str(code))
    return ACTIVITY_CODES[code].value if code < len(ACTIVITY_CODES) else str(code)


def _known(number: float) -> float | None:
    return None if np.isnan(number) else float(number)


def _more(count: int) -> str:
    return "" if count <= 0 else f"{count} more devices differ"

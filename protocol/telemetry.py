"""Columnar telemetry batches: scaled integers, delta over ticks, null bitmap, zstd.

A batch holds T ticks of D devices. Each metric is one column of D x T values, NaN = unknown. A
value is stored as ``round(value / scale)``; the first tick whole, the later ones as differences to
the tick before, each in the narrowest integer type that holds them; a bitmap marks the unknown.
The device list and the metric table travel once, in the ``schema`` stream, named by digest.

Layout inside zstd: MessagePack of ``_Body``. Before inflating, the size that the frame announces is
checked (at most 16 MiB), so a bomb costs nothing.
"""

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard
from msgspec import Meta, Struct

from protocol.errors import DecodeError, EncodeError
from protocol.units import Digest, Ident, SiteName

INFLATED_BYTES_MAX = 16 << 20
POINTS_MAX = 2_000_000
DEVICES_MAX = 4_096
TICKS_MAX = 120
_VERSION = 1
_ZSTD_LEVEL = 1
# Magnitude of a scaled value: exact in float64 and far from int64's edge after one difference.
_SCALED_MAX = float(1 << 52)
_INT_TYPES: dict[str, np.dtype[np.signedinteger]] = {
    "i1": np.dtype("<i1"),
    "i2": np.dtype("<i2"),
    "i4": np.dtype("<i4"),
    "i8": np.dtype("<i8"),
}

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Metric(Struct, frozen=True, kw_only=True):
    """One column: its name with the unit last, and the size of one stored step in that unit."""

    name: Ident
    scale: Annotated[float, Meta(gt=0, le=1e9)]


class TelemetrySchema(Struct, frozen=True, kw_only=True, tag="telemetry_schema"):
    """The metrics of a batch, in order of its columns."""

    metrics: tuple[Metric, ...]

    def __post_init__(self) -> None:
        """Check that each is named once; where they are stored, upper and lower case are one."""
        if len({metric.name.lower() for metric in self.metrics}) != len(self.metrics):
            msg = "metrics must name each once"
            raise ValueError(msg)


class DeviceList(Struct, frozen=True, kw_only=True, tag="device_list"):
    """The devices of a batch, in order of its rows."""

    device_ids: Annotated[tuple[Ident, ...], Meta(max_length=DEVICES_MAX)]


SchemaItem = TelemetrySchema | DeviceList


class ColumnBatch(Struct, frozen=True, kw_only=True, eq=False):
    """T ticks of D devices.

    Args:
        t_ms: int64 (T,), strictly growing milliseconds since 1970.
        columns: per metric of the schema float64 (D, T); NaN is unknown.
    """

    site_id: str
    schema_digest: bytes
    devices_digest: bytes
    t_ms: Ints
    columns: tuple[Floats, ...]

    @property
    def points(self) -> int:
        """Count of values, unknown ones included."""
        return sum(column.size for column in self.columns)


class _Column(Struct, frozen=True, array_like=True):
    nulls: bytes  # packed bits of D x T, or empty: none unknown
    first_type: str
    first: bytes  # D integers: the first tick
    delta_type: str
    delta: bytes  # (T-1) x D integers, tick by tick


class _Body(Struct, frozen=True, array_like=True):
    version: int
    site_id: SiteName
    schema_digest: Digest
    devices_digest: Digest
    devices: Annotated[int, Meta(ge=1, le=DEVICES_MAX)]
    t_ms: Annotated[tuple[int, ...], Meta(min_length=1, max_length=TICKS_MAX)]
    columns: tuple[_Column, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Body)
_schema_decoder: msgspec.msgpack.Decoder[SchemaItem] = msgspec.msgpack.Decoder(SchemaItem)


def encode_schema_item(item: SchemaItem) -> bytes:
    """Write one record of the ``schema`` stream; its digest is the name that batches use."""
    return _encoder.encode(item)


def decode_schema_item(data: bytes) -> SchemaItem:
    """Read one record of the ``schema`` stream.

    Raises:
        DecodeError: ``malformed``.
    """
    try:
        return _schema_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise DecodeError("malformed", str(exc)) from exc


def encode_batch(batch: ColumnBatch, schema: TelemetrySchema) -> bytes:
    """Write one batch.

    Raises:
        EncodeError: ``shape`` when columns and schema do not fit, ``range`` when a value is
            infinite or too large for its scale.
    """
    devices = _checked_shape(batch, schema)
    body = _Body(
        version=_VERSION,
        site_id=batch.site_id,
        schema_digest=batch.schema_digest,
        devices_digest=batch.devices_digest,
        devices=devices,
        t_ms=tuple(batch.t_ms.tolist()),
        columns=tuple(
            _pack_column(column, metric)
            for column, metric in zip(batch.columns, schema.metrics, strict=True)
        ),
    )
    data = _encoder.encode(body)
    if len(data) > INFLATED_BYTES_MAX:
        raise EncodeError("too_large", f"{len(data)} bytes, at most {INFLATED_BYTES_MAX}")
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data)


def decode_header(data: bytes) -> tuple[bytes, bytes]:
    """Read which schema and device list a batch needs: (schema_digest, devices_digest).

    Raises:
        DecodeError: as ``decode_batch``.
    """
    body = _inflate(data)
    return body.schema_digest, body.devices_digest


def decode_batch(data: bytes, schema: TelemetrySchema) -> ColumnBatch:
    """Read one batch.

    Raises:
        DecodeError: ``too_large``, ``malformed``, ``unknown_version`` or ``shape``.
    """
    body = _inflate(data)
    ticks = len(body.t_ms)
    if len(body.columns) != len(schema.metrics):
        raise DecodeError("shape", "column count differs from the schema", "columns")
    if body.devices * ticks * max(1, len(body.columns)) > POINTS_MAX:
        raise DecodeError("too_large", f"more than {POINTS_MAX} points")
    if any(later <= earlier for earlier, later in zip(body.t_ms, body.t_ms[1:], strict=False)):
        raise DecodeError("malformed", "ticks do not grow", "t_ms")
    try:
        t_ms = np.array(body.t_ms, dtype=np.int64)
    except OverflowError as exc:
        raise DecodeError("malformed", "tick outside 64 bits", "t_ms") from exc
    columns = tuple(
        _unpack_column(column, metric, body.devices, ticks)
        for column, metric in zip(body.columns, schema.metrics, strict=True)
    )
    return ColumnBatch(
        site_id=body.site_id,
        schema_digest=body.schema_digest,
        devices_digest=body.devices_digest,
        t_ms=t_ms,
        columns=columns,
    )


def _checked_shape(batch: ColumnBatch, schema: TelemetrySchema) -> int:
    ticks = len(batch.t_ms)
    if len(batch.columns) != len(schema.metrics) or not batch.columns:
        raise EncodeError("shape", "column count differs from the schema", "columns")
    devices = int(batch.columns[0].shape[0])
    if not 1 <= devices <= DEVICES_MAX or not 1 <= ticks <= TICKS_MAX:
        raise EncodeError("shape", f"{devices} devices x {ticks} ticks")
    if any(column.shape != (devices, ticks) for column in batch.columns):
        raise EncodeError("shape", "columns differ in shape", "columns")
    if ticks > 1 and not bool(np.all(np.diff(batch.t_ms) > 0)):
        raise EncodeError("shape", "ticks do not grow", "t_ms")
    if batch.points > POINTS_MAX:
        raise EncodeError("too_large", f"more than {POINTS_MAX} points")
    return devices


def _pack_column(column: Floats, metric: Metric) -> _Column:
    by_tick = np.ascontiguousarray(column.T)
    unknown = np.isnan(by_tick)
    any_unknown = bool(unknown.any())
    scaled = np.rint(by_tick / metric.scale)
    if any_unknown:
        scaled[unknown] = 0.0
    if not bool(np.all(np.abs(scaled) <= _SCALED_MAX)):
        raise EncodeError("range", "value infinite or too large for its scale", metric.name)
    whole = scaled.astype(np.int64)
    if any_unknown and whole.shape[0] > 1:
        _carry_forward(whole, unknown)
    first_type, first = _narrow(whole[0])
    delta_type, delta = _narrow(np.diff(whole, axis=0))
    return _Column(
        nulls=np.packbits(unknown).tobytes() if any_unknown else b"",
        first_type=first_type,
        first=first,
        delta_type=delta_type,
        delta=delta,
    )


def _carry_forward(whole: Ints, unknown: npt.NDArray[np.bool_]) -> None:
    # An unknown repeats the value before it, so that its two differences are zero and cost nothing.
    for tick in range(1, whole.shape[0]):
        row = unknown[tick]
        whole[tick][row] = whole[tick - 1][row]


def _narrow(values: Ints) -> tuple[str, bytes]:
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for name, dtype in _INT_TYPES.items():
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return name, values.astype(dtype).tobytes()
    raise EncodeError("range", "difference outside 64 bits")


def _inflate(data: bytes) -> _Body:
    try:
        size = zstandard.frame_content_size(data)
    except zstandard.ZstdError as exc:
        raise DecodeError("malformed", "no zstd frame") from exc
    if not 0 < size <= INFLATED_BYTES_MAX:
        raise DecodeError("too_large", f"announces {size} bytes, at most {INFLATED_BYTES_MAX}")
    try:
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
        body = _decoder.decode(plain)
    except (zstandard.ZstdError, msgspec.MsgspecError, ValueError) as exc:
        raise DecodeError("malformed", str(exc)) from exc
    if body.version != _VERSION:
        raise DecodeError("unknown_version", f"version {body.version}", "version")
    return body


def _unpack_column(column: _Column, metric: Metric, devices: int, ticks: int) -> Floats:
    first = _widen(column.first_type, column.first, devices, metric.name)
    whole = np.empty((ticks, devices), dtype=np.int64)
    whole[0] = first
    if ticks > 1:
        delta = _widen(column.delta_type, column.delta, devices * (ticks - 1), metric.name)
        np.cumsum(delta.reshape(ticks - 1, devices), axis=0, out=whole[1:])
        whole[1:] += first
    elif column.delta:
        raise DecodeError("shape", "differences without a second tick", metric.name)
    values = whole.astype(np.float64) * metric.scale
    if column.nulls:
        if len(column.nulls) != (devices * ticks + 7) // 8:
            raise DecodeError("shape", "null bitmap of the wrong size", metric.name)
        bits = np.unpackbits(np.frombuffer(column.nulls, dtype=np.uint8), count=devices * ticks)
        values[bits.reshape(ticks, devices).astype(bool)] = np.nan
    return values.T


def _widen(type_name: str, data: bytes, count: int, field: str) -> Ints:
    dtype = _INT_TYPES.get(type_name)
    if dtype is None:
        raise DecodeError("malformed", f"unknown integer type {type_name!r}", field)
    if len(data) != count * dtype.itemsize:
        raise DecodeError("shape", f"{len(data)} bytes for {count} values", field)
    return np.frombuffer(data, dtype=dtype).astype(np.int64)

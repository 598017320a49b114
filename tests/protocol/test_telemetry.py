import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol import telemetry
from protocol.errors import DecodeError, EncodeError
from protocol.sync import digest_of
from protocol.telemetry import ColumnBatch, DeviceList, Metric, TelemetrySchema

SCHEMA = TelemetrySchema(
    metrics=(
        Metric(name="power_w", scale=1.0),
        Metric(name="hashrate_ths", scale=0.01),
        Metric(name="price_usd_per_mwh", scale=0.01),
    )
)


def batch_of(columns: list[telemetry.Floats]) -> ColumnBatch:
    ticks = columns[0].shape[1]
    return ColumnBatch(
        site_id="lubbock",
        schema_digest=digest_of(telemetry.encode_schema_item(SCHEMA)),
        devices_digest=bytes(16),
        t_ms=np.arange(ticks, dtype=np.int64) * 5_000 + 1_767_000_000_000,
        columns=tuple(columns),
    )


@settings(max_examples=60)
@given(data=st.data())
def test_values_come_back_within_half_a_step_and_unknown_stays_unknown(
    data: st.DataObject,
) -> None:
    shape = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6)))
    values = st.one_of(st.just(float("nan")), st.floats(-1e9, 1e9))
    columns = [data.draw(hnp.arrays(np.float64, shape, elements=values)) for _ in range(3)]
    sent = batch_of(columns)
    received = telemetry.decode_batch(telemetry.encode_batch(sent, SCHEMA), SCHEMA)
    assert received.points == sent.points
    assert np.array_equal(received.t_ms, sent.t_ms)
    for before, after, metric in zip(columns, received.columns, SCHEMA.metrics, strict=True):
        assert np.array_equal(np.isnan(before), np.isnan(after))
        known = ~np.isnan(before)
        error = np.abs(before[known] - after[known])
        assert bool(np.all(error <= metric.scale * 0.5 + np.abs(before[known]) * 1e-12))


def test_an_infinite_value_is_refused_by_the_name_of_its_metric() -> None:
    columns = [np.zeros((2, 2)) for _ in range(3)]
    columns[1][0, 0] = np.inf
    with pytest.raises(EncodeError, match="hashrate_ths"):
        telemetry.encode_batch(batch_of(columns), SCHEMA)


def test_ticks_must_grow() -> None:
    batch = batch_of([np.zeros((2, 2)) for _ in range(3)])
    still = msgspec.structs.replace(batch, t_ms=np.array([5, 5], dtype=np.int64))
    with pytest.raises(EncodeError, match="t_ms"):
        telemetry.encode_batch(still, SCHEMA)


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_end_in_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        telemetry.decode_batch(data, SCHEMA)


@given(data=st.data())
def test_a_damaged_body_ends_in_a_batch_or_a_decode_error(data: st.DataObject) -> None:
    encoded = telemetry.encode_batch(batch_of([np.ones((3, 2)) for _ in range(3)]), SCHEMA)
    plain = bytearray(zstandard.ZstdDecompressor().decompress(encoded))
    for _ in range(data.draw(st.integers(1, 4))):
        plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    damaged = zstandard.ZstdCompressor().compress(bytes(plain))
    try:
        batch = telemetry.decode_batch(damaged, SCHEMA)
    except DecodeError as exc:
        assert exc.code in {"malformed", "shape", "too_large", "unknown_version"}
    else:
        assert len(batch.columns) == len(SCHEMA.metrics)


def test_a_bomb_is_refused_by_what_it_announces() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(telemetry.INFLATED_BYTES_MAX + 1))
    with pytest.raises(DecodeError, match="too_large"):
        telemetry.decode_batch(bomb, SCHEMA)


def test_schema_items_come_back_and_garbage_does_not() -> None:
    devices = DeviceList(device_ids=("s21-1", "s21-2"))
    assert telemetry.decode_schema_item(telemetry.encode_schema_item(SCHEMA)) == SCHEMA
    assert telemetry.decode_schema_item(telemetry.encode_schema_item(devices)) == devices
    with pytest.raises(DecodeError):
        telemetry.decode_schema_item(b"\x01")


def test_the_header_names_what_is_needed_to_read_the_rest() -> None:
    batch = batch_of([np.zeros((1, 1)) for _ in range(3)])
    encoded = telemetry.encode_batch(batch, SCHEMA)
    assert telemetry.decode_header(encoded) == (batch.schema_digest, batch.devices_digest)


def test_a_schema_names_each_metric_once_whatever_the_case() -> None:
    twice = {"type": "telemetry_schema", "metrics": [{"name": n, "scale": 1.0} for n in ("a", "A")]}
    with pytest.raises(DecodeError) as caught:
        telemetry.decode_schema_item(msgspec.msgpack.encode(twice))
    assert caught.value.code == "malformed"

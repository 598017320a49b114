import struct
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codec
from protocol.errors import DecodeError, EncodeError
from protocol.lease import Lease, LeaseState, WorkloadSpec
from protocol.market import GpuRate, MarketTick
from protocol.sync import Ack, Record, Stream, UpBatch, digest_of
from protocol.units import INT_MAX
from protocol.usage import UsageRecord

AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
IDENT = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
MESSAGES = [value for value in vars(codec).values() if isinstance(value, codec.Message)]


def usage_record(**changes: object) -> UsageRecord:
    fields: dict[str, object] = {
        "usage_id": "u1",
        "site_id": "lubbock",
        "lease_id": "w-1.1",
        "workload_id": "w-1",
        "attempt": 1,
        "device_id": "h100-1",
        "device_class": "H100",
        "instance_id": "i-1",
        "interval_no": 0,
        "start": AT,
        "end": AT + timedelta(seconds=1),
        "active_ms": 1_000,
        "energy_j": 900,
    }
    return UsageRecord(**(fields | changes))  # type: ignore[arg-type]


def lease(**changes: object) -> Lease:
    fields: dict[str, object] = {
        "hub_epoch": 1,
        "generation": 1,
        "lease_id": "w-1.1",
        "workload_id": "w-1",
        "attempt": 1,
        "site_id": "lubbock",
        "state": LeaseState.RUN,
        "device_class": "H100",
        "count": 2,
        "priority": 3,
        "spec": WorkloadSpec(),
        "issued_at": AT,
    }
    return Lease(**(fields | changes))  # type: ignore[arg-type]


@given(
    seqs=st.lists(st.integers(1, INT_MAX), max_size=5),
    body=st.binary(max_size=200),
    stream=st.sampled_from(list(Stream)),
)
def test_up_batch_comes_back_as_it_was_sent(seqs: list[int], body: bytes, stream: Stream) -> None:
    batch = UpBatch(
        version=1,
        site_id="lubbock",
        store_id="s-1",
        stream=stream,
        records=tuple(Record(seq=seq, digest=digest_of(body), body=body) for seq in seqs),
    )
    assert codec.UP_BATCH.decode(codec.encode(batch)) == batch


@given(start=TIMES, length_ms=st.integers(0, 60_000), active=st.integers(0, 60_000), ident=IDENT)
def test_usage_comes_back_as_it_was_sent(
    start: datetime, length_ms: int, active: int, ident: str
) -> None:
    record = usage_record(
        usage_id=ident,
        start=start,
        end=start + timedelta(milliseconds=length_ms),
        active_ms=active,
    )
    assert codec.USAGE_ITEM.decode(codec.encode(record)) == record


@given(price=st.decimals(0, 10**9, places=6))
def test_lease_keeps_the_price_to_the_last_place(price: Decimal) -> None:
    sent = lease(price_usd_per_h=price)
    received = codec.LEASE.decode(codec.encode(sent))
    assert received.price_usd_per_h == price
    assert received.version == (1, 1)


@given(data=st.binary(max_size=400))
@pytest.mark.parametrize("message", MESSAGES)
def test_arbitrary_bytes_end_in_a_value_or_a_decode_error(
    message: codec.Message[object], data: bytes
) -> None:
    try:
        value = message.decode(data)
    except DecodeError as exc:
        assert exc.code in {"empty", "malformed", "too_large"}
    else:
        assert value is not None


@given(data=st.data())
def test_a_damaged_message_never_escapes_as_another_error(data: st.DataObject) -> None:
    good = bytearray(codec.encode(usage_record()))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = codec.USAGE_ITEM.decode(bytes(good))
    except DecodeError as exc:
        assert exc.code == "malformed"
    else:
        assert codec.USAGE_ITEM.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("price_usd_per_mwh", float("nan")),
        ("price_usd_per_mwh", float("inf")),
        ("price_usd_per_mwh", 1e9),
        ("btc_price_usd", -1.0),
        ("difficulty", 0.0),
    ],
)
def test_impossible_market_values_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        MarketTick(feed="csv", measured_at=AT, source_at=AT, **{field: value})  # type: ignore[arg-type]


def test_a_negative_energy_price_is_a_price() -> None:
    tick = MarketTick(feed="csv", measured_at=AT, source_at=AT, price_usd_per_mwh=-37.65)
    assert codec.MARKET_TICK.decode(codec.encode(tick)) == tick


def test_nan_inside_a_gpu_rate_is_refused() -> None:
    rate = GpuRate(device_class="H100", serve_usd_per_h=float("nan"), mine_usd_per_h=0.0)
    with pytest.raises(ValueError, match="serve_usd_per_h"):
        MarketTick(feed="csv", measured_at=AT, source_at=AT, gpu_rates=(rate,))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "0.1234567891"])
def test_money_that_is_no_money_is_refused_by_name(text: str) -> None:
    plain = msgspec.to_builtins(lease()) | {"type": "lease", "price_usd_per_h": text}
    with pytest.raises(DecodeError, match="price_usd_per_h"):
        codec.LEASE.decode(msgspec.msgpack.encode(plain))


@pytest.mark.parametrize(
    "at", [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5)))]
)
def test_a_time_that_is_not_utc_is_refused_by_name(at: datetime) -> None:
    with pytest.raises(ValueError, match="issued_at"):
        lease(issued_at=at)


def test_an_interval_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match="end"):
        usage_record(end=AT - timedelta(seconds=1))


def test_size_limits_hold_on_both_sides() -> None:
    with pytest.raises(DecodeError, match="too_large"):
        codec.UP_BATCH.decode(bytes(codec.PACKET_BYTES_MAX + 1))
    big = Record(seq=1, digest=bytes(16), body=bytes(codec.PACKET_BYTES_MAX))
    with pytest.raises(EncodeError, match="too_large"):
        codec.encode(big)


def test_golden_bytes_of_an_ack() -> None:
    # Written down by hand from the MessagePack specification: map of nine, fields in order.
    ack = Ack(hub_epoch=1, store_id="s", stream=Stream.USAGE, wm=7, hub_time=AT, credit=4)
    seconds = int(AT.timestamp())
    stamp = b"\xd7\xff" + struct.pack(">Q", (678_000_000 << 34) | seconds)
    golden = (
        b"\x89"
        b"\xa4type\xa3ack"
        b"\xa9hub_epoch\x01"
        b"\xa8store_id\xa1s"
        b"\xa6stream\xa5usage"
        b"\xa2wm\x07"
        b"\xa8hub_time" + stamp + b"\xa6credit\x04"
        b"\xa6ranges\x90"
        b"\xa4nack\x90"
    )
    assert codec.encode(ack) == golden
    assert codec.DOWN_ACK.decode(golden) == ack


@given(bodies=st.lists(st.binary(max_size=50), max_size=8), cuts=st.lists(st.integers(1, 20)))
def test_frames_survive_any_cutting_of_the_stream(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(codec.frame(body) for body in bodies)
    deframer, received, offset = codec.Deframer(), [], 0
    for size in [*cuts, len(stream) + 1]:
        received += list(deframer.feed(stream[offset : offset + size]))
        offset += size
    assert received == bodies


def test_an_endless_frame_is_refused_before_it_is_read() -> None:
    with pytest.raises(DecodeError, match="too_large"):
        list(codec.Deframer().feed(b"\xff\xff\xff\xff"))


@pytest.mark.parametrize("conn_no", [0, INT_MAX + 1, 2**64 - 1])
def test_a_number_that_no_store_holds_is_refused_where_it_comes_in(conn_no: int) -> None:
    told = {"type": "death", "site_id": "lubbock", "store_id": "s-1", "conn_no": conn_no}
    with pytest.raises(DecodeError) as caught:
        codec.SITE_STATE.decode(msgspec.msgpack.encode(told))
    assert caught.value.field == "$.conn_no"


@pytest.mark.parametrize("field", ["site_id", "store_id"])
def test_a_name_ends_before_the_end_of_its_line(field: str) -> None:
    told = {"type": "death", "site_id": "lubbock", "store_id": "s-1", "conn_no": 1}
    assert codec.SITE_STATE.decode(msgspec.msgpack.encode(told)).site_id == "lubbock"
    with pytest.raises(DecodeError) as caught:
        codec.SITE_STATE.decode(msgspec.msgpack.encode({**told, field: "a\n"}))
    assert caught.value.field == f"$.{field}"

"""The pipe's codec: what goes in comes out, wherever it is cut, and nothing else gets through."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridges.nvml.pipe import FROM_CHILD, MESSAGE_BYTES_MAX, TO_CHILD, Unpacker, pack
from firmware_bridges.nvml.samples import (
    AskProcesses,
    Beat,
    EventKind,
    Failed,
    FaultKind,
    FromChild,
    GpuEvent,
    GpuFault,
    GpuInfo,
    GpuProcess,
    GpuSample,
    Hello,
    PowerSource,
    Processes,
    Worker,
)
from protocol.codec import Message, frame
from protocol.errors import DecodeError

instants = st.integers(0, 2**63 - 1)
counts = st.integers(0, 2**63 - 1)
names = st.text(max_size=128)
maybe = st.none() | counts
infos = st.builds(GpuInfo, uuid=names, index=st.integers(0, 255), model=st.none() | names)
samples = st.builds(
    GpuSample,
    info=infos,
    began_ns=instants,
    at_ns=instants,
    power_w=st.none() | st.floats(allow_nan=False),
    power_source=st.none() | st.sampled_from(PowerSource),
    energy_mj=maybe,
    event_reasons=maybe,
    remap_pending=st.none() | st.booleans(),
    failed_calls=st.lists(names, max_size=4).map(tuple),
)
faults = st.builds(
    GpuFault,
    index=st.integers(0, 255),
    uuid=st.none() | names,
    at_ns=instants,
    kind=st.sampled_from(FaultKind),
    detail=st.text(max_size=500),
)
events = st.builds(
    GpuEvent,
    seq=counts,
    at_ns=instants,
    kind=st.sampled_from(EventKind),
    type_bits=counts,
    number=counts,
    uuid=st.none() | names,
    gpu_instance=st.none() | st.integers(0, 2**32),
    compute_instance=st.none() | st.integers(0, 2**32),
)
workers = st.builds(Worker, st.integers(0, 255), st.none() | names, st.none() | names, maybe)
beats = st.builds(
    Beat, seq=counts, at_ns=instants, workers=st.lists(workers, max_size=16).map(tuple)
)
processes = st.builds(GpuProcess, st.integers(0, 2**32), maybe, maybe)
answers = st.builds(
    Processes,
    request=counts,
    uuid=names,
    at_ns=instants,
    processes=st.none() | st.lists(processes, max_size=8).map(tuple),
    detail=st.text(max_size=500),
)
messages = st.one_of(
    samples,
    faults,
    events,
    beats,
    answers,
    st.builds(Hello, pid=counts, driver=st.none() | names, gpus=st.integers(0, 255)),
    st.builds(Failed, code=st.integers(), detail=st.text(max_size=500)).filter(
        lambda failed: -(2**63) <= failed.code < 2**63
    ),
)


@settings(max_examples=40)
@given(st.lists(messages, max_size=4), st.data())
def test_what_is_packed_is_unpacked_wherever_it_is_cut(
    sent: list[FromChild], data: st.DataObject
) -> None:
    stream = b"".join(pack(message) for message in sent)
    unpacker = Unpacker(FROM_CHILD)
    got: list[FromChild] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += unpacker.feed(stream[:size])
        stream = stream[size:]
    assert got == sent


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_bytes_of_nobody_give_messages_or_an_error_and_nothing_else(pieces: list[bytes]) -> None:
    unpacker = Unpacker(FROM_CHILD)
    try:
        for piece in pieces:
            for message in unpacker.feed(piece):
                assert pack(message)
    except DecodeError:
        pass


def read_all(kind: Message[Any], stream: bytes) -> list[Any]:
    return list(Unpacker(kind).feed(stream))


@given(st.binary(max_size=200))
def test_a_whole_frame_of_anything_is_a_message_or_an_error(body: bytes) -> None:
    for kind in (FROM_CHILD, TO_CHILD):
        try:
            found = read_all(kind, frame(body))
        except DecodeError:
            continue
        assert len(found) == 1


@given(samples, st.integers(0), st.integers(0, 255))
def test_a_message_with_one_wrong_byte_is_read_or_refused(
    sample: GpuSample, place: int, byte: int
) -> None:
    stream = bytearray(pack(sample))
    # the length stays right: a wrong one is the case of bytes of nobody
    stream[4 + place % (len(stream) - 4)] = byte
    with contextlib.suppress(DecodeError):
        assert len(list(Unpacker(FROM_CHILD).feed(bytes(stream)))) == 1


def test_a_frame_over_the_limit_is_refused() -> None:
    with pytest.raises(DecodeError, match="too_large"):
        list(Unpacker(FROM_CHILD).feed(frame(bytes(MESSAGE_BYTES_MAX + 1))))


def test_a_request_is_no_message_of_a_child() -> None:
    request = pack(AskProcesses(request=1, uuid="GPU-1"))
    assert list(Unpacker(TO_CHILD).feed(request)) == [AskProcesses(request=1, uuid="GPU-1")]
    with pytest.raises(DecodeError):
        list(Unpacker(FROM_CHILD).feed(request))


def test_the_longest_messages_fit() -> None:
    many = tuple(GpuProcess(2**32, 2**63, 2**32) for _ in range(512))
    full = Processes(request=2**63, uuid="u" * 128, at_ns=2**63, processes=many, detail="d" * 500)
    assert list(Unpacker(FROM_CHILD).feed(pack(full))) == [full]
    busy = tuple(Worker(255, "u" * 128, "c" * 128, 2**63) for _ in range(16))
    beat = Beat(seq=2**63, at_ns=2**63, workers=busy)
    assert list(Unpacker(FROM_CHILD).feed(pack(beat))) == [beat]

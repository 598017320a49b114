"""The bench's miner without a GPU: kernels compiled as C++, stand-ins for CuPy and driver."""

import ctypes
import itertools
import struct
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.gpu import cuda_miner
from bench.gpu.cuda_miner import CudaMiner, midstate_of
from bench.gpu.cuda_source import SOURCE
from bench.gpu.wire import Gate
from bench.gpu.workload import GENESIS_HEADER, GENESIS_NONCE, Options, hash_of, known_digest
from tests.bench.gpu.fake_cupy import FakeCupy
from tests.fakes.cuda_host import Array, HostKernel, compiler, kernels

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
NONE = np.uint64(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HostKernel]:
    return kernels(SOURCE.read_text(), tmp_path_factory.mktemp("kernel"))


@pytest.fixture
def gate() -> Iterator[Gate]:
    page = Gate.make()
    yield page
    page.close()


def words_of(header: bytes) -> tuple[Array, Array]:
    tail = np.array(struct.unpack(">3I", header[64:76]), dtype=np.uint32)
    return Array(np.array(midstate_of(header), dtype=np.uint32)), Array(tail)


def top_word(digest: bytes) -> int:
    """Give the highest word of a hash as Bitcoin reads it: the last four bytes, little-endian."""
    return int.from_bytes(digest[-4:], "little")


# --- the kernels against hashlib ----------------------------------------------------------------


def test_every_digest_of_random_headers_is_that_of_hashlib(made: dict[str, HostKernel]) -> None:
    chance = np.random.default_rng(1)
    for _ in range(20):
        header = chance.bytes(80)
        first, count = int(chance.integers(0, 1 << 32)), int(chance.integers(1, 600))
        out = Array(np.zeros(8 * count, dtype=np.uint32))
        blocks = -(-count // 256)
        arguments = (*words_of(header), np.uint32(first), np.uint32(count), out)
        made["digests"]((blocks,), (256,), arguments)
        told = out.values.astype(">u4").tobytes()
        nonces = [(first + at) & 0xFFFFFFFF for at in range(count)]
        assert told == b"".join(hash_of(nonce, header) for nonce in nonces)


@pytest.mark.parametrize("first", [0, 12_345, (1 << 32) - 700])
def test_the_search_finds_exactly_what_meets_the_limit(
    made: dict[str, HostKernel], first: int
) -> None:
    header = np.random.default_rng(first).bytes(80)
    limit, threads, each = (1 << 32) // 200, 64, 16
    found = Array(np.zeros(16, dtype=np.uint32))
    arguments = (
        *words_of(header), np.uint32(first), np.uint32(each), np.uint32(limit), found, NONE,
    )  # fmt: skip
    made["search"]((2,), (threads // 2,), arguments)
    nonces = [(first + at) & 0xFFFFFFFF for at in range(threads * each)]
    right = [nonce for nonce in nonces if top_word(hash_of(nonce, header)) <= limit]
    assert 0 < len(right) < 16
    assert found.values[0] == len(right)
    assert sorted(map(int, found.values[1 : 1 + len(right)])) == sorted(right)


def test_more_than_there_is_room_for_is_counted_and_nothing_else_is_written(
    made: dict[str, HostKernel],
) -> None:
    found = Array(np.zeros(20, dtype=np.uint32))
    every = np.uint32(0xFFFFFFFF)
    arguments = (*words_of(GENESIS_HEADER), np.uint32(0), np.uint32(4), every, found, NONE)
    made["search"]((1,), (32,), arguments)
    assert found.values[0] == 4 * 32
    assert not found.values[16:].any()


def test_a_stop_word_ends_a_search_and_one_that_is_clear_does_not(
    made: dict[str, HostKernel],
) -> None:
    for stop, tried in ((1, 0), (0, 4 * 32)):
        word = np.array([stop], dtype=np.int32)
        found = Array(np.zeros(16, dtype=np.uint32))
        address = np.uint64(word.ctypes.data)
        every = np.uint32(0xFFFFFFFF)
        arguments = (*words_of(GENESIS_HEADER), np.uint32(0), np.uint32(4), every, found, address)
        made["search"]((1,), (32,), arguments)
        assert found.values[0] == tried


# --- the host's side -----------------------------------------------------------------------------


@pytest.fixture
def cupy(made: dict[str, HostKernel], monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    fake = FakeCupy(made)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    # A CPU takes a GPU's launch of milliseconds for minutes.
    monkeypatch.setattr(cuda_miner, "_BLOCKS_PER_SM", 2)
    monkeypatch.setattr(cuda_miner, "_CHECKED", 2_000)
    return fake


def test_it_proves_its_kernels_fits_a_launch_and_gives_the_known_digest(
    cupy: FakeCupy, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every launch takes 1/128 s by this clock: half of that is wanted, three times over.
    ticks = itertools.count(step=1 / 128)
    monkeypatch.setattr("bench.gpu.cuda_miner.time.perf_counter", lambda: next(ticks))
    miner = CudaMiner(Options(launch_ms=500 / 128), gate)
    facts = miner.prepare()
    assert facts["card"] == "stand-in"
    assert miner.first() == known_digest()
    first, count = cupy.launches[0]
    assert first <= GENESIS_NONCE < first + count  # the launch that was to find it
    assert facts["nonces_per_launch"] == 512 * 64 // 8
    assert facts["launch_took_ms"] == round(1e3 / 128, 3)


def test_two_launches_are_under_way_and_the_oldest_is_waited_for(
    cupy: FakeCupy, gate: Gate
) -> None:
    miner = CudaMiner(Options(launch_ms=0.01), gate)
    miner.prepare()
    cupy.log.clear()
    cupy.launches.clear()
    assert [miner.unit() for _ in range(3)] == [512, 512, 512]
    # A unit waits last: told to stop while it waits, it is followed by no third launch.
    assert cupy.log == ["search", "record", *["search", "record", "wait"] * 2]
    starts = [first for first, _count in cupy.launches]
    assert [(b - a) % (1 << 32) for a, b in itertools.pairwise(starts)] == [512, 512]
    miner.drain()
    cupy.log.clear()
    miner.unit()
    assert "wait" not in cupy.log  # nothing of before is under way any more


def test_a_kernel_that_mines_wrongly_is_not_taken(cupy: FakeCupy, gate: Gate) -> None:
    whole = cupy.RawModule

    def blind(code: str) -> Any:  # noqa: ANN401 - as above
        right = whole(code).get_function
        return SimpleNamespace(
            get_function=lambda name: right(name) if name == "digests" else lambda *_words: None
        )

    cupy.RawModule = blind
    with pytest.raises(ValueError, match=r"found \[\], of which \[\] are wrong"):
        CudaMiner(Options(), gate).prepare()


def test_the_stop_word_is_the_gates_and_ends_the_launches(
    cupy: FakeCupy, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Under unified addressing the host's address is the device's: so it is here.
    def mapped(out: Any, host: ctypes.c_void_p, flags: ctypes.c_uint) -> int:  # noqa: ANN401
        assert flags.value == 0
        out._obj.value = host.value
        return 0

    driver = SimpleNamespace(cuMemHostGetDevicePointer_v2=mapped)
    monkeypatch.setattr("bench.gpu.cuda_miner.ctypes.CDLL", lambda _name: driver)
    gate.open("mine")
    miner = CudaMiner(Options(launch_ms=0.01, stop_word=True), gate)
    miner.prepare()
    ((address, size, flags),) = cupy.registered
    assert (size, flags) == (len(gate.page), 2)  # cudaHostRegisterMapped
    assert ctypes.c_int32.from_address(address).value == 0
    monkeypatch.setattr(cuda_miner, "_LIMIT", 0xFFFFFFFF)
    miner._found.fill(0)
    miner.unit()
    assert miner._found.values[0] == 512
    gate.shut("mine")
    assert ctypes.c_int32.from_address(address).value == 1
    miner.unit()
    assert miner._found.values[0] == 512  # nothing was hashed

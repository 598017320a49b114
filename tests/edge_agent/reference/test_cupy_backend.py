"""The GPU backend's kernel compiled as C++, its host code against a stand-in for CuPy."""

import sys
from types import SimpleNamespace

import pytest

from edge_agent.reference.backend import Work, self_check
from edge_agent.reference.cpu_backend import CpuBackend
from edge_agent.reference.cuda_kernel import FOUND_MAX, KERNEL_NAME, kernel_source
from edge_agent.reference.cupy_backend import CupyBackend
from edge_agent.reference.errors import BackendError
from edge_agent.reference.worker import make_backend
from tests.edge_agent.reference.fake_cupy import make_cupy
from tests.fakes.cuda_host import HostKernel, compiler, kernels

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
PREFIX = bytes(range(76))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> HostKernel:
    return kernels(kernel_source(), tmp_path_factory.mktemp("kernel"))[KERNEL_NAME]


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, kernel: HostKernel) -> SimpleNamespace:
    fake = make_cupy(kernel)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


@needs_compiler
@pytest.mark.usefixtures("cupy")
def test_the_kernel_is_held_to_hashlib() -> None:
    backend = make_backend("auto")
    assert backend.name == "cupy stand-in"
    assert self_check(backend) == 2_000 + 8 * 256


@needs_compiler
@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("bits", [0, 200, 247, 252, 256])
def test_it_finds_what_the_cpu_finds(bits: int) -> None:
    work = Work(prefix=PREFIX, target=(1 << bits) - 1)
    for first, count in ((0, 1), (2**32 - 300, 300), (77, 700)):
        assert CupyBackend().scan(work, first, count) == CpuBackend().scan(work, first, count)


@needs_compiler
def test_launches_cover_a_range_and_never_find_more_than_there_is_room_for(
    cupy: SimpleNamespace,
) -> None:
    work = Work(prefix=PREFIX, target=(1 << 250) - 1)
    batches = list(CupyBackend().run(work, 1_000, 60_000, lambda: False))
    assert sum(batch.hashes for batch in batches) == sum(cupy.launches) == 59_000
    assert batches[-1].upto == 60_000
    assert max(cupy.launches) <= FOUND_MAX // 4 * 64
    found = tuple(nonce for batch in batches for nonce in batch.found)
    assert found == CpuBackend().scan(work, 1_000, 59_000)


@needs_compiler
def test_launches_are_sized_by_their_time(cupy: SimpleNamespace) -> None:
    # The stand-in says that every launch takes 4 ms; half of that is wanted.
    work = Work(prefix=PREFIX, target=0)
    backend = CupyBackend(launch_ms=2.0)
    backend._nonces = 1 << 17
    list(backend.run(work, 0, 1 << 18, lambda: False))
    # Two are under way before the first has told its time.
    assert cupy.launches == [1 << 17, 1 << 17]
    assert backend._nonces == 1 << 16


@needs_compiler
def test_once_wanted_elsewhere_nothing_goes_on_and_the_rest_is_left(cupy: SimpleNamespace) -> None:
    work = Work(prefix=PREFIX, target=(1 << 250) - 1)
    asked = iter([False, True, True])
    backend = CupyBackend()
    batches = list(backend.run(work, 0, 60_000, lambda: next(asked)))
    assert len(batches) == 1
    assert batches[0].upto == batches[0].hashes == cupy.launches[0]
    assert backend._stop[0] == 0  # the next launch runs


@needs_compiler
@pytest.mark.usefixtures("cupy")
def test_a_stopped_launch_is_not_taken_for_a_whole_one() -> None:
    backend = CupyBackend()
    backend._stop[0] = 1
    with pytest.raises(BackendError, match="0 of 10 nonces"):
        backend.scan(Work(prefix=PREFIX, target=0), 0, 10)


def test_without_cupy_the_cpu_mines_unless_a_gpu_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert make_backend("auto").name == "cpu"
    with pytest.raises(BackendError, match="not installed"):
        make_backend("cupy")


def test_without_a_device_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> dict[str, bytes]:
        raise RuntimeError("cudaErrorNoDevice")

    fake = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceProperties=fail)))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    with pytest.raises(BackendError, match="cudaErrorNoDevice"):
        CupyBackend()

"""What is missing is said before anything is measured; what is there is recorded."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import gpu_switch
from bench.gpu import probe
from bench.gpu.plans import GRAPH, PLANS, Plan, Tax
from bench.gpu.probe import Found, look, with_cupy, with_torch
from tests.edge_agent.workloads.switching.fake_cuda import FakeCuda, build
from tests.fakes import nvml as fake_nvml

GB = 1_000_000_000


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    build(folder)
    fake_nvml.build(folder)
    return folder


@pytest.fixture
def cuda(libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Give a driver of CUDA and NVML with 4 cards, of which CUDA shows the third alone."""
    fake = FakeCuda(tmp_path)
    fake.show(1)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))
    monkeypatch.setenv("HCP_FAKE_CUDA", str(fake.path))
    monkeypatch.setenv("HCP_FAKE_CUDA_CARD", "2")
    return fake


@pytest.fixture
def cards(
    cuda: FakeCuda, libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[fake_nvml.FakeNvml]:
    assert cuda.inits == 0
    with fake_nvml.cards(libraries / fake_nvml.SONAME, tmp_path, 4) as fake:
        monkeypatch.setenv("HCP_NVML_STATE", str(fake.path))
        yield fake


def test_a_missing_package_is_named_with_the_python_that_lacks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name != "numpy" else 1)
    assert look().missing == f"not installed for {sys.executable}: torch, cupy"


def test_without_a_driver_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "no driver: " in str(probe.driver(str(tmp_path / "libcuda.so.1")).missing)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: "there")
    monkeypatch.setattr(probe, "_ask", lambda part: Found(missing=part, facts={part: 1}))
    found = look()
    assert found.missing == "driver"  # nothing is asked beyond it
    assert found.facts == {"python": sys.executable, "driver": 1}


def test_the_card_that_cuda_shows_is_the_one_that_nvml_tells_of(
    cards: fake_nvml.FakeNvml,
) -> None:
    cards.gpu(2).name = b"NVIDIA H200"
    cards.gpu(2).memory_total = 143_771 << 20
    found = probe._ask("driver")
    assert found.missing is None
    assert found.facts["driver"] == "580.159.03"
    assert found.facts["card"] == "NVIDIA H200"
    assert found.facts["vram_mib"] == 143_771
    assert found.facts["cuda_driver_api"] == 12_080
    assert found.facts["checkpoint_api"] is True
    assert found.facts["kernel"] == os.uname().release
    assert found.facts["mig"] is False


@pytest.mark.usefixtures("cards")
def test_a_card_that_nvml_does_not_know_costs_its_facts_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HCP_FAKE_CUDA_CARD", "9")
    found = probe._ask("driver")
    assert found.missing is None
    assert found.facts["driver"] == "580.159.03"
    assert "card" not in found.facts


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (100, "gave 100: no GPU"),
        (802, "fabric manager"),
        (803, "differ in version"),
        (7, "CUresult"),
    ],
)
def test_a_driver_that_does_not_start_says_why(cuda: FakeCuda, code: int, words: str) -> None:
    cuda.refuse_init(code)
    assert words in str(probe._ask("driver").missing)


def test_no_device_and_a_library_that_is_no_driver_are_told(cuda: FakeCuda) -> None:
    cuda.show(0)
    assert "cuDeviceGet gave 101: no such GPU" in str(probe._ask("driver").missing)
    import ctypes.util

    other = ctypes.util.find_library("m") or "libm.so.6"
    assert probe.driver(other).missing == "no driver: it has no cuInit"


def test_a_part_that_dies_or_is_silent_is_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "IndexError" in str(_with_code(monkeypatch, "raise IndexError('x')").missing)
    assert "ended with 7" in str(_with_code(monkeypatch, "import os; os._exit(7)").missing)
    monkeypatch.setattr(probe, "PROBE_S", 0.5)
    assert "no answer in 0.5 s" in str(
        _with_code(monkeypatch, "import time; time.sleep(60)").missing
    )


def _with_code(monkeypatch: pytest.MonkeyPatch, code: str) -> Found:
    real = probe.subprocess.run  # type: ignore[attr-defined]  # the module's own import

    def run(_command: list[str], **options: Any) -> Any:  # noqa: ANN401 - as subprocess
        return real([sys.executable, "-c", code], **options)

    with monkeypatch.context() as patched:
        patched.setattr("bench.gpu.probe.subprocess.run", run)
        return probe._ask("torch")


# --- torch and cupy as they show themselves ----------------------------------------------------


def torch_like(**changes: Any) -> Any:  # noqa: ANN401 - stands in for a module
    class Number:
        def __add__(self, _other: "Number") -> "Number":
            return self

        def sum(self) -> "Number":
            return self

        def item(self) -> float:
            return float(changes.get("total", 16.0))

    def ones(*_words: object, **_options: object) -> Number:
        if "fails" in changes:
            raise RuntimeError(changes["fails"])
        return Number()

    cuda = SimpleNamespace(
        is_available=lambda: changes.get("available", True),
        mem_get_info=lambda _device: (70 * GB, 80 * GB),
        get_device_name=lambda _device: "NVIDIA H100",
    )
    version = SimpleNamespace(cuda=changes.get("cuda", "13.0"))
    return SimpleNamespace(
        __version__="2.11.0", version=version, cuda=cuda, ones=ones, float16="half"
    )


def test_torch_that_computes_tells_how_much_is_free() -> None:
    found = with_torch(torch_like())
    assert (found.missing, found.free_bytes) == (None, 70 * GB)
    assert found.facts["torch_cuda"] == "13.0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cuda": None}, "built without CUDA"),
        ({"available": False}, "torch 2.11.0 (CUDA 13.0) finds no GPU it can use"),
        ({"fails": "CUDA error: no kernel image\n is available"}, "no kernel image is available"),
        ({"total": 15.0}, "adds wrongly"),
    ],
)
def test_torch_that_does_not_compute_says_why(changes: dict[str, Any], words: str) -> None:
    assert words in str(with_torch(torch_like(**changes)).missing)


def test_cupy_compiles_the_kernel_or_says_why() -> None:
    asked: list[str] = []

    def module(code: str) -> Any:  # noqa: ANN401 - as above
        assert "void search(" in code
        return SimpleNamespace(get_function=asked.append)

    runtime = SimpleNamespace(runtimeGetVersion=lambda: 13_000, getDeviceCount=lambda: 1)
    cupy = SimpleNamespace(
        __version__="14.2.0", cuda=SimpleNamespace(runtime=runtime), RawModule=module
    )
    assert with_cupy(cupy).missing is None
    assert asked == ["search"]

    def insufficient() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    runtime.getDeviceCount = insufficient
    assert with_cupy(cupy).missing == "cupy: RuntimeError: cudaErrorInsufficientDriver"


def test_the_real_torch_of_this_machine_is_asked() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    found = with_torch(torch)
    if torch.version.cuda is None or not torch.cuda.is_available():
        assert found.missing is not None
    assert found.facts["torch"] == str(torch.__version__)


def test_the_real_cupy_of_this_machine_is_asked() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    found = with_cupy(importlib.import_module("cupy"))
    assert found.facts["cuda_of_cupy"] > 11_000


# --- memory ------------------------------------------------------------------------------------


def named(name: str) -> Plan:
    return next(one for one in PLANS if one.name == name and isinstance(one, Plan))


def test_a_plan_that_does_not_fit_is_left_out_and_says_what_it_needs() -> None:
    # 13.5 GB of weights (LLaMA 7B), two contexts and what they need beside it.
    assert 16 * GB < GRAPH.device_bytes < 18 * GB
    small = Found(free_bytes=10 * GB)
    assert "MiB of the card, 9536 are free" in str(gpu_switch.lacking(GRAPH, small, None))
    assert gpu_switch.lacking(named("swap 4 GB"), small, None) is None
    assert gpu_switch.lacking(Tax(plan=GRAPH), small, None) is not None
    assert gpu_switch.lacking(GRAPH, Found(), None) is None
    # PyTorch rounds pinned memory up to a power of two: 13.5 GB are 16 GiB.
    assert named("swap 14 GB").host_bytes == (16 << 30) + (4 << 30)
    told = gpu_switch.lacking(named("swap 14 GB"), Found(), 8 * GB)
    assert "of the host, 7629 are free" in str(told)


@pytest.mark.parametrize(("mode", "fits"), [(0, True), (2, False), (3, False), (None, True)])
def test_a_card_that_takes_one_process_is_not_measured(mode: int | None, *, fits: bool) -> None:
    machine = Found(free_bytes=80 * GB, facts={} if mode is None else {"compute_mode": mode})
    told = gpu_switch.lacking(GRAPH, machine, None)
    assert (told is None) is fits
    assert told is None or "compute mode" in told


def test_the_host_says_what_it_could_hand_out() -> None:
    free = gpu_switch.host_free_bytes()
    assert free is not None
    assert free > 1 << 20


def test_figures_that_lack_something_carry_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Found(free_bytes=GB, facts={"card": "small"})
    monkeypatch.setattr(gpu_switch, "look", lambda: found)
    figures = list(gpu_switch.run())
    assert {figure.ok for figure in figures} == {None}
    assert {figure.conditions["gpu"]["card"] for figure in figures} == {"small"}
    assert "MiB of the card" in figures[0].conditions["test pending"]

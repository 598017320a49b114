"""The shim of libnvidia-ml, built once for a run, and fake cards behind the real pynvml."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_bridges.nvml.child import boottime_ns
from firmware_bridges.nvml.library import Nvml
from tests.fakes.nvml import FakeNvml, build, cards, compiler


def built(folder: Path, *, old_driver: bool) -> Path:
    if compiler() is None:
        pytest.skip("no C compiler for tests/fakes/nvml.c: apt-get install -y gcc")
    return build(folder, old_driver=old_driver)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library of a new driver."""
    return built(tmp_path_factory.mktemp("nvml"), old_driver=False)


@pytest.fixture(scope="session")
def old_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library of an old driver, which lacks functions."""
    return built(tmp_path_factory.mktemp("nvml-old"), old_driver=True)


@pytest.fixture
def fake(library: Path, tmp_path: Path) -> Iterator[FakeNvml]:
    """Give four cards; children load them by the environment."""
    with cards(library, tmp_path, 4) as driver:
        yield driver


@pytest.fixture
def nvml(fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nvml]:
    """Open the fake driver in this process: a library loaded before is found by its soname."""
    ctypes.CDLL(str(fake.library), mode=ctypes.RTLD_GLOBAL)
    monkeypatch.setenv("HCP_NVML_STATE", str(fake.path))
    opened = Nvml(boottime_ns)
    opened.open()
    yield opened
    opened.close()

"""Both kernels compile for GPUs, by the compiler that CuPy takes; no GPU is needed for that."""

from typing import Any

import pytest

from bench.gpu.cuda_source import SOURCE
from edge_agent.reference.cuda_kernel import kernel_source
from tests.fakes import nvrtc

SOURCES = {
    "bench": (SOURCE.read_text(), ("search", "digests")),
    "reference": (kernel_source(), ("scan",)),
}
ELF = b"\x7fELF"


# CuPy takes the one of its CUDA: every generation that is here is tried.
@pytest.fixture(scope="module", params=nvrtc.found() or [""])
def library(request: pytest.FixtureRequest) -> Any:  # noqa: ANN401 - a library
    if not request.param:
        pytest.skip("libnvrtc is not installed: pip install nvidia-cuda-nvrtc")
    return nvrtc.load(request.param)


@pytest.mark.parametrize("which", SOURCES)
@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90"])
def test_a_kernel_compiles_to_machine_code_without_a_warning(
    library: Any,  # noqa: ANN401 - a library
    which: str,
    target: str,
) -> None:
    source, names = SOURCES[which]
    ptx, binary, log = nvrtc.compiled(library, source, target)
    assert log == ""
    assert binary.startswith(ELF)
    for name in names:
        assert f".entry {name}(".encode() in ptx
    # An index that is not known when compiling would put the words of a hash into slow memory.
    assert b"__local_depot" not in ptx


@pytest.mark.parametrize("which", SOURCES)
def test_a_newer_card_gets_code_that_its_driver_can_translate(
    library: Any,  # noqa: ANN401 - a library
    which: str,
) -> None:
    source, _names = SOURCES[which]
    ptx, binary, _log = nvrtc.compiled(library, source, "compute_90")
    assert b".target sm_90" in ptx
    assert binary == b""


def test_what_does_not_compile_is_told_with_its_line(library: Any) -> None:  # noqa: ANN401 - as above
    with pytest.raises(ValueError, match=r"kernel.cu\(1\): error"):
        nvrtc.compiled(library, "no kernel at all", "sm_90")

"""A worker of the bench whose GPU is this CPU: its real code, CuPy and CUDA stood in for."""

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.gpu import cuda_miner, cuda_model, worker
from bench.gpu.cuda_shapes import Shape
from bench.gpu.cuda_source import SOURCE
from tests.bench.gpu.fake_arena import FakeArena
from tests.bench.gpu.fake_cupy import FakeCupy
from tests.fakes.cuda_host import kernels
from tests.fakes.torch_cuda import make_torch

SMALL = Shape(hidden=64, heads=4, mlp=176, vocabulary=300, context=24, prompt=6)


def main(argv: list[str]) -> int:
    """Run a worker; its role is the first word."""
    if argv[0] == "mine":
        with tempfile.TemporaryDirectory() as folder:
            sys.modules["cupy"] = FakeCupy(kernels(SOURCE.read_text(), Path(folder)))  # type: ignore[assignment]  # stands in for it
        vars(cuda_miner)["_BLOCKS_PER_SM"], vars(cuda_miner)["_CHECKED"] = 2, 2_000
    else:
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(1)
        changed = {
            "_library": lambda: make_torch(torch), "Arena": FakeArena, "CHUNK_BYTES": 50_000,
        }  # fmt: skip
        vars(cuda_model).update(changed)
        cuda_model.CudaModel.__init__.__defaults__ = (SMALL,)
    return worker.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The little of CuPy that the bench's miner uses, its kernels run by this CPU."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.gpu.cuda_source import SOURCE
from tests.fakes.cuda_host import Array, HostKernel


class FakeCupy(SimpleNamespace):
    """What the miner uses of CuPy; events and streams keep the order of what was asked."""

    def __init__(self, made: dict[str, HostKernel]) -> None:
        log: list[str] = []
        launches: list[tuple[int, int]] = []

        class RawModule:
            def __init__(self, code: str) -> None:
                assert code == SOURCE.read_text(encoding="utf-8")

            def get_function(self, name: str) -> Any:  # noqa: ANN401 - a kernel
                def call(grid: Any, block: Any, arguments: Any) -> None:  # noqa: ANN401 - as CuPy
                    log.append(name)
                    if name == "search":
                        launches.append((int(arguments[2]), grid[0] * block[0] * int(arguments[3])))
                    made[name](grid, block, arguments)

                return call

        class Event:
            def __init__(self, *, disable_timing: bool) -> None:
                assert disable_timing
                self.recorded = False

            def record(self) -> None:
                log.append("record")
                self.recorded = True

            def synchronize(self) -> None:
                assert self.recorded, "an event that was not recorded waits for nothing"
                log.append("wait")

        stream = SimpleNamespace(synchronize=lambda: log.append("drain"))
        properties = {"multiProcessorCount": 1, "name": b"stand-in"}
        registered: list[tuple[int, int, int]] = []
        runtime = SimpleNamespace(
            getDeviceProperties=lambda _: properties,
            hostRegister=lambda *words: registered.append(words),
        )
        super().__init__(
            RawModule=RawModule,
            asarray=lambda values, dtype: Array(np.array(values, dtype=dtype)),
            asnumpy=lambda array: array.values,
            zeros=lambda count, dtype: Array(np.zeros(count, dtype=dtype)),
            empty=lambda count, dtype: Array(np.zeros(count, dtype=dtype)),
            uint32=np.uint32,
            uintp=np.uintp,
            cuda=SimpleNamespace(Event=Event, get_current_stream=lambda: stream, runtime=runtime),
            __version__="stand-in",
            log=log,
            launches=launches,
            registered=registered,
        )

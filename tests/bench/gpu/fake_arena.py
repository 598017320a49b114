"""Stands in for a range of GPU addresses whose memory can be taken away."""

import mmap

import numpy as np


class FakeArena:
    """Addresses in the host; what is mapped anew, or taken away, holds no numbers."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = mmap.mmap(-1, size)
        view = np.frombuffer(self._memory, dtype=np.uint8)
        self.address = view.ctypes.data
        self._view = view
        self.mapped = True
        self.spoil()

    def spoil(self) -> None:
        self._view[:] = 0xFF  # NaN in every place

    def map(self) -> None:
        if not self.mapped:
            self.spoil()
        self.mapped = True

    def unmap(self) -> None:
        self.mapped = False
        self.spoil()

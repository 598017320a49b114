"""One range of GPU addresses whose memory can be taken away and given back under it.

By the driver's virtual memory functions through ctypes: the addresses stay, so tensors and captured
graphs stay valid, and the memory between is free for others. Source: cuda.h 12.8, section virtual
memory management. Written for a GPU that was not at hand.
"""

import ctypes
from typing import Any

_PINNED, _DEVICE, _READ_WRITE, _MINIMUM = 1, 1, 3, 0


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Flags(ctypes.Structure):
    _fields_ = (
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _Properties(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", _Flags),
    )


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class ArenaError(Exception):
    """A driver call that failed: its name and its result."""


class Arena:
    """Addresses for ``size`` bytes on device 0; mapped when made.

    The device's context must be current in the calling thread.
    """

    def __init__(self, size: int, library: str = "libcuda.so.1") -> None:
        self._driver: Any = ctypes.CDLL(library)
        self._properties = _Properties(type=_PINNED, location=_Location(_DEVICE, 0))
        granularity = ctypes.c_size_t(0)
        self._call(
            "cuMemGetAllocationGranularity",
            ctypes.byref(granularity), ctypes.byref(self._properties), ctypes.c_int(_MINIMUM),
        )  # fmt: skip
        unit = granularity.value
        self.size = -(-size // unit) * unit
        address = ctypes.c_uint64(0)
        self._call(
            "cuMemAddressReserve",
            ctypes.byref(address), ctypes.c_size_t(self.size), ctypes.c_size_t(0),
            ctypes.c_uint64(0), ctypes.c_uint64(0),
        )  # fmt: skip
        self.address = address.value
        self._handle: int | None = None
        self.map()

    def map(self) -> None:
        """Give the addresses memory; what is in it is not defined."""
        if self._handle is not None:
            return
        handle = ctypes.c_uint64(0)
        size, at = ctypes.c_size_t(self.size), ctypes.c_uint64(self.address)
        self._call(
            "cuMemCreate",
            ctypes.byref(handle), size, ctypes.byref(self._properties), ctypes.c_uint64(0),
        )  # fmt: skip
        try:
            self._call("cuMemMap", at, size, ctypes.c_size_t(0), handle, ctypes.c_uint64(0))
        except ArenaError:
            self._call("cuMemRelease", handle)
            raise
        self._handle = handle.value
        access = _Access(_Location(_DEVICE, 0), _READ_WRITE)
        try:
            self._call("cuMemSetAccess", at, size, ctypes.byref(access), ctypes.c_size_t(1))
        except ArenaError:
            self.unmap()
            raise

    def unmap(self) -> None:
        """Take the memory away; nothing may be under way on it."""
        if self._handle is None:
            return
        self._call("cuMemUnmap", ctypes.c_uint64(self.address), ctypes.c_size_t(self.size))
        self._call("cuMemRelease", ctypes.c_uint64(self._handle))
        self._handle = None

    def _call(self, name: str, *arguments: object) -> None:
        result = int(getattr(self._driver, name)(*arguments))
        if result != 0:
            raise ArenaError(f"{name} gave {result}")

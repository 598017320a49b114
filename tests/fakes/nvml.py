"""Builds `nvml.c` and drives its cards: the mirror of its `State`, mapped from the same file."""

import ctypes
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
SONAME = "libnvidia-ml.so.1"
GPUS_MAX = 16
EVENTS_MAX = 256
MIB = 1 << 20

UNSIGNED_INT = 1
UNSIGNED_LONG_LONG = 3

u32, u64 = ctypes.c_uint32, ctypes.c_uint64


class Field(ctypes.Structure):
    _fields_ = (("id", u32), ("ret", u32), ("type", u32), ("unused", u32), ("value", u64))


class Process(ctypes.Structure):
    _fields_ = (("pid", u32), ("gpu_instance", u32), ("used_bytes", u64))


class Gpu(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 96), ("uuid", ctypes.c_char * 96), ("bus_id", ctypes.c_char * 32),
        ("hang", u32), ("lost", u32), ("delay_us", u32), ("calls", u32),
        ("temp_c", u32), ("memory_temp_c", u32), ("slowdown_c", u32), ("shutdown_c", u32),
        ("memory_max_c", u32),
        ("power_mw", u32), ("power_instant_mw", u32), ("limit_mw", u32), ("limit_min_mw", u32),
        ("limit_max_mw", u32), ("limit_default_mw", u32),
        ("gpu_util", u32), ("memory_util", u32),
        ("clock_mhz", u32 * 3), ("clock_max_mhz", u32 * 3),
        ("locked_gpu_mhz", u32 * 2), ("locked_memory_mhz", u32 * 2),
        ("persistence", u32), ("mig", u32), ("remap_correctable", u32),
        ("remap_uncorrectable", u32), ("remap_pending", u32), ("remap_failure", u32),
        ("links", u32), ("link_active", u32 * 18), ("processes_n", u32), ("fields_n", u32),
        ("unused", u32),
        ("energy_mj", u64), ("reasons", u64), ("event_types", u64),
        ("memory_total", u64), ("memory_reserved", u64), ("memory_used", u64),
        ("ecc", (u64 * 2) * 2),
        ("processes", Process * 8), ("fields", Field * 24),
    )  # fmt: skip


class Event(ctypes.Structure):
    _fields_ = (
        ("gpu", u32), ("gpu_instance", u32), ("compute_instance", u32), ("unused", u32),
        ("type", u64), ("data", u64),
    )  # fmt: skip


class Forced(ctypes.Structure):
    _fields_ = (("function", ctypes.c_char * 56), ("gpu", ctypes.c_int32), ("ret", u32))


class State(ctypes.Structure):
    _fields_ = (
        ("gpus_n", u32), ("setters_allowed", u32), ("hang_all", u32), ("hang_holds_lock", u32),
        ("lock_pid", u32), ("forced_n", u32), ("calls", u32), ("lost_breaks_wait", u32),
        ("events_n", u64), ("driver", ctypes.c_char * 96),
        ("forced", Forced * 32), ("events", Event * EVENTS_MAX), ("gpu", Gpu * GPUS_MAX),
    )  # fmt: skip


def compiler() -> str | None:
    """Give a C compiler, None where there is none."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def build(folder: Path, *, old_driver: bool = False) -> Path:
    """Compile the library into `folder`; the caller has seen that there is a compiler."""
    cc = compiler()
    assert cc is not None, "no C compiler"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / SONAME
    options = ["-DOLD_DRIVER"] if old_driver else []
    subprocess.run(
        [
            cc, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
            "-fvisibility=hidden", f"-Wl,-soname,{SONAME}", *options, "-o", library, SOURCE,
        ],
        check=True,
    )  # fmt: skip
    return library


class FakeNvml:
    """The cards of one fake driver, as a test sees and changes them."""

    def __init__(self, library: Path, path: Path, mapped: mmap.mmap) -> None:
        self.library = library
        self.path = path
        self.state = State.from_buffer(mapped)

    def environment(self) -> dict[str, str]:
        """Give what a child process needs to load this library in place of NVIDIA's."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.library.parent),
            "HCP_NVML_STATE": str(self.path),
        }

    def gpu(self, index: int) -> Gpu:
        """Give one card."""
        card: Gpu = self.state.gpu[index]
        return card

    def uuid(self, index: int) -> str:
        """Give one card's UUID."""
        return bytes(self.gpu(index).uuid).decode()

    def force(self, function: str, ret: int, gpu: int = -1) -> None:
        """Make one function answer a return code, for one card or for all."""
        rule = self.state.forced[self.state.forced_n]
        rule.function, rule.gpu, rule.ret = function.encode(), gpu, ret
        self.state.forced_n += 1

    def release(self) -> None:
        """Take back every forced return code."""
        self.state.forced_n = 0

    def field(self, index: int, field_id: int, value: int, *, ret: int = 0, wide: bool) -> None:
        """Set one field value of a card, or its return code."""
        card = self.gpu(index)
        places = [place for place in range(card.fields_n) if card.fields[place].id == field_id]
        if not places:
            card.fields_n += 1
        entry = card.fields[places[0] if places else card.fields_n - 1]
        entry.id, entry.ret, entry.value = field_id, ret, value
        entry.type = UNSIGNED_LONG_LONG if wide else UNSIGNED_INT

    def event(self, index: int, kind: int, data: int) -> None:
        """Let one event happen on a card."""
        place = self.state.events[self.state.events_n % EVENTS_MAX]
        place.gpu, place.type, place.data = index, kind, data
        place.gpu_instance = place.compute_instance = 0xFFFF_FFFF
        self.state.events_n += 1


def _card(fake: FakeNvml, index: int) -> None:
    """Make a card like an H100 SXM, every counter at a value of its own."""
    card = fake.gpu(index)
    card.name = b"NVIDIA H100 80GB HBM3"
    card.uuid = f"GPU-{index:08x}-0000-4000-8000-{index:012x}".encode()
    card.bus_id = f"00000000:{0x18 + index:02X}:00.0".encode()
    card.temp_c, card.memory_temp_c = 50 + index, 60 + index
    card.slowdown_c, card.shutdown_c, card.memory_max_c = 87, 92, 95
    card.power_mw, card.power_instant_mw = 400_000 + index, 410_000 + index
    card.limit_min_mw, card.limit_max_mw = 200_000, 700_000
    card.limit_mw = card.limit_default_mw = 700_000
    card.gpu_util, card.memory_util = 97, 41
    card.clock_mhz[:] = [1_755, 1_755, 2_619]
    card.clock_max_mhz[:] = [1_980, 1_980, 2_619]
    card.energy_mj = 1_000_000_000 + index
    card.reasons = 0x4
    card.event_types = 0x1 | 0x2 | 0x8 | 0x4000 | 0x8000
    card.memory_total, card.memory_reserved = 81_559 * MIB, 551 * MIB
    card.memory_used = 20_000 * MIB
    card.links = 18
    card.link_active[:] = [1] * 18
    fake.field(index, 186, 0, wide=False)
    fake.field(index, 82, 0, wide=False)
    fake.field(index, 91, 18, wide=False)
    fake.field(index, 94, 3, wide=False)
    fake.field(index, 138, 5_000 + index, wide=True)
    fake.field(index, 139, 6_000 + index, wide=True)
    fake.field(index, 230, 0, wide=False)


@contextmanager
def cards(library: Path, folder: Path, count: int) -> Iterator[FakeNvml]:
    """Give a fake driver with `count` cards, its state in `folder`."""
    path = folder / "nvml.state"
    path.write_bytes(bytes(ctypes.sizeof(State)))
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    fake = FakeNvml(library, path, mapped)
    fake.state.gpus_n = count
    fake.state.driver = b"580.159.03"
    for index in range(count):
        _card(fake, index)
    try:
        yield fake
    finally:
        # whoever hangs in the fake driver is let go
        fake.state.hang_all = 0
        for card in fake.state.gpu:
            card.hang = 0

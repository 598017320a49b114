"""What the programs here ask of their process: open files, few heaps, a calm collector."""

import ctypes
import gc
import resource
from typing import Final

# Nearly all values are freed by counting: what the collector has to find are the
# cycles of raised errors. Looking through the whole site for them takes hundreds of milliseconds.
_YOUNG_MAX: Final = 20_000
_MIDDLE_EVERY: Final = 20
_OLD_EVERY: Final = 50
# malloc.h of glibc: one heap for each thread is its choice, and what one frees the others lack.
_M_ARENA_MAX: Final = -8
_HEAPS_MAX: Final = 2


def raise_file_limit(wanted: int) -> None:
    """Raise the soft limit of open files towards the hard one: each miner needs its own socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


def calm_collector() -> None:
    """Take everything made so far out of the collector's sight, and let it look less often.

    Called once, when the site stands: what is there then stays until the end.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_MAX, _MIDDLE_EVERY, _OLD_EVERY)


def limit_heaps() -> None:
    """Let all threads share two heaps; called before there are any threads.

    Source: mallopt(3). A C library without it keeps its own choice.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _HEAPS_MAX)

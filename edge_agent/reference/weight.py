"""How much of the machine a workload may take from others, and when it may take more.

Work is done at low weight. What is told to stop has first to reach the end of a batch or a step,
and at low weight a busy machine may keep it from that for long: so it is lifted for as long as it
takes to stop and to begin again, which is little.

Source: sched(7), setpriority(2): both act on a process or on one thread, by its id; to lift needs
root, CAP_SYS_NICE or a resource limit (RLIMIT_NICE).
"""

import contextlib
import os

WEIGHTS = ("batch", "idle", "normal")
_NICE = 19


class Weight:
    """Lowers and lifts one process or thread.

    Args:
        policy: ``batch`` (nice 19), ``idle`` (only what nobody else wants) or ``normal``.
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._own_nice = os.getpriority(os.PRIO_PROCESS, 0)

    def lower(self, ident: int) -> None:
        """Let it give way to everything else on this machine."""
        if self._policy == "normal":
            return
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, ident, max(_NICE, self._own_nice))
            kind = os.SCHED_IDLE if self._policy == "idle" else os.SCHED_BATCH
            os.sched_setscheduler(ident, kind, os.sched_param(0))

    def lift(self, ident: int) -> None:
        """Let it run as the one who tells it to stop; where that is not allowed, it stays low."""
        if self._policy == "normal":
            return
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, ident, self._own_nice)
            os.sched_setscheduler(ident, os.SCHED_OTHER, os.sched_param(0))

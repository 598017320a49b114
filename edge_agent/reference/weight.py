"""How much of the machine a workload may take from others, and when it may take more.

Work is done at low weight. What is told to stop has first to reach the end of a batch or a step,
and a busy machine may keep it from that for long: so it goes before everything else from when it
was told until it stands, for a batch or a step and no longer, and then begins again at the weight
of its owner.

Where autogroups are on (Debian's default) and no control group has weights of its own, a nice value
counts inside one session only. A leader of a session takes its session along; a thread cannot, so
there the unit's ``CPUWeight`` has to say what the nice value would.

Source: sched(7), "The autogroup feature"; setpriority(2): both it and sched_setscheduler(2) take
the id of a process or of one thread; more than low needs root, CAP_SYS_NICE, or the limits
RLIMIT_NICE and RLIMIT_RTPRIO. Where that is not given, it stays low and stops later.
"""

import contextlib
import os
from pathlib import Path

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
            _set_session(ident, _NICE)

    def hurry(self, ident: int) -> None:
        """Let it go before everything else.

        Only once it was told to stop: whoever tells it may not get to run again before it does.
        """
        if self._policy == "normal":
            return
        with contextlib.suppress(ProcessLookupError):
            try:
                os.sched_setscheduler(ident, os.SCHED_RR, os.sched_param(1))
            except PermissionError:
                _set_session(ident, 0)  # its own session, anybody may lift that far

    def lift(self, ident: int) -> None:
        """Let it run as its owner does."""
        if self._policy == "normal":
            return
        with contextlib.suppress(PermissionError, ProcessLookupError):
            _set_session(ident, 0)
            os.setpriority(os.PRIO_PROCESS, ident, self._own_nice)
            os.sched_setscheduler(ident, os.SCHED_OTHER, os.sched_param(0))


def _set_session(ident: int, nice: int) -> None:
    """Set the weight of the session that a process leads."""
    if os.getsid(ident) == ident:
        # No such file without autogroups; and who is not root may write ten times a second.
        with contextlib.suppress(OSError):
            Path(f"/proc/{ident}/autogroup").write_text(str(nice), encoding="ascii")

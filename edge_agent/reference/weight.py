"""How much of the machine a workload may take from others."""

import os

BATCH_NICE = 19


def lower_weight(policy: str) -> None:
    """Give way to everything else on this machine: ``batch`` (nice 19), ``idle``, or ``normal``.

    Source: sched(7). Under ``idle`` a busy machine may not let a worker reach the end of its batch
    for long, so that it answers a pause late; ``batch`` keeps a small share for that.
    """
    if policy == "normal":
        return
    os.setpriority(os.PRIO_PROCESS, 0, max(BATCH_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    kind = os.SCHED_IDLE if policy == "idle" else os.SCHED_BATCH
    os.sched_setscheduler(0, kind, os.sched_param(0))

"""A program in a session of its own, where no systemd runs.

It is found again by pid, boot and start time, and by a mark in its environment: a host that dies
between starting it and writing that down still finds it, and a pid used again misleads nobody.
Nothing ties its life to ours (no PR_SET_PDEATHSIG).
"""

import asyncio
import contextlib
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.workloads.engine import EngineSpec
from edge_agent.workloads.engines.output import Output
from edge_agent.workloads.engines.processes import Found, family, find, lives, send
from edge_agent.workloads.engines.program import WEIGHT_NORMAL, Look, environment_of
from edge_agent.workloads.engines.record import Records
from edge_agent.workloads.errors import DriverRefusedError, DriverUnavailableError, Refusal

# A process that the kernel holds, in a driver call as a rule, cannot die before it returns.
KILL_S: Final = 5.0
LOOK_PERIOD_S: Final = 0.01

_DEFAULT_SIGNALS: Final = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class GroupProgram:
    """One program as a process group.

    Args:
        spec: What to start.
        records: Of this engine.
        output: Where it prints.
        mark: Unique on this machine, the same after every restart of ours.
        boot_id: Of this boot.
        weight: Its share of the processors, beside 100 of others.
    """

    def __init__(
        self,
        spec: EngineSpec,
        records: Records,
        output: Output,
        *,
        mark: str,
        boot_id: str,
        weight: int = WEIGHT_NORMAL,
    ) -> None:
        self._spec = spec
        self._records = records
        self._output = output
        self._mark = mark
        self._boot_id = boot_id
        self._weight = weight
        self._child: int | None = None
        self._ended = "not started"
        self._searched = False

    @property
    def ours(self) -> bool:
        """Tell that it is started and ended from here."""
        return True

    async def look(self) -> Look:
        """See whether it lives."""
        self._output.cut()
        leader = await self._leader()
        if leader is not None:
            return Look(alive=True, detail=f"process {leader.pid}", age_s=leader.age_s())
        self._reap()
        return Look(alive=False, detail=self._ended)

    async def start(self, deadline_s: float, more: tuple[str, ...] = ()) -> bool:
        """Start it, or adopt what lives already; strays of a former life are killed first."""
        self._searched = False
        if await self._leader() is not None:
            return False
        await self.kill()
        self._spawn(more)
        return True

    async def end(self, grace_s: float) -> None:
        """Ask all of it to end, and kill what is left after the grace."""
        kin = await self._family()
        for process in kin:
            send(process, signal.SIGTERM)
        end = asyncio.get_running_loop().time() + grace_s
        while any(lives(process) for process in kin):
            if asyncio.get_running_loop().time() >= end:
                break
            await asyncio.sleep(LOOK_PERIOD_S)
        await self._kill(kin)

    async def kill(self) -> None:
        """Kill it and everything it started."""
        await self._kill(await self._family())

    async def cpu_ns(self) -> int | None:
        """Give the processor time of all of it; None when it does not live."""
        kin = await self._family()
        return sum(process.cpu_ns for process in kin) if kin else None

    async def _kill(self, kin: list[Found]) -> None:
        """Kill these and all that carry the mark; the group is known by ``kin`` only."""
        end = asyncio.get_running_loop().time() + KILL_S
        while True:
            left = {process.pid: process for process in kin if lives(process)}
            left |= {process.pid: process for process in await self._family()}
            if not left:
                break
            if asyncio.get_running_loop().time() >= end:
                pids = ", ".join(map(str, sorted(left)))
                raise DriverUnavailableError(f"kill: {pids} live on after {KILL_S:g} s")
            for process in left.values():
                send(process, signal.SIGKILL)
            await asyncio.sleep(LOOK_PERIOD_S)
        self._reap()
        self._remember(None)

    async def _family(self) -> list[Found]:
        return await asyncio.to_thread(family, self._mark, self._recorded())

    async def _leader(self) -> Found | None:
        """Give its first process; searched for once where the record names none that lives."""
        leader = self._recorded()
        if leader is not None or self._searched:
            return leader
        kin = await asyncio.to_thread(family, self._mark, None)
        self._searched = True
        leader = next((process for process in kin if process.pid == process.group), None)
        if leader is not None:
            self._remember(leader)
        return leader

    def _recorded(self) -> Found | None:
        record = self._records.read()
        if not record.pid or record.boot_id != self._boot_id:
            return None
        process = find(record.pid)
        if process is None or process.start_ticks != record.start_ticks:
            return None
        return process

    def _remember(self, leader: Found | None) -> None:
        self._records.write(
            msgspec.structs.replace(
                self._records.read(),
                boot_id=self._boot_id,
                pid=0 if leader is None else leader.pid,
                start_ticks=0 if leader is None else leader.start_ticks,
            )
        )

    def _spawn(self, more: tuple[str, ...]) -> None:
        environment = environment_of(self._spec, self._mark)
        name = self._spec.argv[0]
        path = shutil.which(name, path=environment["PATH"])
        if path is None:
            raise DriverRefusedError(Refusal.START_FAILED, f"{name}: no such program")
        self._output.make()
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        files = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self._output.path), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        try:
            pid = os.posix_spawn(
                path,
                [*self._spec.argv, *more],
                environment,
                file_actions=files,
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULT_SIGNALS,
            )
        except OSError as exc:
            raise DriverRefusedError(Refusal.START_FAILED, f"{name}: {exc.strerror}") from exc
        self._child = pid
        self._ended = "not started"
        self._remember(find(pid))
        _give_weight(pid, self._weight)

    def _reap(self) -> None:
        """Take the exit status of a child of ours that ended; an adopted one has none for us."""
        if self._child is None:
            return
        try:
            pid, status = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:
            self._child = None
            return
        if pid == 0:
            return
        self._child = None
        code = os.waitstatus_to_exitcode(status)
        how = f"ended with status {code}" if code >= 0 else f"ended by signal {-code}"
        said = self._output.last_words()
        self._ended = f"{how}: {said}" if said else how


def _give_weight(pid: int, weight: int) -> None:
    """Set the share of the processors; each step of nice is a fifth."""
    nice = max(0, min(19, round(math.log(weight / 100) / math.log(0.8))))
    if nice == 0:
        return
    with contextlib.suppress(OSError):  # it ended just now: the next look says so
        os.setpriority(os.PRIO_PGRP, pid, nice)
        # sessions are weighed against each other first: nice alone would change nothing
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")

"""`python -m bench._traced FILE MODULE ARGS`: run a program of ours and note its spans.

What is looked at is wrapped from outside, so that the programs know nothing of it. A span is a
line ``name start_ns end_ns`` of CLOCK_MONOTONIC, which is the same in all processes; they are kept
in memory, bounded, and written when the program ends.
"""

import atexit
import functools
import importlib
import inspect
import runpy
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPANS_MAX = 400_000
# Module, attribute path, and how a span is called: the function's name, or an argument of it.
_POINTS: tuple[tuple[str, str, str], ...] = (
    ("edge_agent.services.control_loop", "ControlLoop.one_pass", ""),
    ("edge_agent.services.control_loop", "ControlLoop._decide", ""),
    ("edge_agent.services.control_loop", "ControlLoop.close_switch", ""),
    ("edge_agent.services.journal", "Journal.begin", ""),
    ("edge_agent.services.journal", "Journal.finish", ""),
    ("edge_agent.services.journal", "Journal.note", ""),
    ("edge_agent.services.switch_executor", "SwitchExecutor._drive", ""),
    ("edge_agent.services.switch_executor", "SwitchExecutor._write_note", ""),
    ("edge_agent.services.metering", "MeteringService.take", ""),
    ("edge_agent.node.link", "_Link.do", "request.phase.value"),
    ("edge_agent.node.runner", "PhaseRunner.do", "request.phase.value"),
    ("edge_agent.node.runner", "PhaseRunner._phase", "request.phase.value"),
    ("edge_agent.node.desk", "MeterDesk.harvest", ""),
    ("edge_agent.workloads.host_driver", "HostDriver._ask", "op"),
    ("edge_agent.workloads.host_driver", "HostDriver._act", "call.op"),
    ("edge_agent.workloads.host_driver", "HostDriver.begin", ""),
    ("edge_agent.storage.writer", "run_group", ""),
    ("edge_agent.storage.writer", "ThreadedWriter.run", "sync"),
    ("edge_agent.host.service", "HostService._timed", "name"),
    ("edge_agent.workloads.engines.http", "EngineHttp.ask", "path"),
)

_spans: deque[tuple[str, int, int]] = deque(maxlen=SPANS_MAX)


def main(argv: list[str]) -> None:
    """Wrap what is looked at, then run the program."""
    out, module, *args = argv
    for point in _POINTS:
        _wrap(*point)
    atexit.register(_write, Path(out))
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _wrap(module: str, path: str, label: str) -> None:
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    found = getattr(owner, name)
    setattr(owner, name, _noted(found, name.strip("_"), label))


def _noted(function: Callable[..., Any], name: str, label: str) -> Callable[..., Any]:
    signature = inspect.signature(function)

    def told(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if not label:
            return name
        first, *rest = label.split(".")
        value = signature.bind(*args, **kwargs).arguments.get(first, "")
        for part in rest:
            value = getattr(value, part)
        return f"{name}:{str(value).split('?')[0]}"

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def noted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever it wraps
            began_ns = time.monotonic_ns()
            try:
                return await function(*args, **kwargs)
            finally:
                _spans.append((told(args, kwargs), began_ns, time.monotonic_ns()))

        return noted

    @functools.wraps(function)
    def noted_at_once(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever it wraps
        began_ns = time.monotonic_ns()
        try:
            return function(*args, **kwargs)
        finally:
            _spans.append((told(args, kwargs), began_ns, time.monotonic_ns()))

    return noted_at_once


def _write(out: Path) -> None:
    lines = [f"{name} {began_ns} {ended_ns}\n" for name, began_ns, ended_ns in _spans]
    out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What each reading or acting command does; ``main`` starts the programs ``run`` and ``node``."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatchcase

from edge_agent.cli import miners, render, render_grid
from edge_agent.cli.client import (
    EXIT_OK,
    EXIT_PROBLEM,
    EXIT_TIMED_OUT,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    CliError,
    act,
    ask,
    snapshot,
)

TYPE_CHECKING = False  # typing itself takes 3 ms to import
if TYPE_CHECKING:
    from typing import Any

SCHEMA_VERSION = 1
# A word on a fence lapses after 30 s; what came of it is told a little later.
RELEASE_WAIT_S = 40.0
_POLL_S = 0.5
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(s|m|min|h|d)$")
_UNIT_S = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}


def run(args: argparse.Namespace) -> int:
    """Carry out one command; print; give the exit code."""
    try:
        return _COMMANDS[args.command](args)
    except BrokenPipeError:  # the reader (`head`, `less`) has seen enough
        sys.stdout = None
        return EXIT_OK
    except CliError as exc:
        if getattr(args, "json", False):
            error = {"v": SCHEMA_VERSION, "error": str(exc), "exit_code": exc.exit_code}
            print(json.dumps(error))
        print(f"hcp-agent: {exc}", file=sys.stderr)
        return exc.exit_code


def _status(args: argparse.Namespace) -> int:
    value = _read(args, "/v1/status", "status")
    _show(args, value, render.status)
    return EXIT_PROBLEM if args.exit_code and value["site"]["problems"] else EXIT_OK


def _devices(args: argparse.Namespace) -> int:
    query = {"pattern": args.pattern} | ({"times": "1"} if args.times else {})
    value = _read(args, "/v1/devices", "devices", query)
    rows = [row for row in value["items"] if fnmatchcase(row["device"]["device_id"], args.pattern)]
    if args.state:
        rows = [row for row in rows if row["device"]["activity"] == args.state]
    _show(args, value | {"items": rows}, lambda shown: render.devices(shown["items"]))
    return EXIT_OK


def _why(args: argparse.Namespace) -> int:
    try:
        value = ask(args.run_dir, "/v1/why", {"device": args.device})
    except CliError as exc:
        if exc.exit_code != EXIT_UNREACHABLE:
            raise
        return _why_offline(args)
    _show(args, value, render.why)
    return EXIT_OK


def _why_offline(args: argparse.Namespace) -> int:
    # The snapshot keeps the verdict of each device, not every number of it.
    value = _read(args, None, "devices")
    rows = [row for row in value["items"] if row["device"]["device_id"] == args.device]
    if not rows:
        raise CliError(EXIT_PROBLEM, f"no device {args.device} in the last snapshot")
    _show(args, value | {"items": rows}, lambda shown: render.devices(shown["items"]))
    return EXIT_OK


def _plan(args: argparse.Namespace) -> int:
    _show(args, _read(args, "/v1/plan", "plan"), render.plan)
    return EXIT_OK


def _switches(args: argparse.Namespace) -> int:
    value = _read(args, "/v1/switches", "switches", {"limit": str(max(1, args.limit))})
    rows = value["items"][: max(1, args.limit)]
    if args.failed:
        rows = [row for row in rows if row["committed"] != row["devices"]]
    _show(args, value | {"items": rows}, lambda shown: render.switches(shown["items"]))
    return EXIT_OK


def _buffer(args: argparse.Namespace) -> int:
    _show(args, _read(args, "/v1/buffer", "buffer"), render.buffer)
    return EXIT_OK


def _drain(args: argparse.Namespace) -> int:
    body = {"pattern": args.device, "reason": args.reason, "for_s": _seconds(args.duration)}
    return _acted(args, act(args.run_dir, "/v1/drain", body))


def _undrain(args: argparse.Namespace) -> int:
    """Give devices back, and wait for what their nodes say of fences: half a minute at most."""
    value = act(args.run_dir, "/v1/undrain", {"pattern": args.device})
    final = {row["device_id"]: row for row in value.get("releases", ())}
    ends = time.monotonic() + RELEASE_WAIT_S
    while _asked(final) and time.monotonic() < ends:
        time.sleep(_POLL_S)
        said = ask(args.run_dir, "/v1/releases", {"pattern": args.device})["releases"]
        final |= {row["device_id"]: row for row in said if row["device_id"] in final}
    value |= {"releases": list(final.values())}
    _show(args, value, render.undrained)
    if _asked(final):
        return EXIT_TIMED_OUT
    done = all(row["outcome"] == "done" for row in final.values())
    return EXIT_OK if value["devices"] and done else EXIT_PROBLEM


def _asked(rows: dict[str, dict[str, Any]]) -> bool:
    return any(row["outcome"] == "asked" for row in rows.values())


def _market(args: argparse.Namespace) -> int:
    _show(args, _read(args, "/v1/market", "market"), render_grid.market)
    return EXIT_OK


def _power(args: argparse.Namespace) -> int:
    value = _read(args, "/v1/power", "power")
    _show(args, value | value.pop("power"), render_grid.power)
    return EXIT_OK


def _order(args: argparse.Namespace) -> int:
    if args.verb == "list":
        _show(args, _read(args, "/v1/orders", "orders"), render_grid.orders)
        return EXIT_OK
    if args.verb == "cancel":
        value = act(args.run_dir, "/v1/orders/cancel", {"order_id": args.order_id})
    else:
        value = act(args.run_dir, "/v1/orders/add", _order_body(args))
    _show(args, value, lambda shown: render_grid.orders({"items": [shown["order"]]}))
    return EXIT_OK


def _order_body(args: argparse.Namespace) -> dict[str, Any]:
    if bool(args.until) == bool(args.duration):
        raise CliError(EXIT_USAGE, "give --until TIME or --for DURATION")
    body: dict[str, Any] = {
        "limit_mw": args.mw, "order_id": args.order_id, "by": args.reason,
        "until_at": args.until or None, "for_s": _seconds(args.duration),
    }  # fmt: skip
    if _DURATION.match(args.by):
        body["due_in_s"] = _seconds(args.by)
    else:
        body["due_at"] = args.by
    return {name: value for name, value in body.items() if value is not None}


def _acted(args: argparse.Namespace, value: dict[str, Any]) -> int:
    _show(args, value, lambda shown: "\n".join(shown["devices"]) or "no device matched")
    return EXIT_OK if value["devices"] else EXIT_PROBLEM


def _read(
    args: argparse.Namespace, path: str | None, part: str, query: dict[str, str] | None = None
) -> dict[str, Any]:
    """Read from the agent, else from the last snapshot, saying its age."""
    try:
        if path is not None:
            value: dict[str, Any] = ask(args.run_dir, path, query)
            return value
    except CliError as exc:
        if exc.exit_code != EXIT_UNREACHABLE:
            raise
    kept, age_s = snapshot(args.run_dir, args.data_dir)
    if kept.get(part) is None:
        raise CliError(EXIT_UNREACHABLE, f"agent down, and its last snapshot has no {part}")
    print(f"agent down, {render.duration(age_s)} old", file=sys.stderr)
    found: dict[str, Any] = kept[part]
    return found | {"snapshot_age_s": round(age_s, 1)}


def _show(
    args: argparse.Namespace, value: dict[str, Any], as_text: Callable[[dict[str, Any]], str]
) -> None:
    if args.json:
        print(json.dumps({"v": SCHEMA_VERSION} | value))
    else:
        print(as_text(value))


def _shower(
    args: argparse.Namespace,
) -> Callable[[dict[str, Any], Callable[[dict[str, Any]], str]], None]:
    return lambda value, as_text: _show(args, value, as_text)


def _seconds(text: str) -> float | None:
    if not text:
        return None
    found = _DURATION.match(text)
    if found is None:
        raise CliError(EXIT_USAGE, f"--for {text}: want a number and s, m, h or d, e.g. 2h")
    return float(found[1]) * _UNIT_S[found[2]]


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "status": _status,
    "devices": _devices,
    "why": _why,
    "plan": _plan,
    "switches": _switches,
    "buffer": _buffer,
    "drain": _drain,
    "undrain": _undrain,
    "miners": lambda args: miners.miners(args, _shower(args)),
    "market": _market,
    "power": _power,
    "order": _order,
} | dict.fromkeys(miners.ACTS, lambda args: miners.tell(args, _shower(args)))

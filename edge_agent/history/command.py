"""The commands that read the journal: ``replay``, ``why DEV --at TIME``, ``regret``, ``report``.

They open ``core.sqlite`` beside a running agent or without one, and change nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from edge_agent.backtest.linear import LinearError
from edge_agent.backtest.plot import PlotError, PlotNameError, check_plot, draw
from edge_agent.config import build_site, read_config
from edge_agent.core.errors import ActError, JournalError
from edge_agent.core.site import Site
from edge_agent.history.day_walk import walk_day
from edge_agent.history.picture import day_picture
from edge_agent.history.regret import regret, run_courses
from edge_agent.history.report import at_day, day_report
from edge_agent.history.report_text import regret_text, report_text
from edge_agent.history.text import keys_text, replay_text, stamp, what_if_text
from edge_agent.services.journal_walk import Walk
from edge_agent.services.override_keys import OverrideError, keys_of, parse_overrides
from edge_agent.services.replay import replay, why_at
from edge_agent.services.what_if import what_if
from edge_agent.storage.errors import StorageError
from edge_agent.storage.journal_reader import JournalReader
from protocol.settings import SettingsError

_EXIT_OK = 0
_EXIT_PROBLEM = 1
_EXIT_USAGE = 2
_EXIT_NOT_ALLOWED = 4
_SCHEMA_VERSION = 1
_ENCODER = msgspec.json.Encoder(decimal_format="number")
_R = TypeVar("_R", bound=Struct)


class _UsageError(Exception):
    """What was asked for cannot be meant."""


def run_history(args: argparse.Namespace, why_text: Callable[[dict[str, Any]], str]) -> int:
    """Carry out one command; print; give the exit code.

    Args:
        why_text: renders an explanation, as for the live ``why``.
    """
    try:
        if args.command in ("regret", "report"):
            return _day(args)
        return _why(args, why_text) if args.command == "why" else _replay(args)
    except BrokenPipeError:  # the reader (`head`, `less`) has seen enough
        sys.stdout = None
        return _EXIT_OK
    except (_UsageError, OverrideError, SettingsError, PlotNameError) as exc:
        return _failed(args, exc, _EXIT_USAGE)
    except (StorageError, JournalError, ActError, PlotError, LinearError) as exc:
        return _failed(args, exc, _EXIT_PROBLEM)
    except PermissionError as exc:
        return _failed(args, exc, _EXIT_NOT_ALLOWED)
    except OSError as exc:  # the picture's file
        return _failed(args, exc, _EXIT_PROBLEM)


def _failed(args: argparse.Namespace, exc: Exception, code: int) -> int:
    if args.json:
        print(json.dumps({"v": _SCHEMA_VERSION, "error": str(exc), "exit_code": code}))
    print(f"hcp-agent: {exc}", file=sys.stderr)
    return code


def _replay(args: argparse.Namespace) -> int:
    from_at, to_at = _time(args.from_at, "--from"), _time(args.to_at, "--to")
    if from_at is not None and to_at is not None and to_at < from_at:
        raise _UsageError("--to lies before --from")
    reader, site = _open(args)
    span = {"from_at": from_at, "to_at": to_at}
    try:
        if args.keys:
            return _keys(args, Walk(reader, site).first_site(from_at))
        if args.what_if:
            return _what_if(args, reader, site, span)
        report = replay(reader, otherwise=site, **span)
    finally:
        reader.close()
    _show(args, report, replay_text)
    return _EXIT_OK if report.equal else _EXIT_PROBLEM


def _what_if(
    args: argparse.Namespace,
    reader: JournalReader,
    site: Site | None,
    span: dict[str, datetime | None],
) -> int:
    """Decide again under other values; that decisions differ is an answer, not a problem."""
    based = Walk(reader, site).first_site(span["from_at"])
    overrides = parse_overrides(args.what_if, based)
    texts = tuple(args.what_if)
    _show(args, what_if(reader, texts, overrides, otherwise=site, **span), what_if_text)
    return _EXIT_OK


def _keys(args: argparse.Namespace, site: Site) -> int:
    keys = keys_of(site)
    if args.json:
        told = [{"key": key.text, "value": key.value} for key in keys]
        print(json.dumps({"v": _SCHEMA_VERSION, "keys": told}))
    else:
        print(keys_text(keys))
    return _EXIT_OK


def _why(args: argparse.Namespace, why_text: Callable[[dict[str, Any]], str]) -> int:
    at = _time(args.at, "--at")
    assert at is not None, "the command line asks here only with a time"
    reader, site = _open(args)
    try:
        decided_at, told = why_at(reader, args.device, at, site)
    finally:
        reader.close()
    value = msgspec.to_builtins(told)
    if args.json:
        head = {"v": _SCHEMA_VERSION, "decided_at": stamp(decided_at)}
        print(json.dumps(head | value))
    else:
        print(f"decided at {stamp(decided_at)}\n{why_text(value)}")
    return _EXIT_OK


def _day(args: argparse.Namespace) -> int:
    start = at_day(args.day)
    if start is None:
        raise _UsageError(f"--day {args.day}: want YYYY-MM-DD")
    if args.plot:
        check_plot(Path(args.plot))
    reader, site = _open(args)
    try:
        day = walk_day(reader, start, site)
    finally:
        reader.close()
    courses = run_courses(day)
    told = regret(day, courses, check_lp=args.check_lp)
    if args.plot:
        draw(day_picture(day, courses), Path(args.plot))
    if args.command == "regret":
        _show(args, told, regret_text)
    else:
        _show(args, day_report(day, courses, told), report_text)
    return _EXIT_PROBLEM if told.lp is not None and not told.lp.equal else _EXIT_OK


def _open(args: argparse.Namespace) -> tuple[JournalReader, Site | None]:
    """Open the journal; with a config also give its site, for rows that name none."""
    if not args.config:
        return JournalReader(Path(args.data_dir) / "core.sqlite"), None
    config = read_config(Path(args.config))
    return JournalReader(Path(config.data_dir) / "core.sqlite"), build_site(config)


def _time(text: str, option: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise _UsageError(
            f"{option} {text}: want an ISO 8601 time, e.g. 2026-03-01T14:05Z"
        ) from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _show(args: argparse.Namespace, report: _R, as_text: Callable[[_R], str]) -> None:
    print(_ENCODER.encode(report).decode() if args.json else as_text(report))

"""`hcp-agent miners`, and the one-off commands: told once, then asked after until seen."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from edge_agent.cli.client import (
    EXIT_OK,
    EXIT_PROBLEM,
    EXIT_REFUSED,
    EXIT_TIMED_OUT,
    act,
    ask,
)
from edge_agent.cli.render import age, number, table

TYPE_CHECKING = False  # typing itself takes 3 ms to import
if TYPE_CHECKING:
    from typing import Any

    Row = dict[str, Any]

ACTS = ("locate", "restart", "reboot", "mode", "limit", "percent")
_LABELS = ("rack", "row", "customer")
_POLL_S = 0.25


def add_miner_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], reader: argparse.ArgumentParser
) -> None:
    """Add the commands of this module to the parser."""
    miners = commands.add_parser("miners", parents=[reader], help="what each miner last said")
    miners.add_argument("pattern", nargs="?", default="*", help="device or glob")
    for name in _LABELS:
        miners.add_argument(f"--{name}", help=f"only miners of this {name} (glob)")
    helps = {
        "locate": "let the locate light of miners blink",
        "restart": "start the mining program of miners anew",
        "reboot": "reboot the control boards of miners",
        "mode": "set the power mode of miners: low, normal, high",
        "limit": "let miners draw at most so many watts",
        "percent": "let miners draw at most this share of their power",
    }
    for name in ACTS:
        parser = commands.add_parser(name, parents=[reader], help=helps[name])
        parser.add_argument("device", help="device or glob")
        parser.add_argument(
            "--wait", type=float, default=60.0, metavar="S", help="for the effect (default 60 s)"
        )
        if name == "locate":
            parser.add_argument("--off", action="store_true", help="put the light out")
        elif name == "mode":
            parser.add_argument("value", choices=("low", "normal", "high"))
        elif name in {"limit", "percent"}:
            parser.add_argument("value", type=int, metavar="W" if name == "limit" else "PERCENT")


def miners(args: argparse.Namespace, show: Callable[[Row, Callable[[Row], str]], None]) -> int:
    """List miners with their labels, what they are, do and draw, and how old that is."""
    query = {"pattern": args.pattern}
    query |= {name: getattr(args, name) for name in _LABELS if getattr(args, name)}
    value = ask(args.run_dir, "/v1/miners", query)
    show(value, lambda shown: _lines(shown["items"]))
    return EXIT_OK if value["items"] else EXIT_PROBLEM


def tell(args: argparse.Namespace, show: Callable[[Row, Callable[[Row], str]], None]) -> int:
    """Tell miners something and wait until the effect is seen on each."""
    said = getattr(args, "value", "off" if getattr(args, "off", False) else "")
    body = {"pattern": args.device, "verb": args.command, "value": str(said)}
    value: Row = act(args.run_dir, "/v1/acts", body)
    ends = time.monotonic() + args.wait
    while not value["ended"] and time.monotonic() < ends:
        time.sleep(_POLL_S)
        value = ask(args.run_dir, "/v1/acts", {"id": value["act_id"]})
    show(value, _outcomes)
    outcomes = {item["outcome"] for item in value["items"]}
    if outcomes == {"done"}:
        return EXIT_OK
    if outcomes & {"refused", "failed"}:
        return EXIT_PROBLEM
    return EXIT_REFUSED if "unsafe" in outcomes else EXIT_TIMED_OUT


def _outcomes(value: Row) -> str:
    rows = [[item["device_id"], item["outcome"], item["detail"]] for item in value["items"]]
    lines = table(["device", value["verb"], "detail"], rows)
    if not value["ended"]:
        lines.append(f"still under way; nothing is sent twice. Act {value['act_id']}")
    return "\n".join(lines)


def _lines(items: list[Row]) -> str:
    if not items:
        return "no miner matched"
    header = ["device", "address", "rack", "row", "customer", "model", "firmware", "state"]
    header += ["TH/s", "W", "C", "age", "error"]
    return "\n".join(table(header, [_cells(item) for item in items]))


def _cells(item: Row) -> list[str]:
    reading = item["reading"] or {}
    temp_c = reading.get("chip_temp_c_max") or reading.get("board_temp_c_max")
    return [
        item["device_id"],
        item["address"],
        item["rack"] or "-",
        item["row"] or "-",
        item["customer"] or "-",
        reading.get("model") or "-",
        reading.get("firmware") or "-",
        reading.get("state") or "-",
        number(reading.get("hashrate_ths"), "{:,.1f}"),
        number(reading.get("power_w"), "{:,.0f}"),
        number(temp_c, "{:.0f}"),
        age(item["age_s"]),
        item["error"] or "-",
    ]

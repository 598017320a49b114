"""The commands of `hcp-agent` and their options."""

import argparse

from edge_agent.cli.miners import add_miner_commands

DEFAULT_RUN_DIR = "/run/hcp-agent"
DEFAULT_DATA_DIR = "/var/lib/hcp-agent"
DEFAULT_CONFIG = "/etc/hcp-agent/agent.toml"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; a command's function is found by its name in ``commands``."""
    parser = argparse.ArgumentParser(
        prog="hcp-agent",
        description="The site agent: decides, switches and meters, with or without the network.",
        epilog="exit codes: 0 fine, 1 a problem was found, 2 usage, 3 agent not reachable, "
        "4 not allowed, 5 refused by a safety gate, 6 timed out",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_programs(commands)
    _add_backtest(commands)
    reader = _reader()
    add = commands.add_parser
    status = add("status", parents=[reader], help="the site at a glance, problems last")
    status.add_argument("--exit-code", action="store_true", help="1 when a problem was found")
    devices = add("devices", parents=[reader], help="one line per device")
    devices.add_argument("pattern", nargs="?", default="*", help="device or glob, e.g. 's21-00*'")
    devices.add_argument("--state", help="only devices in this activity, e.g. fault")
    devices.add_argument("--times", action="store_true", help="with each device's time ledger")
    why = add("why", parents=[reader], help="explain the decision on one device, with the numbers")
    why.add_argument("device")
    why.add_argument("--at", default="", help="the decision of then, e.g. 2026-03-01T14:05Z")
    _add_config(why)
    _add_replay(commands, reader)
    _add_days(commands, reader)
    add("plan", parents=[reader], help="what the agent would do now (a dry run)")
    switches = add("switches", parents=[reader], help="the last switches with their phase times")
    switches.add_argument("--limit", type=int, default=20, help="how many (default 20)")
    switches.add_argument("--failed", action="store_true", help="only those not committed")
    buffer = add("buffer", help="data not yet taken by the hub")
    inner = buffer.add_subparsers(dest="verb", required=True, metavar="VERB")
    inner.add_parser("show", parents=[reader], help="records, oldest, bytes per stream")
    _add_acts(commands, reader)
    add_miner_commands(commands, reader)
    _add_grid(commands, reader)
    return parser


def _add_programs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for name, text in (
        ("run", "run the site agent"),
        ("node", "run the node of one GPU host"),
        ("host", "run the workload host: gates, meters, engines and proxy of one GPU host"),
    ):
        program = commands.add_parser(name, help=text)
        program.add_argument("--config", required=True, help="TOML file")
    config = commands.add_parser("config", help="the configuration")
    inner = config.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = inner.add_parser("check", help="read and check a configuration file")
    check.add_argument("file", nargs="?", default=DEFAULT_CONFIG)
    check.add_argument(
        "--json", action="store_true", help="machine-readable, with schema version v"
    )
    # Parsers of their own read what follows these; here they stand for the help alone.
    commands.add_parser("bridge", help="look at miners: list, test, record, decode")
    commands.add_parser("gpu-control", help="set limits of GPUs for others (a service, as root)")
    commands.add_parser("reference", help="reference workloads: miner, inference")
    version = commands.add_parser("version", help="print the version")
    version.add_argument("--json", action="store_true", help="machine-readable")


def _add_backtest(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    backtest = commands.add_parser(
        "backtest", help="what policies would have earned over a span of real prices"
    )
    add = backtest.add_argument
    add("--market", required=True, help="directory of prices (CSV or parquet)")
    add("--site", required=True, help="the agent's TOML file")
    add("--policy", action="append", nargs="+", default=[], help="which (default: all)")
    add("--knowledge", choices=("nowcast", "settled"), default="nowcast", help="of the price")
    add("--from", dest="start", default="", help="first instant, ISO 8601 (UTC)")
    add("--to", dest="end", default="", help="end of the span")
    add("--price", default="", help="FILE[:COLUMN] of the settled price in the directory")
    add("--day-ahead", default="", help="FILE[:COLUMN] of the day-ahead price")
    add("--true-restart", type=float, default=1.0, help="true restart cost over the assumed one")
    add("--plot", default="", metavar="FILE", help="draw it, as .svg or .png (extra `plots`)")
    add(
        "--seed",
        type=int,
        default=None,
        help="of the caps and orders that the site's file asks for",
    )
    add("--json", action="store_true", help="machine-readable, with schema version v")


def _add_acts(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    reader: argparse.ArgumentParser,
) -> None:
    drain = commands.add_parser(
        "drain", parents=[reader], help="take devices out of work for maintenance"
    )
    drain.add_argument("device", help="device or glob")
    drain.add_argument("--for", dest="duration", default="", help="ends by itself, e.g. 2h, 30m")
    drain.add_argument("--reason", default="", help="kept with the act")
    undrain = commands.add_parser("undrain", parents=[reader], help="give devices back to work")
    undrain.add_argument("device", help="device or glob")


def _add_grid(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    reader: argparse.ArgumentParser,
) -> None:
    add = commands.add_parser
    add("market", parents=[reader], help="every feed's last values, their age and verdict")
    add("power", parents=[reader], help="cap, load, and the megawatts that can go in time")
    order = add("order", help="grid orders: curtail the site to a load by a time")
    inner = order.add_subparsers(dest="verb", required=True, metavar="VERB")
    new = inner.add_parser("add", parents=[reader], help="take an order")
    new.add_argument("--mw", type=float, required=True, help="load allowed at the meter")
    new.add_argument("--by", required=True, help="deadline: ISO 8601 (UTC), or from now: 10m")
    new.add_argument("--until", default="", help="end: ISO 8601 (UTC)")
    new.add_argument("--for", dest="duration", default="", help="or how long from then: 2h")
    new.add_argument("--id", dest="order_id", default="", help="the grid's own id of it")
    new.add_argument("--reason", default="", help="kept with the order")
    inner.add_parser("list", parents=[reader], help="asked, promised, achieved; newest first")
    cancel = inner.add_parser("cancel", parents=[reader], help="take an order back")
    cancel.add_argument("order_id", metavar="ID")


def _add_replay(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    reader: argparse.ArgumentParser,
) -> None:
    replay = commands.add_parser(
        "replay",
        parents=[reader],
        help="recompute each decision from the journal, and say the first difference",
        epilog="times are ISO 8601, UTC where no zone is given",
    )
    _add_config(replay)
    replay.add_argument("--from", dest="from_at", default="", help="start (default: the oldest)")
    replay.add_argument("--to", dest="to_at", default="", help="end (default: the newest)")
    replay.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="decide the span again with another value, e.g. limits.power_cap_w=45e6, "
        "market.price_usd_per_mwh=+20, feeder.F1.power_cap_w=x0.9; may be repeated",
    )
    replay.add_argument(
        "--keys", action="store_true", help="list every KEY that --what-if takes, with its value"
    )


def _add_days(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    reader: argparse.ArgumentParser,
) -> None:
    for name, text in (
        ("regret", "what a day earned, what a clairvoyant would have, and where the rest went"),
        ("report", "the day: regret, switches, hours, energy, power against the cap"),
    ):
        day = commands.add_parser(name, parents=[reader], help=text)
        day.add_argument("--day", required=True, help="YYYY-MM-DD, UTC")
        _add_config(day)
        day.add_argument(
            "--plot", default="", metavar="FILE", help="draw it, as .svg or .png (extra `plots`)"
        )
        day.add_argument(
            "--check-lp",
            action="store_true",
            help="solve the clairvoyant again as a linear programme (extra `hindsight`)",
        )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="", help="TOML file: names the data_dir, and the site of old rows"
    )


def _reader() -> argparse.ArgumentParser:
    reader = argparse.ArgumentParser(add_help=False)
    reader.add_argument(
        "--json", action="store_true", help="machine-readable, with schema version v"
    )
    reader.add_argument("--run-dir", default=DEFAULT_RUN_DIR, help="where the agent's sockets are")
    reader.add_argument("--data-dir", default=DEFAULT_DATA_DIR, help="where its data are")
    return reader

"""The command line of the hub.

The administrative commands open the store themselves, as a second process beside a running hub:
SQLite's write-ahead log and busy timeout let both write, one after the other. Each command is one
transaction. Exit codes: 0 fine, 1 a problem was found, 2 usage.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import sqlite3

    from hub.config import HubConfig
    from hub.ports import SupportsRead
    from hub.store.sites import SiteRow

T = TypeVar("T")

PASSWORD_MIN = 8
DEFAULT_CONFIG = "/etc/hcp-hub/hub.toml"
Command = Callable[[argparse.Namespace], int]


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of every command."""
    parser = argparse.ArgumentParser(prog="hcp-hub", description="the hub of the platform")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(commands, "serve", _serve, "run the hub")
    _add(commands, "migrate", _migrate, "bring the store's schema up to date")
    user = _group(commands, "user", "users")
    add = _add(user, "add", _user_add, "add a user")
    add.add_argument("--role", required=True, choices=("admin", "operator", "customer"))
    add.add_argument("--email", required=True)
    add.add_argument("--customer", help="customer id, for the role customer")
    add.add_argument("--password-stdin", action="store_true", required=True)
    site = _group(commands, "site", "sites")
    add = _add(site, "add", _site_add, "let a site connect")
    add.add_argument("--site", required=True, help="site id: lower case, digits, hyphens")
    add.add_argument("--name", help="for people; default: the site id")
    listed = _add(site, "list", _site_list, "list the sites")
    listed.add_argument("--all", action="store_true", help="with those that are retired")
    gone = _add(site, "retire", _site_retire, "give up a site that is gone for good")
    gone.add_argument("site", metavar="SITE", help="site id")
    gone.add_argument("--force", action="store_true", help="give up its open leases with it")
    _add_orders(_group(commands, "order", "grid orders: curtail a site to a load by a time"))
    card = _group(commands, "rate-card", "prices")
    add = _add(card, "add", _card_add, "add a version of the prices")
    add.add_argument("--from", dest="start", required=True, type=_time, help="whole UTC hour")
    add.add_argument(
        "--price", action="append", required=True, metavar="CLASS=USD_PER_H", type=_price
    )
    invoice = _group(commands, "invoice", "invoices")
    close = _add(invoice, "close", _invoice_close, "close a customer's period")
    close.add_argument("--customer", required=True)
    close.add_argument("--from", dest="start", required=True, type=_time, help="UTC minute")
    close.add_argument("--to", dest="end", required=True, type=_time, help="UTC minute")
    version = commands.add_parser("version", help="print the version")
    version.add_argument("--json", action="store_true")
    version.set_defaults(run=_version)
    return parser


def _add_orders(order: Any) -> None:  # noqa: ANN401 - argparse's type is private
    new = _add(order, "add", _order_add, "give a site an order")
    new.add_argument("site", metavar="SITE", help="site id")
    new.add_argument("--mw", type=float, required=True, help="load at the site's meter")
    new.add_argument("--by", dest="due", type=_time, required=True, help="UTC time")
    new.add_argument("--until", type=_time, required=True, help="UTC time")
    new.add_argument("--id", dest="order_id", help="the grid's own id of it")
    new.add_argument("--reason", default="", help="kept with the order")
    listed = _add(order, "list", _order_list, "show the orders of a site")
    listed.add_argument("site", metavar="SITE", help="site id")
    back = _add(order, "cancel", _order_cancel, "take an order back")
    back.add_argument("site", metavar="SITE", help="site id")
    back.add_argument("order_id", metavar="ID")


def main(argv: list[str] | None = None) -> int:
    """Run one command; gives its exit code."""
    args = build_parser().parse_args(argv)
    if args.command == "version":
        return _version(args)
    from hub.errors import HubError
    from protocol.settings import SettingsError

    run: Command = args.run
    try:
        return run(args)
    except HubError as exc:
        return _fail(args, exc.code, exc.detail)
    except SettingsError as exc:
        return _fail(args, exc.code, str(exc))
    except (ValueError, OSError) as exc:
        return _fail(args, "invalid" if isinstance(exc, ValueError) else "system", str(exc))


def _add(commands: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse's type is private
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--config", type=Path, default=Path(DEFAULT_CONFIG), metavar="FILE")
    if name != "serve":
        parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _group(commands: Any, name: str, text: str) -> Any:  # noqa: ANN401 - as above
    group = commands.add_parser(name, help=text)
    return group.add_subparsers(dest="verb", required=True, metavar="VERB")


def _serve(args: argparse.Namespace) -> int:
    from hub.main import run_server

    run_server(_config(args))
    return 0


def _migrate(args: argparse.Namespace) -> int:
    from hub.main import migrate_store

    applied = migrate_store(_config(args))
    text = "\n".join(f"applied {name}" for name in applied) or "nothing to do"
    return _say(args, {"applied": list(applied)}, text)


def _user_add(args: argparse.Namespace) -> int:
    import os

    from argon2 import PasswordHasher

    from hub.core.authz import Role
    from hub.errors import HubError
    from hub.store import users
    from protocol.ids import IdSource

    if args.customer is not None:
        _check_ident("--customer", args.customer)
    email = args.email.strip().lower()
    if email.count("@") != 1 or any(part == "" for part in email.split("@")):
        raise HubError("bad_email", "--email must be an e-mail address")
    password = sys.stdin.read().rstrip("\r\n")
    if len(password) < PASSWORD_MIN:
        raise HubError("short_password", f"a password has at least {PASSWORD_MIN} characters")
    now = _now()
    row = users.UserRow(
        user_id=IdSource(os.urandom).new("u", now),
        email=email,
        role=Role(args.role),
        customer_id=args.customer,
        password_hash=PasswordHasher().hash(password),
    )
    _write(args, lambda conn: users.add(conn, row, now))
    return _say(args, {"user_id": row.user_id}, f"added {email} as {args.role} ({row.user_id})")


def _site_add(args: argparse.Namespace) -> int:
    import re

    from hub.errors import HubError
    from hub.store import sites, sync_tables
    from protocol.topics import RESERVED_SITES

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", args.site) or args.site in RESERVED_SITES:
        raise HubError("bad_site", "--site: lower case letters, digits and hyphens, at most 63")
    now = _now()

    def job(connection: "sqlite3.Connection") -> bool:
        epoch = sync_tables.meta(connection, "hub_epoch")
        name = args.name or args.site
        return sites.add(connection, args.site, name=name, hub_epoch=epoch, now=now)

    if not _write(args, job):
        raise HubError("site_exists", f"there is a site {args.site} already")
    return _say(args, {"site_id": args.site}, f"added site {args.site}")


def _site_list(args: argparse.Namespace) -> int:
    from hub.store import leases, sites

    def look(store: "SupportsRead") -> "tuple[tuple[sites.SiteRow, ...], dict[str, int]]":
        return sites.list_sites(store, with_retired=args.all), leases.open_by_site(store)

    rows, held = _read(args, look)
    body = [_site_body(row, held.get(row.site_id, 0)) for row in rows]
    return _say(args, {"sites": body}, _site_table(body))


def _site_body(row: "SiteRow", open_leases: int) -> dict[str, Any]:
    def time(at: datetime | None) -> str | None:
        return None if at is None else at.isoformat()

    return {
        "site_id": row.site_id,
        "name": row.name,
        "online": row.online,
        "last_seen": time(row.last_seen),
        "reported_at": time(row.reported_at),
        "retired_at": time(row.retired_at),
        "agent_version": row.agent_version or None,
        "power_w": row.power_w,
        "power_cap_w": row.cap_w,
        "open_leases": open_leases,
        "classes": [
            {"device_class": one.device_class, "total": one.total, "free": one.free}
            for one in row.classes
        ],
    }


def _site_table(sites: list[dict[str, Any]]) -> str:
    if not sites:
        return "no sites; add one with hcp-hub site add"

    def mw(power_w: float | None) -> str:
        return "?" if power_w is None else f"{power_w / 1e6:.3f}"

    rows = [("site", "state", "last seen", "MW", "of MW", "leases", "free")]
    for one in sites:
        state = "retired" if one["retired_at"] else "online" if one["online"] else "offline"
        free = " ".join(f"{row['device_class']}:{row['free']}" for row in one["classes"])
        seen = "never" if one["last_seen"] is None else one["last_seen"][:19] + "Z"
        power, cap = mw(one["power_w"]), mw(one["power_cap_w"])
        rows.append((one["site_id"], state, seen, power, cap, str(one["open_leases"]), free or "?"))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _site_retire(args: argparse.Namespace) -> int:
    from hub.services.retire import retire

    done = _write(args, lambda conn: retire(conn, args.site, force=args.force, now=_now()))
    said = f"; gave up {', '.join(done.ended)}" if done.ended else ""
    text = f"retired site {done.site_id}{said}"
    return _say(args, {"site_id": done.site_id, "ended": list(done.ended)}, text)


def _order_add(args: argparse.Namespace) -> int:
    import os

    from hub.core.orders import order_fault
    from hub.errors import HubError
    from hub.store import orders
    from protocol.ids import IdSource
    from protocol.order import GridOrder, OrderState

    now = _now()
    fault = order_fault(args.mw, args.due, args.until, now)
    if fault is not None:
        raise HubError("bad_order", f"{fault.field}: {fault.detail}")
    order = GridOrder(
        order_id=args.order_id or IdSource(os.urandom).new("o", now),
        state=OrderState.STAND,
        limit_mw=args.mw,
        due_at=args.due,
        until_at=args.until,
        by=f"command line: {args.reason}".rstrip(": ")[:200],
    )

    def job(connection: "sqlite3.Connection") -> None:
        _check_site(connection, args.site)
        orders.give(connection, args.site, order, now)

    _write(args, job)
    text = f"order {order.order_id}: {args.site} to {args.mw:g} MW by {args.due.isoformat()}"
    return _say(args, {"order_id": order.order_id}, text)


def _order_list(args: argparse.Namespace) -> int:
    from hub.store import orders

    rows = _read(args, lambda store: orders.of_site(store, args.site))
    body: list[dict[str, Any]] = [
        {
            "order_id": row.order_id,
            "given_here": row.state is not None,
            "limit_mw": row.limit_mw,
            "due_at": None if row.due_at is None else row.due_at.isoformat(),
            "until_at": None if row.until_at is None else row.until_at.isoformat(),
            "status": row.status,
            "why": "" if row.report is None else row.report.why,
        }
        for row in rows
    ]
    lines = [
        f"{one['order_id']}  {one['status']:<9}  {one['limit_mw']} MW"
        f"  {one['due_at']} to {one['until_at']}  {one['why']}".rstrip()
        for one in body
    ]
    return _say(args, {"orders": body}, "\n".join(lines) or f"no orders of {args.site}")


def _order_cancel(args: argparse.Namespace) -> int:
    from hub.errors import HubError
    from hub.store import orders

    row = _write(args, lambda conn: orders.cancel(conn, args.site, args.order_id, _now()))
    if row is None:
        raise HubError("no_order", f"the hub gave {args.site} no order {args.order_id}")
    return _say(args, {"order_id": row.order_id}, f"order {row.order_id} taken back")


def _check_site(connection: "sqlite3.Connection", site_id: str) -> None:
    from hub.errors import HubError
    from hub.store import sites

    row = sites.get(connection, site_id)
    if row is None or row.retired_at is not None:
        raise HubError("no_site", f"there is no site {site_id}")


def _card_add(args: argparse.Namespace) -> int:
    from hub.core.rating import ClassPrice
    from hub.store import rate_cards
    from protocol.units import parse_usd

    for name, _ in args.price:
        _check_ident("--price", name)
    prices = [
        ClassPrice(device_class=name, price_usd_per_h=parse_usd(f"--price {name}", usd))
        for name, usd in args.price
    ]
    card = _write(args, lambda conn: rate_cards.add(conn, args.start, prices, _now()))
    text = f"added version {card.version}, in force from {args.start.isoformat()}"
    return _say(args, {"version": card.version}, text)


def _invoice_close(args: argparse.Namespace) -> int:
    from hub.core.invoicing import Period, encode_invoice
    from hub.store import invoices

    period = Period(start=args.start, end=args.end)
    invoice = _write(args, lambda conn: invoices.close_period(conn, args.customer, period, _now()))
    lines = [
        f"{invoice.invoice_id}  {invoice.customer_id}  {period.text}"
        + (f"  estimated, without {', '.join(invoice.missing_sites)}" * invoice.estimated)
    ]
    lines += [
        f"{line.amount_usd:>12}  {line.active_ms / 3_600_000:.6f} h"
        f" at {line.price_usd_per_h}  {line.description}"
        for line in invoice.lines
    ]
    lines.append(f"{invoice.total_usd:>12}  USD")
    return _say(args, json.loads(encode_invoice(invoice)), "\n".join(lines))


def _version(args: argparse.Namespace) -> int:
    from hub.version import VERSION

    return _say(args, {"version": VERSION}, f"hcp-hub {VERSION}")


def _config(args: argparse.Namespace) -> "HubConfig":
    from hub.config import read_config

    return read_config(args.config)


def _write(args: argparse.Namespace, job: "Callable[[sqlite3.Connection], T]") -> "T":
    """Run one transaction in the store, beside a running hub or without one."""
    from hub.store.database import connect
    from hub.store.writer import run_in_transaction

    with closing(connect(_store_path(args))) as connection:
        _check_schema(connection)
        return run_in_transaction(connection, job)


def _read(args: argparse.Namespace, look: "Callable[[SupportsRead], T]") -> "T":
    """Look at one snapshot of the store, beside a running hub or without one."""
    from hub.store.database import QueryOnly, connect_query_only

    with closing(connect_query_only(_store_path(args))) as connection:
        _check_schema(connection)
        connection.execute("BEGIN")
        return look(QueryOnly(connection))


def _store_path(args: argparse.Namespace) -> Path:
    from hub.errors import HubError

    path = _config(args).store_path
    if not path.is_file():
        raise HubError("no_store", f"{path} is not there; run hcp-hub migrate")
    return path


def _check_schema(connection: "sqlite3.Connection") -> None:
    from hub.errors import HubError
    from hub.store.migrations import pending
    from hub.store.schema import MIGRATIONS

    if pending(connection, MIGRATIONS):
        raise HubError("schema_older", "the store is older than this program; run hcp-hub migrate")


def _now() -> datetime:
    from hub.clock import SystemClock

    return SystemClock().wall()


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.utcoffset() != timedelta(0):
        raise argparse.ArgumentTypeError(f"{text} must be UTC: end it with Z")
    return at


def _price(text: str) -> tuple[str, str]:
    name, equals, usd = text.partition("=")
    if not (name and equals and usd):
        raise argparse.ArgumentTypeError(f"{text} must be CLASS=USD_PER_H")
    return name, usd


def _check_ident(option: str, text: str) -> None:
    """Refuse a name that no request could say."""
    import msgspec

    from hub.errors import HubError
    from protocol.units import Ident

    try:
        msgspec.convert(text, Ident)
    except msgspec.ValidationError as exc:
        detail = f"{option} {text!r}: letters, digits and . _ : - only"
        raise HubError("bad_name", detail) from exc


def _say(args: argparse.Namespace, body: dict[str, Any], text: str) -> int:
    print(json.dumps({"v": 1, **body}) if args.json else text)
    return 0


def _fail(args: argparse.Namespace, code: str, detail: str) -> int:
    if getattr(args, "json", False):
        print(json.dumps({"v": 1, "error": {"code": code, "detail": detail}}))
    else:
        print(f"hcp-hub: {detail}", file=sys.stderr)
    return 1

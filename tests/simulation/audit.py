"""The books at the end: usage and invoices against the truth, switches, replay."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from typing import Any

from edge_agent.core import power
from edge_agent.core.facts import (
    HoldMode,
    Instant,
    OperatorHeld,
    PrepareEnded,
    PrepareSaid,
    SwitchClosed,
    SwitchOpened,
    TickRow,
    decode_row,
)
from edge_agent.core.site import FAULT, UNKNOWN
from edge_agent.core.site_state import SiteState
from edge_agent.core.switching import decode_switch
from edge_agent.services.journal_walk import Walk
from edge_agent.services.replay import replay
from edge_agent.storage.journal_reader import JournalReader
from hub.core.invoicing import Invoice, Period
from hub.errors import HubError
from hub.store import invoices
from hub.store.writer import run_in_transaction
from protocol import codec
from protocol.errors import DecodeError
from protocol.units import EPOCH
from protocol.usage import UsageRecord
from simulators.faults import SiteFaultKind
from tests.simulation.scenario import CUSTOMERS, PRICES, START
from tests.simulation.truth import Stay, Truth
from tests.simulation.world import SiteWorld, World

# The deadlines of every phase of the longest switch, rollback included, come to less.
SWITCH_S_MAX = 240.0
ROUND_W = 1.0
MONEY_REASONS = ("gain", "ski_rental", "step_gain", "step_overdue", "step_trade")
FINAL_STATES = ("completed", "failed", "cancelled", "expired")


def audit(world: World, truth: Truth) -> dict[str, int]:
    """Check the books; problems go to the world. Gives what was counted."""
    connection = sqlite3.connect(world.hub_path, isolation_level=None)
    counts = defaultdict[str, int](int)
    metered = _usage(world, truth, connection, counts)
    _workloads(world, truth, connection, counts)
    _bills(world, truth, metered, connection, counts)
    connection.close()
    _telemetry(world, counts)
    _watermarks(world)
    for site in world.sites.values():
        _journal(world, site, counts)
    return dict(sorted(counts.items()))


# interval_no, start_ms, end_ms, active_ms, energy_j
Row = tuple[int, int, int, int, int]


class _Metered:
    """What the hub holds of one instance, quarantine included."""

    def __init__(self) -> None:
        self.accepted: list[Row] = []
        self.quarantined: list[Row] = []

    def rows(self) -> list[Row]:
        """Give all intervals."""
        return sorted([*self.accepted, *self.held()])

    def held(self) -> list[Row]:
        """Give those in quarantine once each, less those of which another version is accepted.

        An older copy of an edge store sends again what the hub has put into quarantine before.
        """
        known = {row[0] for row in self.accepted}
        return [row for row in dict.fromkeys(self.quarantined) if row[0] not in known]


Key = tuple[str, str, int, str, str]


def _usage(
    world: World, truth: Truth, connection: sqlite3.Connection, counts: dict[str, int]
) -> dict[Key, _Metered]:
    found = defaultdict[Key, _Metered](_Metered)
    for row in connection.execute(
        "SELECT site_id, lease_id, attempt, device_id, instance_id, interval_no, start_ms, end_ms,"
        " active_ms, energy_j FROM usage"
    ):
        found[row[:5]].accepted.append(row[5:])
        counts["usage"] += 1
    for code, body in connection.execute(
        "SELECT code, body FROM quarantine ORDER BY quarantine_id"
    ):
        counts[f"quarantine_{code}"] += 1
        try:
            item = codec.USAGE_ITEM.decode(body)
        except DecodeError:
            continue
        if isinstance(item, UsageRecord):
            key = (item.site_id, item.lease_id, item.attempt, item.device_id, item.instance_id)
            start_ms, end_ms = _ms(item.start), _ms(item.end)
            row = (item.interval_no, start_ms, end_ms, item.active_ms, item.energy_j)
            found[key].quarantined.append(row)
    expected = {
        (stay.site_id, stay.lease_id, stay.attempt, stay.device_id, stay.instance_id): stay
        for stay in truth.stays.values()
    }
    counts["stays"] = len(expected)
    for key in sorted(expected.keys() | found.keys()):
        _compare(world, key, expected.get(key), found[key])
    _overlaps(world, found)
    return found


def _compare(world: World, key: Key, stay: Stay | None, metered: _Metered) -> None:
    rows = metered.rows()
    total_ms = sum(row[3] for row in rows)
    if stay is None:
        if total_ms:
            world.problem(f"usage without truth: {key}: {total_ms} ms")
        return
    if rows and [row[0] for row in rows] != list(range(len(rows))):
        world.problem(f"usage of {key} has intervals {[row[0] for row in rows]}")
    missing_ms = stay.served_ms - total_ms
    if not 0 <= missing_ms <= stay.loss_ms_max:
        world.problem(
            f"usage of {key}: {total_ms} ms of {stay.served_ms} ms in {len(rows)} intervals,"
            f" at most {stay.loss_ms_max} ms may be missing"
        )
    energy_j = sum(row[4] for row in rows)
    if not stay.loss_ms_max and energy_j != stay.energy_j:
        world.problem(f"energy of {key}: {energy_j} J of {stay.energy_j} J")


def _overlaps(world: World, found: dict[Key, _Metered]) -> None:
    by_device = defaultdict[tuple[str, str], list[tuple[int, int, str]]](list)
    for (site_id, _, _, device_id, instance_id), metered in found.items():
        for _, start_ms, end_ms, _, _ in metered.rows():
            by_device[(site_id, device_id)].append((start_ms, end_ms, instance_id))
    for (site_id, device_id), rows in sorted(by_device.items()):
        rows.sort()
        for one, other in pairwise(rows):
            if other[0] < one[1]:
                world.problem(f"usage of {site_id} {device_id} overlaps: {one} {other}")
                break


def _workloads(
    world: World, truth: Truth, connection: sqlite3.Connection, counts: dict[str, int]
) -> None:
    run_s = {order.workload_id: order.run_s for order in world.scenario.orders}
    expires = {order.workload_id: order.expires_at_s for order in world.scenario.orders}
    for workload_id, state, count, attempt, cancelled_ms, reason in connection.execute(
        "SELECT workload_id, state, count, attempt, cancel_accepted_at_ms, reason FROM workloads"
    ):
        counts[f"workloads_{state}"] += 1
        stays = [stay for stay in truth.stays.values() if stay.workload_id == workload_id]
        done = [stay for stay in stays if stay.attempt == attempt and stay.completed]
        if state not in FINAL_STATES:
            world.problem(f"{workload_id} is still {state} ({reason}) at the end")
        if state == "completed" and len(done) < count:
            world.problem(f"{workload_id} completed with {len(done)} of {count} instances")
        if state == "cancelled" and cancelled_ms is None:
            world.problem(f"{workload_id} is cancelled and nobody asked for it")
        if state == "expired" and not expires[workload_id]:
            world.problem(f"{workload_id} is expired and has no end")
        if any(stay.served_ms > (run_s[workload_id] or 10**9) * 1_000 for stay in stays):
            world.problem(f"{workload_id} served longer than it asked for")
    (not_released,) = connection.execute(
        "SELECT count(*) FROM leases WHERE released_at_ms IS NULL"
    ).fetchone()
    if not_released:
        world.problem(f"{not_released} leases are not released at the end")


def _telemetry(world: World, counts: dict[str, int]) -> None:
    """Check that each batch stands once, and that no store has a hole which nobody declared."""
    rows = [(row.store_id, row.record.seq) for row in world.metrics.rows]
    counts["telemetry"] += len(rows)
    if len(set(rows)) != len(rows):
        world.problem("a telemetry batch stands twice")
    for store_id in sorted({store_id for store_id, _ in rows}):
        known = world.metrics.known(store_id)
        last = max(seq for one, seq in rows if one == store_id)
        holes = [seq for seq in range(1, last + 1) if not known.holds(seq)]
        if holes:
            world.problem(f"telemetry of {store_id} has holes {holes[:10]} below {last}")


def _watermarks(world: World) -> None:
    """Check that the hub knows no more of a store than the store itself, and all of its usage."""
    hub = sqlite3.connect(world.hub_path)
    for site in world.sites.values():
        core = sqlite3.connect(site.core_path)
        (store_id,) = core.execute("SELECT store_id FROM store ORDER BY no DESC LIMIT 1").fetchone()
        heads = dict(core.execute("SELECT name, next_seq FROM log"))
        core.close()
        for stream, wm in hub.execute(
            "SELECT stream, wm FROM streams WHERE store_id = ?", (store_id,)
        ):
            if wm >= heads[stream] or (stream == "usage" and wm < heads[stream] - 2):
                world.problem(f"{site.site_id}: hub has {stream} up to {wm} of {heads[stream] - 1}")
    hub.close()


# --- invoices ---------------------------------------------------------------------------------


def _bills(
    world: World,
    truth: Truth,
    metered: dict[Key, _Metered],
    connection: sqlite3.Connection,
    counts: dict[str, int],
) -> None:
    now = world.hub_clock.wall()
    end = now.replace(second=0, microsecond=0) - timedelta(minutes=1)
    period = Period(start=START.replace(second=0, microsecond=0), end=end)
    orders = {order.workload_id: order for order in world.scenario.orders}
    cancelled: dict[str, int | None] = dict(
        connection.execute("SELECT workload_id, cancel_accepted_at_ms FROM workloads")
    )
    for customer_id in CUSTOMERS:
        owned = {key for key, order in orders.items() if order.customer_id == customer_id}
        if not owned & cancelled.keys():
            continue
        try:
            invoice = _close(connection, customer_id, period, now)
        except HubError as exc:
            world.problem(f"invoice of {customer_id}: {exc}")
            continue
        expected = _expected_usd(world, truth, metered, owned, cancelled, orders)
        counts["invoice_cents"] += int(invoice.total_usd * 100)
        if invoice.total_usd != expected:
            world.problem(f"invoice of {customer_id}: {invoice.total_usd} USD, truth {expected}")


def _close(
    connection: sqlite3.Connection, customer_id: str, period: Period, now: datetime
) -> Invoice:
    return run_in_transaction(
        connection, lambda conn: invoices.close_period(conn, customer_id, period, now)
    )


def _expected_usd(
    world: World,
    truth: Truth,
    metered: dict[Key, _Metered],
    owned: set[str],
    cancelled: dict[str, int | None],
    orders: dict[str, Any],
) -> Decimal:
    """Rate the truth by hand: milliseconds by workload and price, a line each, half up."""
    lines = defaultdict[tuple[str, Decimal], int](int)
    for stay in truth.stays.values():
        if stay.workload_id not in owned:
            continue
        key = (stay.site_id, stay.lease_id, stay.attempt, stay.device_id, stay.instance_id)
        stepped = any(
            fault.kind is SiteFaultKind.CLOCK_STEP and fault.target == f"node-{stay.site_id}"
            for fault in world.scenario.faults
        )
        for minute, active_ms in _billable(stay, metered[key], stepped=stepped):
            accepted_ms = cancelled.get(stay.workload_id)
            if accepted_ms is not None and minute * 60_000 > accepted_ms:
                continue
            start = EPOCH + timedelta(minutes=minute)
            price = [usd for at, usd in PRICES if at <= start][-1]
            limit = orders[stay.workload_id].max_price_usd_per_h
            if limit is not None:
                price = min(price, limit)
            lines[(stay.workload_id, price)] += active_ms
    return sum(
        (
            (price * active_ms / 3_600_000).quantize(Decimal("0.01"), ROUND_HALF_UP)
            for (_, price), active_ms in lines.items()
        ),
        Decimal("0.00"),
    )


def _billable(stay: Stay, metered: _Metered, *, stepped: bool) -> Iterable[tuple[int, int]]:
    """Give (minute, ms) to be billed: the truth, less what stands in quarantine.

    As metered, where the books may put it otherwise: a stay that may lack some; and the minutes of
    a host whose wall was stepped, as stamps never go back. Their sums were compared.
    """
    if stay.loss_ms_max or stepped:
        return [(row[1] // 60_000, row[3]) for row in metered.accepted]
    held = defaultdict[int, int](int)
    for _, start_ms, _, active_ms, _ in metered.held():
        held[start_ms // 60_000] += active_ms
    return [(minute, active_ms - held.get(minute, 0)) for minute, active_ms in stay.minutes]


# --- journal ----------------------------------------------------------------------------------


def _journal(world: World, site: SiteWorld, counts: dict[str, int]) -> None:
    connection = sqlite3.connect(site.core_path)
    rows = [
        decode_row(body) for (body,) in connection.execute("SELECT body FROM journal ORDER BY seq")
    ]
    open_switches = [
        decode_switch(body)
        for (body,) in connection.execute("SELECT body FROM switch WHERE closed = 0")
    ]
    reports = _switch_reports(connection)
    connection.close()
    counts["journal_rows"] += len(rows)
    for fact in (fact for row in rows for fact in row.acts):
        if isinstance(fact, PrepareEnded):
            counts[f"prepared_{fact.outcome.value}"] += 1
    for switch in open_switches:
        age_s = (rows[-1].instant.now_ns - switch.opened_ns) / 1e9
        if age_s > SWITCH_S_MAX:
            world.problem(f"{site.site_id}: a switch is open for {age_s:.0f} s: {switch}")
    for report in reports:
        counts["switches"] += 1
        counts["mode_changes"] += report.committed if report.mode else 0
        counts["switches_undone"] += report.rolled_back + report.quarantined
        if report.committed + report.rolled_back + report.quarantined != report.devices:
            world.problem(f"{site.site_id}: switch {report.switch_id} ended half: {report}")
        gain, cost = report.expected_gain_usd, report.switch_cost_usd
        if report.reason in MONEY_REASONS:
            counts["switches_for_money"] += 1
            if gain is None or cost is None or gain <= cost:
                world.problem(f"{site.site_id}: switch for {gain} USD at a cost of {cost} USD")
    counts["drains"] += sum(
        isinstance(fact, OperatorHeld) and fact.mode is HoldMode.DRAIN
        for row in rows
        for fact in row.facts
    )
    _dwell(world, site, rows)
    if site.number % 2 == world.seed % 2:
        _replay(world, site)


def _switch_reports(connection: sqlite3.Connection) -> list[Any]:
    rows = connection.execute(
        "SELECT body FROM outbox WHERE stream = 'event' ORDER BY store_no, seq"
    )
    items = [codec.EVENT_ITEM.decode(body) for (body,) in rows]
    return [item for item in items if type(item).__name__ == "SwitchReport"]


def _dwell(world: World, site: SiteWorld, rows: list[TickRow]) -> None:
    """Check that no device changed for money before its least stay was over."""
    dwell_s = {row.class_name: row.dwell_s for row in site.site.classes}
    class_of = {device.device_id: device.device_class for device in site.site.devices}
    since_ns: dict[str, int] = {}
    # A change of power mode lets the stay in the activity go on, and has a least stay of its own.
    any_ns: dict[str, int] = {}
    now_ns, last = 0, rows[0].instant
    for row in rows:
        now_ns += _passed_ns(last, row.instant)
        last = row.instant
        for fact in (*row.facts, *row.acts):
            if isinstance(fact, SwitchClosed):
                any_ns.update(dict.fromkeys(fact.device_ids, now_ns))
                since_ns.update({} if fact.mode else dict.fromkeys(fact.device_ids, now_ns))
            elif isinstance(fact, SwitchOpened) and fact.reason in MONEY_REASONS:
                for device_id in fact.device_ids:
                    began = any_ns if fact.mode else since_ns
                    stayed_s = (now_ns - began.get(device_id, -(10**18))) / 1e9
                    if stayed_s < dwell_s[class_of[device_id]]:
                        world.problem(f"{device_id} changed for money after {stayed_s:.1f} s")


def _passed_ns(before: Instant, after: Instant) -> int:
    """Give the time between two rows; between two boots only the wall knows it."""
    if before.boot_id == after.boot_id:
        return after.now_ns - before.now_ns
    return (after.wall - before.wall) // timedelta(microseconds=1) * 1_000


def _replay(world: World, site: SiteWorld) -> None:
    """Replay the journal: every decision, act, snapshot and the last state come out the same."""
    reader = JournalReader(site.core_path)
    report = replay(reader)
    reader.close()
    for found in report.differences[:1]:
        world.problem(f"{site.site_id}: the replay differs: {found}")
    _counted(world, site)
    if report.unkept:
        world.problem(f"{site.site_id}: {report.unkept} decisions were not kept")
    if site.last_hash is not None and report.state_hash != site.last_hash.hex():
        world.problem(f"{site.site_id}: the replay of {report.rows} rows differs from the state")


def _counted(world: World, site: SiteWorld) -> None:
    """Look for words on engines held ready that raised the counted power above the cap."""
    reader = JournalReader(site.core_path)
    for step in Walk(reader).steps(plans=False):
        told = any(isinstance(fact, PrepareSaid) for fact in step.row.facts)
        if not (step.checked and told and _all_known(step.before) and _all_known(step.entered)):
            continue
        before, after = (power.view(step.site, one) for one in (step.before, step.entered))
        above_w = after.counted_w - after.cap_w
        if above_w > ROUND_W and before.counted_w <= before.cap_w and before.cap_w == after.cap_w:
            facts = [type(fact).__name__ for fact in step.row.facts]
            world.problem(f"{site.site_id}: {facts} counts {above_w:.0f} W above the cap")
            break
    reader.close()


def _all_known(state: SiteState) -> bool:
    unknown = (state.activity == UNKNOWN) | (state.activity == FAULT)
    return bool(state.reachable.all()) and not unknown.any()


def _ms(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)

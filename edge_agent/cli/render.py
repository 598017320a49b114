"""JSON of the agent -> text for a person, at most 80 columns where the content allows."""

from __future__ import annotations

from edge_agent.cli.render_mode import why_mode

TYPE_CHECKING = False  # typing itself takes 3 ms to import
if TYPE_CHECKING:
    from typing import Any

    Row = dict[str, Any]


_ACTIVITIES = ("serve", "mine", "idle", "curtailed", "switching", "maintenance", "fault", "unknown")

# What a why adds when there is something to say.
_NOTES = (
    ("doubt", "price_doubt"),
    ("order", "grid_order"),
    ("peak", "peak"),
    ("prepared", "prepared"),
    ("fenced", "fence"),
)


def status(value: Row) -> str:
    """Render ``status``: the site, its links, money, fleet, problems last."""
    site, hub = value["site"], value["hub"]
    market = {row["name"]: row for row in site["market"]}
    price, coin, switches = market["price_usd_per_mwh"], market["btc_price_usd"], site["switches"]
    state = "DEGRADED" if site["problems"] else "OK"
    lines = [
        f"{site['site_id']}  {state}  up {duration(value['up_s'])}  v{value['version']}",
        (
            f"hub     {'online' if hub['online'] else 'OFFLINE'}, heard "
            f"{age(hub['heard_age_s'])}, backlog {hub['backlog']:,} records"
        ),
        (
            f"market  {number(price['value'], '{:,.2f}')} USD/MWh ({age(price['age_s'])}), "
            f"BTC {number(coin['value'], '{:,.0f}')} USD"
        ),
        (
            f"power   {watts(site['power_w'])} measured, {watts(site['power_counted_w'])} counted "
            f"of {watts(site['power_cap_w'])}"
        ),
        *(_feeder(row) for row in site.get("feeders", ())),
        f"earning {number(site['earning_usd_per_h'], '{:,.2f}')} USD/h",
        (
            f"switch  {switches['count']:,} done, {switches['open']:,} open, "
            f"p50 {number(switches['p50_ms'], '{:.0f}')} ms, "
            f"p99 {number(switches['p99_ms'], '{:.0f}')} ms, "
            f"rolled back {switches['rolled_back']:,}"
        ),
        *_prewarm(site.get("prewarm")),
        "",
        *_fleet(site["classes"]),
    ]
    if site["problems"]:
        lines.append("")
    lines += [
        f"! {problem['code']:<18} {problem['detail']}  -> {problem['next_command']}"
        for problem in site["problems"]
    ]
    return "\n".join(lines)


def _prewarm(row: Row | None) -> list[str]:
    """Say what is held ready for likely switches; nothing where it is off, or never was used."""
    if row is None or not any(row.values()):
        return []
    return [
        (
            f"ahead   {row['ready']:,} of {row['asked']:,} ready; used {row['used']:,}, "
            f"late {row['late']:,}, wasted {row['wasted']:,}, failed {row['failed']:,}"
        )
    ]


def _feeder(row: Row) -> str:
    return (
        f"feeder  {row['name']}: {watts(row['measured_w'])} measured, "
        f"{watts(row['counted_w'])} counted of {watts(row['cap_w'])}"
    )


def _fleet(classes: list[Row]) -> list[str]:
    present = [name for name in _ACTIVITIES if any(row["by_activity"].get(name) for row in classes)]
    body = [
        [row["device_class"], f"{row['total']:,}"]
        + [f"{row['by_activity'].get(name, 0):,}" for name in present]
        for row in classes
    ]
    lines = table(["class", "total", *present], body)
    for row in classes:
        if row.get("by_mode"):
            shares = ", ".join(f"{count:,} {mode}" for mode, count in row["by_mode"].items())
            lines.append(f"modes of {row['device_class']}: {shares}")
    return lines


def devices(items: list[Row]) -> str:
    """Render ``devices``: one line each."""
    body = [
        [
            row["device_id"],
            row["device_class"],
            " ".join(filter(None, (row["activity"], row.get("mode"))))
            + ("" if row["reachable"] else " (silent)"),
            duration(row["since_s"]),
            number(row["power_w"], "{:,.0f}"),
            number(row["temp_c"], "{:.0f}"),
            number(row["hashrate_ths"], "{:,.1f}"),
            row["lease_id"] or "-",
            row["reason"] or "-",
        ]
        for row in (item["device"] for item in items)
    ]
    header = ["device", "class", "activity", "since", "W", "C", "TH/s", "lease", "reason"]
    return "\n".join([*table(header, body), f"{len(items):,} devices"])


def why(value: Row) -> str:
    """Render ``why``: options, money, gates, verdict, what would change it."""
    lease = f"  lease {value['lease_id']}" if value["lease_id"] else ""
    lines = [
        (
            f"{value['device_id']}  {value['activity'].upper()} for {duration(value['since_s'])}"
            f"  ({value['device_class']}){lease}"
        ),
        (
            f"price     {number(value['price_usd_per_mwh'], '{:,.2f}')} USD/MWh "
            f"({age(value['price_age_s'])}), break-even "
            f"{number(value['break_even_usd_per_mwh'], '{:,.2f}')}"
        ),
        *(f"{name:<9} {value[key]}" for name, key in _NOTES if value.get(key)),
        "",
    ]
    body = [
        [
            option["activity"],
            number(option["revenue_usd_per_h"], "{:,.4f}"),
            number(option["energy_usd_per_h"], "{:,.4f}"),
            number(option["margin_usd_per_h"], "{:,.4f}"),
            f"{option['power_w']:,.0f}",
            "best" if option["activity"] == value["best"] else "",
            option["note"],
        ]
        for option in value["options"]
    ]
    lines += table(["USD/h", "revenue", "energy", "net", "W", "", ""], body)
    lines += [
        f"gain      {number(value['gain_usd'], '{:+,.4f}')} USD over the expected stay",
        f"cost      {number(value['cost_usd'], '{:,.4f}')} USD to change",
        "",
    ]
    lines += [
        f"  {'ok' if gate['ok'] else 'NO'}  {gate['name']}: {gate['detail']}"
        for gate in value["gates"]
    ]
    lines.append(f"so        {value['verdict']}")
    lines += [f"changes if  {text}" for text in value["would_change"]]
    lines += why_mode(value.get("mode"))
    return "\n".join(lines)


def plan(value: Row) -> str:
    """Render ``plan``: what would be done now."""
    power = value["power"]
    lines = [
        (
            f"power {watts(power['counted_w'])} counted of {watts(power['cap_w'])}, "
            f"free {watts(power['headroom_w'])}"
        )
    ]
    allocation = value.get("allocation")
    if allocation is not None:
        lines.append(
            f"mining {allocation['worth_usd_per_h']:,.2f} USD/h; the best under the cap is at most "
            f"{allocation['gap_usd_per_h']:,.4f} more"
        )
        lines += _modes(allocation["modes"])
    lines += [
        f"{row['devices']:>6} x {row['device_class']}: {row['from_activity']} -> "
        f"{row.get('mode') or row['to_activity']}  {row['reason']}  "
        f"gain {number(row['gain_usd'], '{:+,.4f}')} USD, "
        f"cost {number(row['cost_usd'], '{:,.4f}')} USD"
        for row in value["intents"]
    ]
    lines += value["lease_acts"]
    if not value["intents"] and not value["lease_acts"]:
        lines.append("nothing to do")
    lines += [f"{count:>6} devices: {reason}" for reason, count in value["reasons"]]
    lines += [f"{count:>6} modes:   {reason}" for reason, count in value.get("mode_reasons", ())]
    return "\n".join(lines)


def _modes(advice: Row | None) -> list[str]:
    if advice is None:
        return []
    shares = ", ".join(
        f"{row['devices']:,} {row['device_class']} {row['mode']}" for row in advice["shares"]
    )
    return [f"best modes {shares}: {advice['worth_usd_per_h']:,.2f} USD/h (not set by the agent)"]


def switches(rows: list[Row]) -> str:
    """Render ``switches``: newest first, with phase times."""
    body = [
        [
            row["at"][11:19],
            row["switch_id"],
            f"{row['devices']} x {row['device_class']}",
            f"mode {row['mode']}"
            if row.get("mode")
            else f"{row['from_activity']}>{row['to_activity']}",
            f"{row['took_us'] / 1_000:,.1f}",
            switch_outcome(row),
            row["reason"],
            " ".join(f"{name} {took_us / 1_000:.1f}" for name, took_us in row["phases"]),
        ]
        for row in rows
    ]
    return "\n".join(
        table(["at", "switch", "devices", "change", "ms", "outcome", "reason", "phases ms"], body)
    )


def switch_outcome(row: Row) -> str:
    """Name how a switch ended: all committed, or how many were not."""
    if row["committed"] == row["devices"]:
        return "committed"
    parts = [f"{row[name]} {name}" for name in ("committed", "rolled_back", "quarantined")]
    return ", ".join(part for part in parts if not part.startswith("0 "))


def buffer(value: Row) -> str:
    """Render ``buffer show``."""
    body = [
        [row["stream"], f"{row['pending']:,}", f"{row['bytes']:,}", age(row["oldest_age_s"])]
        for row in value["streams"]
    ]
    return "\n".join(
        [
            *table(["stream", "pending", "bytes", "oldest"], body),
            (
                f"telemetry on disk {value['segment_bytes']:,} bytes, level {value['level']}, "
                f"{value['dropped_segments']:,} segments dropped"
            ),
        ]
    )


def undrained(value: Row) -> str:
    """Render what became of devices that were given back, and of their fences in plain words."""
    if not value["devices"]:
        return "no device matched"
    words = {
        "asked": "no answer yet",
        "done": "fence released",
        "refused": "fence NOT released",
        "away": "fence NOT released",
        "unknown": "fence perhaps released",
    }
    fences = {row["device_id"]: row for row in value["releases"]}
    lines = []
    for name in value["devices"]:
        row = fences.get(name)
        said = "" if row is None else f"; {words[row['outcome']]}: {row['detail']}"
        lines.append(f"{name}  no longer held{said}")
    return "\n".join(lines)


def table(header: list[str], body: list[list[str]]) -> list[str]:
    """Align columns: text to the left, numbers to the right."""
    if not body:
        return ["(none)"]
    widths = [
        max(len(header[column]), *(len(row[column]) for row in body))
        for column in range(len(header))
    ]
    right = [
        all(_is_number(row[column]) for row in body) and column > 0 for column in range(len(header))
    ]

    def line(cells: list[str]) -> str:
        parts = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return [line(header), *(line(row) for row in body)]


def number(value: float | None, form: str) -> str:
    """Format a number; unknown is ``?``, never 0."""
    return "?" if value is None else form.format(value)


def watts(value: float | None) -> str:
    """Format power with a fitting unit."""
    if value is None:
        return "?"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.2f} MW"
    return f"{value / 1e3:,.1f} kW" if abs(value) >= 1e3 else f"{value:,.0f} W"


def duration(seconds: float | None) -> str:
    """Format an elapsed time in two units at most."""
    if seconds is None:
        return "?"
    whole = int(seconds)
    for size, unit, next_size, next_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // next_size} {next_unit}"
    return f"{whole} s"


def age(seconds: float | None) -> str:
    """Format an age; None is never."""
    return "never" if seconds is None else f"{duration(seconds)} ago"


def _is_number(text: str) -> bool:
    return text in {"?", "-", ""} or text.replace(",", "").lstrip("+-").replace(".", "").isdigit()

"""JSON of the agent -> text for a person, at most 80 columns where the content allows."""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes 3 ms to import
if TYPE_CHECKING:
    from typing import Any

    Row = dict[str, Any]


_ACTIVITIES = ("serve", "mine", "idle", "curtailed", "switching", "maintenance", "fault", "unknown")


def status(value: Row) -> str:
    """Render ``status``: the site, its links, money, fleet, problems last."""
    hub, market, power = value["hub"], value["market"], value["power"]
    switches = value["switches"]
    lines = [
        (
            f"{value['site_id']}  {value['state'].upper()}  up {duration(value['up_s'])}  "
            f"v{value['version']}"
        ),
        (
            f"hub     {'online' if hub['online'] else 'OFFLINE'}, heard {age(hub['heard_age_s'])}, "
            f"backlog {hub['backlog']:,} records"
        ),
        (
            f"market  {number(market['price_usd_per_mwh'], '{:,.2f}')} USD/MWh, BTC "
            f"{number(market['btc_price_usd'], '{:,.0f}')} USD ({age(market['age_s'])})"
        ),
        (
            f"power   {watts(power['measured_w'])} measured, "
            f"{watts(power['counted_w'])} counted of {watts(power['cap_w'])}"
        ),
        f"earning {number(value['earning_usd_per_h'], '{:,.2f}')} USD/h",
        (
            f"switch  {switches['count']:,} in 24 h, "
            f"p50 {number(switches['p50_ms'], '{:.0f}')} ms, "
            f"p99 {number(switches['p99_ms'], '{:.0f}')} ms, "
            f"rolled back {switches['rolled_back']:,}"
        ),
        "",
    ]
    present = [
        name
        for name in _ACTIVITIES
        if any(row["by_activity"].get(name) for row in value["classes"])
    ]
    header = ["class", "total", *present]
    body = [
        [row["device_class"], f"{row['total']:,}"]
        + [f"{row['by_activity'].get(name, 0):,}" for name in present]
        for row in value["classes"]
    ]
    lines += table(header, body)
    if value["problems"]:
        lines.append("")
    for problem in value["problems"]:
        lines.append(f"! {problem['device_id'] or '-':<14} {problem['text']}")
        lines.append(f"  {'':<14} {problem['command']}")
    return "\n".join(lines)


def devices(rows: list[Row]) -> str:
    """Render ``devices``: one line each."""
    body = [
        [
            row["device_id"],
            row["device_class"],
            row["activity"],
            number(row["power_w"], "{:,.0f}"),
            number(row["temp_c"], "{:.0f}"),
            number(row["hashrate_ths"], "{:,.1f}"),
            row["lease_id"] or "-",
            row["reason"],
        ]
        for row in rows
    ]
    header = ["device", "class", "activity", "W", "C", "TH/s", "lease", "reason"]
    return "\n".join([*table(header, body), f"{len(rows):,} devices"])


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
    return "\n".join(lines)


def plan(value: Row) -> str:
    """Render ``plan``: what would be done now."""
    power = value["power"]
    lines = [
        (
            f"power counted {watts(power['counted_w'])} of {watts(power['cap_w'])}, "
            f"free {watts(power['headroom_w'])}"
        )
    ]
    lines += [
        f"{row['devices']:>6} x {row['device_class']}: {row['from_activity']} -> "
        f"{row['to_activity']}  {row['reason']}  gain {number(row['gain_usd'], '{:+,.4f}')} USD, "
        f"cost {number(row['cost_usd'], '{:,.4f}')} USD"
        for row in value["intents"]
    ]
    lines += [f"lease {row['lease_id']}: {row['act']} {row['detail']}" for row in value["leases"]]
    if len(lines) == 1:
        lines.append("nothing to do")
    return "\n".join(lines)


def switches(rows: list[Row]) -> str:
    """Render ``switches``: newest first, with phase times."""
    body = [
        [
            row["at"][11:19],
            row["switch_id"],
            f"{row['devices']} x {row['device_class']}",
            f"{row['from_activity']}>{row['to_activity']}",
            number(None if row["took_us"] is None else row["took_us"] / 1_000, "{:,.1f}"),
            row["outcome"],
            row["reason"],
            " ".join(f"{name} {us / 1_000:.1f}" for name, us in row["phases"]),
        ]
        for row in rows
    ]
    return "\n".join(
        table(["at", "switch", "devices", "change", "ms", "outcome", "reason", "phases ms"], body)
    )


def buffer(value: Row) -> str:
    """Render ``buffer show``."""
    body = [
        [row["stream"], f"{row['pending']:,}", f"{row['bytes']:,}", age(row["oldest_age_s"])]
        for row in value["streams"]
    ]
    return "\n".join(
        [
            *table(["stream", "pending", "bytes", "oldest"], body),
            f"disk {value['disk_bytes']:,} bytes of {value['cap_bytes']:,}, level {value['level']}",
        ]
    )


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

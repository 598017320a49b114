"""Text of ``market``, ``power`` and ``order list``."""

from __future__ import annotations

from edge_agent.cli.render import age, duration, number, table

TYPE_CHECKING = False  # typing itself takes 3 ms to import
if TYPE_CHECKING:
    from typing import Any

    Row = dict[str, Any]


def market(value: Row) -> str:
    """Render ``market``: the price acted on, then every feed's last values."""
    lines = [
        (
            f"price   {number(value['price_usd_per_mwh'], '{:,.2f}')} USD/MWh of "
            f"{value['price_feed'] or '?'} ({age(value['price_age_s'])})"
        ),
        (
            f"usual   {value['usual_low_usd_per_mwh']:,.0f} .. "
            f"{value['usual_high_usd_per_mwh']:,.0f}, legal "
            f"{value['floor_usd_per_mwh']:,.0f} .. {value['ceiling_usd_per_mwh']:,.0f} USD/MWh"
        ),
        f"at risk {value['at_risk_usd_per_h']:,.2f} USD/h if it is wrong",
    ]
    if value.get("peak"):
        lines.append(f"peak    {value['peak']}")
    step = value.get("difficulty")
    if step:
        lines.append(
            f"step    difficulty {number(step['step_percent'], '{:+.2f}')} % in "
            f"{step['blocks_left']:,} blocks of {number(step['block_s'], '{:.0f}')} s"
        )
    if value["disagreement"]:
        lines.append(f"! {value['disagreement']}")
    body = [
        [
            row["input"],
            row["feed"],
            f"{row['value']:,.6g}",
            age(row["age_s"]),
            row["verdict"] + (" *" if row["taken"] else ""),
            row["reason"],
        ]
        for row in value["feeds"]
    ]
    lines += ["", *table(["input", "feed", "value", "told", "verdict", "reason"], body)]
    return "\n".join([*lines, "* acted on"])


def power(value: Row) -> str:
    """Render ``power``: the load against cap and orders, and what can go."""
    lines = [
        (
            f"cap         {value['cap_mw']:,.3f} MW, ordered "
            f"{number(value['promised_mw'], '{:,.3f}')} MW, free {value['headroom_mw']:,.3f} MW"
        ),
        (
            f"load        {number(value['drawn_mw'], '{:,.3f}')} MW read, "
            f"{value['confirmed_mw']:,.3f} MW at most, of which leases "
            f"{value['leases_mw']:,.3f} MW"
        ),
        (
            f"curtailable {value['curtailable_mw_5s']:,.3f} MW in 5 s, "
            f"{value['curtailable_mw_10min']:,.3f} MW in 10 min, each with 99 %"
        ),
        "",
    ]
    body = [
        [
            row["device_class"],
            row["firmware"] or "-",
            f"{row['devices']:,}",
            f"{row['draw_mw']:,.3f}",
            f"{row['samples']:,}",
            f"{row['p50_s']:g}",
            f"{row['p99_s']:g}",
            f"{row['curtailable_mw_5s']:,.3f}",
            f"{row['curtailable_mw_10min']:,.3f}",
        ]
        for row in value["basis"]
    ]
    header = ["class", "firmware", "mining", "MW", "samples", "p50 s", "p99 s", "5 s", "10 min"]
    return "\n".join([*lines, *table(header, body)])


def orders(value: Row) -> str:
    """Render orders: asked, achieved, and by how much missed."""
    body = [
        [
            row["order_id"],
            row["status"],
            f"{row['limit_mw']:,.3f}",
            number(row["promised_mw"], "{:,.3f}"),
            row["due_at"][:19],
            row["until_at"][:19],
            f"{row['achieved'][-1]['load_mw']:,.3f}" if row["achieved"] else "-",
            f"{row['worst_mw']:,.3f}" if row["worst_mw"] else "-",
            duration(row["over_s"]) if row["over_s"] else "-",
            row["why"],
        ]
        for row in value["items"]
    ]
    header = [
        "order",
        "status",
        "MW",
        "promised",
        "by",
        "until",
        "load MW",
        "above MW",
        "above for",
        "why",
    ]
    return "\n".join(table(header, body))

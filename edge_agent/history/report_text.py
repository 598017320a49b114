"""Regret and daily report -> text for a person, at most 100 columns where the content allows."""

from decimal import Decimal

from edge_agent.history.regret import Regret
from edge_agent.history.report import DayReport, DeviceRegret

_PARTS = (
    ("information", "prices that the rule did not know"),
    ("switching", "restarts, warm-ups, prudence and waits"),
    ("caps_and_orders", "caps, ramps and orders to curtail"),
    ("faults", "devices silent, quarantined or not obeying"),
    ("holds", "operators' drains and holds"),
)


def regret_text(told: Regret) -> str:
    """Render the regret of a day: the money, then where the rest went."""
    lines = [
        f"{told.site}  {told.day}  {told.devices:,} devices, {told.covered_h:.2f} h of 24 covered",
        (
            f"realised     {_usd(told.realised_usd)} USD  = mining {told.mining_usd:,.2f}"
            f" + leases {told.serve_usd:,.2f} - energy {told.energy_usd:,.2f}"
            f" - wear {told.wear_usd:,.2f}"
        ),
        f"clairvoyant  {_usd(told.clairvoyant_usd)} USD, free of caps and orders",
        f"S1           {_usd(told.s1_usd)} USD, strike price {told.strike_usd:,.2f} USD",
        (
            f"U            {_per_cent(told.uplift_captured):>14} captured, the rule alone "
            f"{_per_cent(told.rule_uplift)}"
        ),
        f"regret       {_usd(told.regret_usd)} USD, of which",
    ]
    lines += [f"  {_usd(getattr(told.parts, name))}  {name:<16} {what}" for name, what in _PARTS]
    lines.append(f"the next price alone would have given {told.next_price_usd:+,.2f} USD")
    if told.clairvoyant_over_cap:
        lines.append(
            f"the clairvoyant passes the cap in {told.clairvoyant_over_cap} intervals; under the "
            f"limits {told.clairvoyant_limited_usd:,.2f} USD could be had, "
            f"{told.unavoidable_usd:,.2f} USD nobody could"
        )
    if told.lp is not None:
        lines.append(
            f"dynamic and linear programme {'agree' if told.lp.equal else 'DISAGREE'}: "
            f"{told.lp.dp_usd:,.6f} and {told.lp.lp_usd:,.6f} USD, {told.lp.devices:,} devices"
        )
    lines += [
        f"not covered  {gap.from_at:%H:%M} .. {gap.to_at:%H:%M}  {gap.seconds:,.0f} s  {gap.why}"
        for gap in told.gaps
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in told.notes)])


def report_text(told: DayReport) -> str:
    """Render the daily report."""
    power = told.power
    lines = [
        regret_text(told.regret),
        "",
        (
            f"energy       {power.energy_mwh:,.3f} MWh, peak {_mw(power.peak_mw)} counted, "
            f"least room below the cap {_mw(power.margin_mw)}, above it {power.over_cap_h:.2f} h"
        ),
        f"switches     {_counts(told.switches)}  ({told.passes:,} passes)",
        f"  reasons    {_counts(told.reasons)}",
        f"  ended      {_counts(told.outcomes)}",
        f"curtailed    {_counts(told.curtailments)}",
        f"faults       {_counts(told.faults)}",
        f"the clairvoyant wakes devices {told.restarts_best:,} times",
        "",
    ]
    lines += [f"hours {name:<10} {_hours(hours)}" for name, hours in told.device_hours.items()]
    if told.top_devices:
        lines += ["", "most regret"]
        lines += [_device(row) for row in told.top_devices]
    return "\n".join(lines)


def _device(row: DeviceRegret) -> str:
    head = f"{row.device_id:<20} {row.device_class:<8} {row.regret_usd:>10,.2f} USD"
    return f"  {head}  {_hours(row.hours)}"


def _usd(value: Decimal) -> str:
    return f"{value:>14,.2f}"


def _per_cent(value: float | None) -> str:
    return "nothing to capture" if value is None else f"{value:,.2f} %"


def _mw(value: float | None) -> str:
    return "?" if value is None else f"{value:,.3f} MW"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items()) or "none"


def _hours(hours: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.2f}" for name, value in hours.items()) or "none"

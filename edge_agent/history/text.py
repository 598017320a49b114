"""Reports over the journal -> text for a person."""

from datetime import datetime

from edge_agent.services.override_keys import Key
from edge_agent.services.replay import ReplayReport
from edge_agent.services.replay_compare import Difference
from edge_agent.services.what_if import Made, WhatIfReport

_CHANGES_SHOWN = 20


def replay_text(report: ReplayReport) -> str:
    """Render a replay: equal, or the first difference."""
    span = f"{stamp(report.from_at)} .. {stamp(report.to_at)}"
    lines = [f"replayed {span}: {report.rows:,} rows in {report.took_s:.1f} s"]
    counted = f"{report.decisions:,} decisions and {report.states:,} states at snapshots"
    lines.append(f"all {counted} are equal" if report.equal else f"NOT equal, after {counted}")
    lines += [text for row in report.differences for text in _difference(row)]
    if report.unkept:
        lines.append(f"{report.unkept:,} decisions of an older agent were not kept: not compared")
    if report.sites > 1:
        lines.append(f"site file or agent changed in the span, {report.sites} in all")
    others = [name for name in report.programs if name != report.program]
    if others:
        lines.append(f"decided by {', '.join(others)}, replayed by {report.program}")
    return "\n".join(lines)


def what_if_text(report: WhatIfReport) -> str:
    """Render a what-if: the money, then the passes that would have acted differently."""
    lines = [
        f"what if {', '.join(report.what_if)}",
        f"span    {stamp(report.from_at)} .. {stamp(report.to_at)}, {report.passes:,} passes",
        (
            f"profit  {report.profit_was_usd:,.2f} USD as it was, "
            f"{report.profit_would_usd:,.2f} USD as it would have been"
        ),
        f"so      {report.difference_usd:+,.2f} USD",
    ]
    if report.by_conditions_usd is not None and report.by_decisions_usd is not None:
        lines.append(
            f"of it   {report.by_conditions_usd:+,.2f} USD with the decisions as they were, "
            f"{report.by_decisions_usd:+,.2f} USD by deciding differently"
        )
    if report.unvalued_s:
        lines.append(f"without {report.unvalued_s:,.0f} s in which no price was known")
    lines.append(
        f"cap     counted load above it for {report.over_cap_was_s:,.0f} s as it was, "
        f"{report.over_cap_would_s:,.0f} s as it would have been"
    )
    if report.over_feeder_was_s or report.over_feeder_would_s:
        lines.append(
            f"feeders counted load above one for {report.over_feeder_was_s:,.0f} s as it was, "
            f"{report.over_feeder_would_s:,.0f} s as it would have been"
        )
    if not report.changed:
        lines.append("no decision differs")
        return "\n".join(lines)
    lines.append(f"{report.changed:,} passes differ")
    for change in report.changes[:_CHANGES_SHOWN]:
        lines.append(f"{stamp(change.at)}  row {change.seq}")
        lines += [f"    was    {_made(row)}" for row in change.was]
        lines += [f"    would  {_made(row)}" for row in change.would]
    if report.changed > _CHANGES_SHOWN:
        lines.append(f"and {report.changed - _CHANGES_SHOWN:,} more; --json has them")
    return "\n".join(lines)


def keys_text(keys: tuple[Key, ...]) -> str:
    """Render the keys of a what-if, with what the site has there."""
    return "\n".join(key.text if key.value is None else f"{key.text}={key.value}" for key in keys)


def stamp(at: datetime | None) -> str:
    """Format an instant as it may be given back to --from, --to and --at."""
    return "?" if at is None else at.isoformat().replace("+00:00", "Z")


def _difference(row: Difference) -> list[str]:
    place = f"{stamp(row.at)}  row {row.seq}  {row.kind}"
    valued = row.journalled is not None or row.replayed is not None
    lines = [place if row.kind in ("row", "gap") else f"{place}  {_named(row)}"]
    if valued and row.kind not in ("row", "gap"):
        lines.append(f"    journal  {_value(row.journalled)}")
        lines.append(f"    replay   {_value(row.replayed)}")
    if row.detail:
        lines.append(f"    {row.detail}")
    return lines


def _named(row: Difference) -> str:
    return f"{row.device_id or 'site'}  {row.column}"


def _made(row: Made) -> str:
    if not row.devices:
        return f"{row.what} {row.reason}"
    first = ", ".join(row.first_devices)
    more = ", ..." if row.devices > len(row.first_devices) else ""
    return f"{row.devices} x {row.what} ({row.reason}): {first}{more}"


def _value(value: str | float | None) -> str:
    if value is None:
        return "?"
    return value if isinstance(value, str) else repr(value)

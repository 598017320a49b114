"""The power mode of a miner as text: what ``why`` adds where the agent sets it."""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself takes 3 ms to import
if TYPE_CHECKING:
    from typing import Any

    Row = dict[str, Any]


def why_mode(mode: Row | None) -> list[str]:
    """Render the mode, what each mode adds to the one below it, and what would change it."""
    if mode is None:
        return []
    now = mode["mode"] or "unknown"
    change = f", changing to {mode['to_mode']}" if mode["to_mode"] else ""
    lines = ["", f"mode      {now}{change}, counts {mode['counts_w']:,.0f} W"]
    for row in mode["options"]:
        adds = row["adds_usd_per_h"]
        usd = "?" if adds is None else f"{adds:+,.4f}"
        mark = "*" if row["mode"] == mode["mode"] else " "
        lines.append(
            f" {mark} {row['mode']:<12} {row['power_w']:>8,.0f} W  {row['rate_ths']:>8,.1f} TH/s"
            f"  adds {usd} USD/h  {row['note']}".rstrip()
        )
    lines.append(f"so        {mode['detail']}")
    return lines + [f"changes if  {text}" for text in mode["would_change"]]

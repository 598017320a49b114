"""What a run of the demo has shown."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from simulators.stack_config import MarketSpec, SiteSpec
from simulators.stack_real import Answered


class Real:
    """What the processes on GPUs that are none have really done."""

    def __init__(self) -> None:
        self.answers: list[Answered] = []
        self.shares = 0

    @property
    def good(self) -> bool:
        """Tell whether the model said the same after each switch.

        The pool's shares are shown and not asked for: at a dear price, or with every core taken,
        the miner may rightly have had no time.
        """
        texts = {(answer.text, answer.tokens) for answer in self.answers}
        return len(self.answers) >= 2 and len(texts) == 1

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "completions": len(self.answers),
            "tokens": sum(answer.tokens for answer in self.answers),
            "same_answer": len({answer.text for answer in self.answers}) == 1,
            "shares_accepted": self.shares,
        }


class Report:
    """Collects figures; ``good`` tells whether all that the demo promises was seen.

    Args:
        scale: of the sites. market: replayed prices, or None.
    """

    def __init__(self, scale: float, market: MarketSpec | None) -> None:
        self.scale = scale
        self.market = market
        self.started_at = self.market_started = datetime.now(UTC)
        self.devices = {"asic": 0, "gpu": 0}
        self.workloads: dict[str, str] = {}
        self.submit_to_running_ms: list[float] = []
        self.invoice_total_usd: Decimal | None = None
        self.ground_truth_usd: Decimal | None = None
        self.billed_ms = self.truth_ms = 0
        self.estimated = False
        self.curtailments = 0
        self.wakes = 0
        self.gpu_switches = 0
        self.took_ms: list[float] = []
        self.phase_ms: dict[str, list[float]] = {}
        self.time_errors: list[str] = []
        self.devices_timed = 0
        self.time_error_ns = 0
        self.metrics: dict[str, Any] = {}
        self.real = Real()
        self.exit_statuses: dict[str, int] = {}

    @property
    def good(self) -> bool:
        """Tell whether the bill is true, time conserved, and every workload ended well."""
        ended = set(self.workloads.values()) <= {"completed", "cancelled"}
        real_prices = self.market is None or (self.curtailments >= 1 and self.wakes >= 1)
        return (
            ended
            and real_prices
            and self.real.good
            and len(self.workloads) >= 2
            and self.gpu_switches >= 2
            and self.invoice_total_usd is not None
            and self.invoice_total_usd == self.ground_truth_usd
            and self.billed_ms == self.truth_ms > 0
            and not self.estimated
            and not self.time_errors
            and self.devices_timed == sum(self.devices.values())
        )

    def count_devices(self, sites: tuple[SiteSpec, ...]) -> None:
        """Count what runs."""
        self.devices = {
            "asic": sum(site.asic_count for site in sites),
            "gpu": sum(site.gpu_count for site in sites),
        }

    def add_switches(self, rows: list[dict[str, Any]]) -> None:
        """Take the switches that an agent tells."""
        for row in rows:
            if not row["committed"]:
                continue
            change = (row["from_activity"], row["to_activity"])
            self.curtailments += row["committed"] if change[1] == "curtailed" else 0
            self.wakes += row["committed"] if change == ("curtailed", "mine") else 0
            if "serve" in change:
                self.gpu_switches += 1
                self.took_ms.append(row["took_us"] / 1_000)
                for name, took_us in row["phases"]:
                    self.phase_ms.setdefault(name, []).append(took_us / 1_000)

    def add_device_times(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Check that each device's activities sum to what the boot clock says has passed.

        Args:
            before, after: two answers of ``devices --times`` of one site.
        """
        elapsed_ns = after["now_ns"] - before["now_ns"]
        earlier = {row["device"]["device_id"]: row["time_ns"] for row in before["items"]}
        for row in after["items"]:
            self.devices_timed += 1
            device_id = row["device"]["device_id"]
            spent_ns = sum(row["time_ns"].values()) - sum(earlier[device_id].values())
            if abs(spent_ns - elapsed_ns) > self.time_error_ns:
                self.time_errors.append(f"{device_id}: {spent_ns} of {elapsed_ns} ns")

    def add_metrics(self, summary: dict[str, Any]) -> None:
        """Take the hub's counters."""
        self.metrics = summary

    def to_json(self) -> dict[str, Any]:
        """Return the summary for programs."""
        return {
            "v": 1,
            "good": self.good,
            "devices": self.devices,
            "scale": self.scale,
            "market_span": None if self.market is None else self._span(),
            "scaled_economics": "restart cost, dwell, stay and ramp times divided by 900",
            "curtailments": self.curtailments,
            "wakes": self.wakes,
            "switches": {
                "count": len(self.took_ms),
                "p50_ms": quantile(self.took_ms, 0.5),
                "p99_ms": quantile(self.took_ms, 0.99),
                "by_phase": {
                    name: {"p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99)}
                    for name, times in sorted(self.phase_ms.items())
                },
            },
            "points_ingested": self.metrics.get("points_ingested"),
            "usage_rows": self.metrics.get("usage_rows"),
            "submit_to_running_ms": {
                "p50": quantile(self.submit_to_running_ms, 0.5),
                "p99": quantile(self.submit_to_running_ms, 0.99),
            },
            "invoice_total_usd": _text(self.invoice_total_usd),
            "ground_truth_usd": _text(self.ground_truth_usd),
            "billed_ms": self.billed_ms,
            "truth_ms": self.truth_ms,
            "invoice_estimated": self.estimated,
            "device_time_conserved": not self.time_errors and self.devices_timed > 0,
            "device_time_errors": self.time_errors[:10],
            "workloads": self.workloads,
            "real_work": self.real.to_json(),
            "exit_statuses": self.exit_statuses,
        }

    def _span(self) -> dict[str, Any]:
        assert self.market is not None
        start = datetime.fromisoformat(self.market.from_utc)
        passed = datetime.now(UTC) - self.market_started
        return {
            "from": start.isoformat(),
            "to": (start + passed * self.market.factor).isoformat(),
            "factor": self.market.factor,
        }


def summary_text(report: Report) -> str:
    """Return the summary for a person."""
    value = report.to_json()
    switches, waits = value["switches"], value["submit_to_running_ms"]
    lines = [
        "",
        (
            f"devices        {value['devices']['asic']} ASICs, {value['devices']['gpu']} GPUs"
            f" (scale {value['scale']}; restart cost, dwell, stay and ramp times divided by 900)"
        ),
        f"curtailed      {value['curtailments']} ASICs, woken {value['wakes']}",
        (
            f"GPU switches   {switches['count']}, p50 {switches['p50_ms']} ms,"
            f" p99 {switches['p99_ms']} ms"
        ),
        f"submit to run  p50 {waits['p50']} ms, p99 {waits['p99']} ms",
        f"telemetry      {value['points_ingested']} points, {value['usage_rows']} usage rows",
        (
            f"real work      {value['real_work']['completions']} completions, the same each time:"
            f" {value['real_work']['same_answer']}; {value['real_work']['shares_accepted']} shares"
        ),
        f"workloads      {', '.join(value['workloads'].values())}",
        f"device time    {'conserved' if value['device_time_conserved'] else 'NOT conserved'}",
        (
            f"invoice        {value['invoice_total_usd']} USD,"
            f" ground truth {value['ground_truth_usd']} USD"
        ),
        "all as promised" if value["good"] else "NOT all as promised",
    ]
    return "\n".join(lines)


def quantile(values: list[float], share: float) -> float | None:
    """Return the value at ``share`` of the sorted list (nearest rank), or None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else str(amount)

"""`./dev demo`: the three sites of the design, scaled down, from market tick to invoice."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

from simulators.demo_report import Report, summary_text
from simulators.errors import SimulatorError
from simulators.live_client import LiveClient
from simulators.market_replay import dearest_hour
from simulators.stack import CUSTOMER_ID, PRICES_USD_PER_H, Stack, parse_json
from simulators.stack_config import (
    DESIGN_SITES,
    MarketSpec,
    SeededMarket,
    SiteSpec,
    Tuning,
    scaled,
)
from simulators.stack_real import complete, shares_of
from simulators.truth import Price, bill, read_truth, stays

DEFAULT_SCALE = 0.01
FACTOR = 900.0
_LEAD = timedelta(hours=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 when everything it promises was seen."""
    args = _parse(argv)
    try:
        market = _market(args)
        with tempfile.TemporaryDirectory(prefix="hcp-demo-") as scratch:
            root = Path(scratch) if args.keep is None else args.keep
            root.mkdir(parents=True, exist_ok=True)
            report = asyncio.run(_run(args, root.resolve(), market))
    except (SimulatorError, OSError, TimeoutError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(report.to_json()) if args.json else summary_text(report))
    return 0 if report.good else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    add = parser.add_argument
    add("--for", dest="seconds", type=float, default=None, help="end after SECONDS (else Ctrl-C)")
    add("--scale", type=float, default=DEFAULT_SCALE, help="size of the sites (default 0.01)")
    add("--market", type=Path, help="directory of real prices to replay at factor 900")
    add("--market-from", help="instant to start at (default: 2 h before the dearest hour)")
    add("--keep", type=Path, help="keep all data in this folder")
    add("--json", action="store_true", help="print the summary as JSON, progress to stderr")
    args = parser.parse_args(argv)
    if not 0.0005 <= args.scale <= 0.05:
        parser.error("--scale must be within 0.0005..0.05")
    if args.keep is not None and args.keep.exists() and any(args.keep.iterdir()):
        parser.error(f"--keep {args.keep}: the folder is not empty")
    return args


def _market(args: argparse.Namespace) -> MarketSpec | None:
    if args.market is None:
        return None
    start = args.market_from or (dearest_hour(args.market) - _LEAD).isoformat()
    return MarketSpec(
        directory=str(args.market.resolve()),
        from_utc=start.replace("+00:00", "Z"),
        factor=FACTOR,
    )


async def _run(args: argparse.Namespace, root: Path, market: MarketSpec | None) -> Report:
    stack = Stack(
        root,
        tuple(scaled(site, args.scale) for site in DESIGN_SITES),
        market=market or SeededMarket(factor=FACTOR),
        tuning=Tuning(time_scale=FACTOR),
    )
    report = Report(scale=args.scale, market=market)
    report.count_devices(stack.sites)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, stop.set)
    try:
        await stack.start()
        await _show_start(stack)
        times = {site.site_id: await _device_times(stack, site) for site in stack.sites}
        await _play(stack, report, args.seconds, stop)
        await _close_books(stack, report, times)
    finally:
        report.exit_statuses = await stack.stop()
    return report


async def _show_start(stack: Stack) -> None:
    say(f"hub       {stack.hub_url}/  (customer token below)")
    say(f"token     {stack.customer.token}")
    for site in stack.sites:
        say(f"          {site.site_id}: {site.asic_count} ASICs, {site.gpu_count} GPUs")
    say("")
    say(await stack.agent_command(stack.sites[0], "status"))


async def _play(stack: Stack, report: Report, seconds: float | None, stop: asyncio.Event) -> None:
    """Submit two workloads, let one complete and cancel the other, until the time is over."""
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    report.started_at = datetime.now(UTC)
    url = stack.hub_url.replace("http", "ws", 1) + "/api/v1/live"
    # Sizes that fit one site at any scale: 6 and 4 of the 12 that Lubbock has at the default one.
    largest = max(
        group.count for site in stack.sites for group in site.gpus if group.model == "H100"
    )
    async with LiveClient(url, stack.customer.token) as live:
        await _pause(stop, 2.0)
        served = [
            await _submit(
                stack,
                report,
                live,
                "chat",
                {"device_class": "H100", "count": max(1, largest // 2)},
                None,
            ),
            await _submit(
                stack,
                report,
                live,
                "batch",
                {"device_class": "H100", "count": max(1, largest // 3)},
                12,
            ),
        ]
        await _play_real(stack, report, live)
        # However quick the real model was: the others are to be served for a while.
        await _pause(stop, 8.0)
        await stack.customer.delete(f"/api/v1/workloads/{served[0]}")
        report.workloads[served[0]] = (await stack.wait_state(served[0], {"cancelled"}))["state"]
        report.workloads[served[1]] = (await stack.wait_state(served[1], {"completed"}))["state"]
        while not stop.is_set() and (end is None or loop.time() < end):
            left = 1.0 if end is None else min(1.0, end - loop.time())
            await _pause(stop, max(0.01, left))


async def _play_real(stack: Stack, report: Report, live: LiveClient) -> None:
    """Have a real model served twice, its GPU's miner hashing before, between and after."""
    for site in stack.sites:
        for group in site.gpus:
            if not group.real:
                continue
            for number in (1, 2):
                key = secrets.token_urlsafe()
                wish = {
                    "device_class": group.model,
                    "count": group.count,
                    "key_sha256": sha256(key.encode()).hexdigest(),
                }
                workload_id = await _submit(stack, report, live, f"real-{number}", wish, None)
                served = await stack.customer.get(f"/api/v1/workloads/{workload_id}")
                for _ in range(3):
                    report.real.answers.append(await complete(served["endpoint_url"], key))
                await stack.customer.delete(f"/api/v1/workloads/{workload_id}")
                ended = await stack.wait_state(workload_id, {"cancelled"})
                report.workloads[workload_id] = ended["state"]
            say(f"real      {len(report.real.answers)} completions of a real model")


async def _submit(
    stack: Stack,
    report: Report,
    live: LiveClient,
    name: str,
    wish: dict[str, Any],
    run_s: int | None,
) -> str:
    body = {"name": name, "priority": 3, "spec": {"driver": "simulated", "run_s": run_s}} | wish
    sent_s = asyncio.get_running_loop().time()
    workload_id: str = (await stack.submit(body, f"demo-{name}"))["workload_id"]
    heard_s = await live.wait_workload(workload_id, "running", 30.0)
    report.submit_to_running_ms.append((heard_s - sent_s) * 1_000)
    say(f"workload  {name} {workload_id} runs after {(heard_s - sent_s) * 1_000:.0f} ms")
    return workload_id


async def _close_books(stack: Stack, report: Report, times: dict[str, Any]) -> None:
    """Close the invoice of the whole run and compare it with the simulators' truth."""
    for ports in stack.real.values():
        report.real.shares += await shares_of(ports)
    for site in stack.sites:
        switches = parse_json(
            await stack.agent_command(site, "switches", "--json", "--limit", "100000")
        )
        report.add_switches(switches["items"])
        report.add_device_times(times[site.site_id], await _device_times(stack, site))
    start = report.started_at.replace(second=0, microsecond=0)
    end = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    say(f"invoice   waiting for the meters to pass {end:%H:%M} UTC")
    invoice = await _invoice(stack, start, end)
    report.invoice_total_usd = Decimal(invoice["total_usd"])
    report.estimated = bool(invoice["estimated"])
    prices = [
        Price(device_class=name, from_ms=0, usd_per_h=Decimal(usd))
        for name, usd in PRICES_USD_PER_H.items()
    ]
    period = (int(start.timestamp() * 1_000), int(end.timestamp() * 1_000))
    truth = bill(stays(read_truth(stack.truth_files())), prices, *period)
    report.ground_truth_usd = truth.total_usd
    report.billed_ms = sum(line["active_ms"] for line in invoice["lines"])
    report.truth_ms = sum(line[3] for line in truth.lines)
    report.add_metrics(await stack.admin.get("/api/v1/metrics/summary"))


async def _device_times(stack: Stack, site: SiteSpec) -> Any:  # noqa: ANN401 - JSON
    return parse_json(await stack.agent_command(site, "devices", "--times", "--json"))


async def _invoice(stack: Stack, start: datetime, end: datetime) -> dict[str, Any]:
    wait = (end - datetime.now(UTC)) / timedelta(seconds=1)
    await asyncio.sleep(max(0.0, wait))
    args = ["--customer", CUSTOMER_ID, "--from", _utc(start), "--to", _utc(end), "--json"]
    async with asyncio.timeout(60.0):
        while True:
            answer: dict[str, Any] = parse_json(
                await stack.hub_command("invoice", "close", *args, ok=(0, 1))
            )
            if "total_usd" in answer:
                return answer
            await asyncio.sleep(0.5)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def _utc(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def say(text: str) -> None:
    """Print progress on standard error, so that ``--json`` leaves pure JSON on standard output."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

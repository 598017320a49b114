"""One miner of every steered firmware in a running site: found out, curtailed, woken, told things.

Broker, hub and agent are processes, the miners one simulator that shares no code with the bridges.
The agent is not told any firmware; a price that no miner earns puts all to sleep, one that all earn
wakes them, and each counts only when its readings show it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from firmware_bridges.families import FAMILIES, FAMILY_OF
from firmware_bridges.sheet import Capability
from simulators.process import Program, python_module
from simulators.stack import Stack, free_port, wait_port
from simulators.stack_config import HttpMarket
from tests.e2e.hostile import FakeMarket, good_tick

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

SITE = "cedar"
# Model of the simulator, its class in the catalogue, its family: one of each that is steered.
KINDS = (
    ("s21", "S21", "antminer-stock"),
    ("a1566", "A1566", "avalon"),
    ("s19xp-braiins-old", "S19XP", "braiins-api"),
    ("s19xp-braiins-graphql", "S19XP", "braiins-graphql"),
    ("s19xp-braiins", "S19XP", "braiins-rest"),
    ("s19xp-epic", "S19XP", "epic"),
    ("s21-luxos", "S21", "luxos"),
    ("s21-mara", "S21", "marafw"),
    ("s21-vnish", "S21", "vnish"),
    ("m50s", "M50S", "whatsminer-v2"),
    ("m60s", "M60S", "whatsminer-v3"),
)
# USD/MWh: all of these models earn some 50 to 100 at the market of `good_tick`.
CHEAP, DEAR = 10.0, 3_000.0
TIME_SCALE = 100.0


def test_there_is_one_of_every_steered_family() -> None:
    steered = [family.name for family in FAMILIES if family.control is not None]
    assert sorted(name for _, _, name in KINDS) == sorted(steered)


async def test_every_firmware_is_steered_by_a_running_site(root: Path, stacks: list[Stack]) -> None:
    market = FakeMarket()
    market.answer = good_tick(price_usd_per_mwh=CHEAP)
    stack = Stack(root, (), market=HttpMarket(port=await market.start(), period_s=0.2))
    stacks.append(stack)
    async with asyncio.timeout(220.0):
        await stack.start()
        site = await _start_site(stack, market_port=_port_of(stack))
        await site.until(activity="mine", hashes=True)
        rows = await site.miners()
        assert {row["rack"] for row in rows} == {"r7"}
        assert all(row["age_s"] < 10 and not row["error"] for row in rows)
        await _locate(site)
        market.answer = good_tick(price_usd_per_mwh=DEAR)
        await site.until(activity="curtailed", hashes=False)
        market.answer = good_tick(price_usd_per_mwh=CHEAP)
        await site.until(activity="mine", hashes=True)
        (limit,) = (await site.tell("limit", "asic-0001", "9000", code=5)).values()
        assert limit[0] == "unsafe"
        switches = json.loads(await site.command("switches", "--json", "--limit", "200"))["items"]
        assert {row["committed"] == row["devices"] for row in switches} == {True}
        await _hub_agrees(stack)
        statuses = await stack.stop()
    await market.stop()
    assert {name: code for name, code in statuses.items() if code} == {}


async def _locate(site: _Site) -> None:
    """Let all lights blink: those that have one are seen to, the others refuse."""
    outcomes = await site.tell("locate", "*", code=1)
    for number, (_, _, name) in enumerate(KINDS, start=1):
        has_light = FAMILY_OF[name].sheet.ability(Capability.LOCATE) is not None
        outcome, detail = outcomes[f"asic-{number:04d}"]
        assert outcome == ("done" if has_light else "refused"), f"{name}: {detail}"


class _Site:
    """The running agent as its technician sees it."""

    def __init__(self, stack: Stack, home: Path) -> None:
        self._stack = stack
        self._home = home

    async def command(self, *args: str, code: int = 0) -> str:
        """Run `hcp-agent ARGS` and check its exit code."""
        argv = python_module("edge_agent", *args, "--run-dir", str(self._home / "run"))
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode == code, f"{args}: {process.returncode}: {out.decode()}"
        return out.decode()

    async def miners(self) -> list[dict[str, Any]]:
        """Give what every miner last said."""
        rows: list[dict[str, Any]] = json.loads(await self.command("miners", "--json"))["items"]
        return rows

    async def tell(self, *args: str, code: int) -> dict[str, tuple[str, str]]:
        """Tell miners something, wait for its effect; give outcome and detail of each."""
        out = await self.command(*args, "--json", "--wait", "60", code=code)
        items = json.loads(out)["items"]
        return {item["device_id"]: (item["outcome"], item["detail"]) for item in items}

    async def until(self, *, activity: str, hashes: bool) -> None:
        """Wait until agent and readings agree on what all devices do."""
        seen: Counter[tuple[str, bool | None]] = Counter()
        try:
            async with asyncio.timeout(90.0):
                while set(seen) != {(activity, hashes)} or seen.total() != len(KINDS):
                    await asyncio.sleep(0.2)
                    devices = json.loads(await self.command("devices", "--json"))["items"]
                    acts = {row["device"]["device_id"]: row["device"] for row in devices}
                    seen = Counter(
                        (
                            acts[row["device_id"]]["activity"],
                            (row["reading"] or {}).get("is_mining"),
                        )
                        for row in await self.miners()
                    )
        except TimeoutError:
            rows = [
                (KINDS[number][0], row["error"], (row["reading"] or {}).get("state"))
                for number, row in enumerate(await self.miners())
            ]
            switches = await self.command("switches")
            raise AssertionError(
                f"wanted {activity}, hashing {hashes}: {seen} {rows}\n{switches}"
            ) from None


async def _start_site(stack: Stack, market_port: int) -> _Site:
    """Start the simulator and the agent; the hub hears of the site first."""
    await stack.hub_command("site", "add", "--site", SITE)
    home = stack.root / SITE
    (home / "run").mkdir(parents=True)
    ports = [free_port() for _ in range(3)]
    argv = python_module(
        "simulators", "asic", "--count", str(len(KINDS)),
        "--model", ",".join(kind for kind, _, _ in KINDS), "--base", "127.91.0.0", "--seed", "4",
        "--port", str(ports[0]), "--web-port", str(ports[1]), "--v3-port", str(ports[2]),
        "--time-scale", str(TIME_SCALE),
    )  # fmt: skip
    await _start(stack, "asic-cedar", argv)
    await wait_port(ports[1], stack.programs["asic-cedar"], host="127.91.0.1")
    config = home / "agent.toml"
    config.write_text(_config(stack, home, ports, market_port))
    await _start(
        stack,
        "agent-cedar",
        python_module("edge_agent", "run", "--config", str(config)),
        ready=home / "run" / "view.sock",
    )
    return _Site(stack, home)


async def _start(stack: Stack, name: str, argv: list[str], ready: Path | None = None) -> None:
    program = Program(name, argv, stack.root / "log" / f"{name}.log", ready=ready)
    stack.programs[name] = program
    await program.start()


def _config(stack: Stack, home: Path, ports: list[int], market_port: int) -> str:
    seconds = {"warmup_s": 300.0, "dwell_s": 900.0, "interval_s": 900.0}
    scaled = "\n".join(f"{name} = {value / TIME_SCALE}" for name, value in seconds.items())
    classes = "\n".join(
        f'[[classes]]\nmodel = "{name}"\nwear_usd = 0.001\n{scaled}'
        for name in dict.fromkeys(name for _, name, _ in KINDS)
    )
    miners = "\n".join(
        f'[[asics]]\nprefix = "x{number:02d}-"\ndevice_class = "{name}"\nkind = "auto"\n'
        f'port = {ports[0]}\nweb_port = {ports[1]}\nv3_port = {ports[2]}\nrack = "r7"\n'
        f'miners = [{{address = "127.91.0.{number}", device_id = "asic-{number:04d}"}}]'
        for number, (_, name, _) in enumerate(KINDS, start=1)
    )
    return f"""site_id = "{SITE}"
data_dir = "{home / "data"}"
run_dir = "{home / "run"}"
tick_s = 1.0
[limits]
power_cap_w = 100000.0
ramp_w_per_min = 1000000.0
[mqtt]
host = "127.0.0.1"
port = {stack.broker_port}
[market]
kind = "http"
port = {market_port}
period_s = 0.2
{classes}
{miners}
"""


def _port_of(stack: Stack) -> int:
    market = stack.market
    assert isinstance(market, HttpMarket)
    return market.port


async def _hub_agrees(stack: Stack) -> None:
    """Wait until the hub shows the whole site mining: it is told of activities each minute."""
    async with asyncio.timeout(80.0):
        while True:
            sites = (await stack.admin.get("/api/v1/resources"))["sites"]
            classes = [row for site in sites if site["site_id"] == SITE for row in site["classes"]]
            if sum(row["by_activity"].get("mine", 0) for row in classes) == len(KINDS):
                return
            await asyncio.sleep(0.2)

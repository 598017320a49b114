"""Looks at the sites while they run: what the agent says of power, and what is really drawn."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from simulators.process import StartError
from simulators.stack import Stack
from simulators.stack_config import SiteSpec, asic_control, node_home

# Site watts per device watt of the default class; the stack's config files leave it alone.
PUE = 1.05
_ROUND_W = 1.0
_PERIOD_S = 0.25
_DEADLINE_S = 5.0


class PowerWatch:
    """Samples one site and keeps what breaks the power rule.

    Args:
        stack: running. site: the one to look at.
    """

    def __init__(self, stack: Stack, site: SiteSpec) -> None:
        self._home = stack.home(site)
        self._site = site
        self.sure = self.blind = self.unsure = 0
        self.highest_w = self.highest_counted_w = 0.0
        self.broken: list[str] = []

    def summary(self) -> str:
        """Say what was seen, for the log."""
        return (
            f"{self._site.site_id}: {self.sure} samples, {self.unsure} with unknown devices,"
            f" {self.blind} without an agent; drawn <= {self.highest_w:.0f} W,"
            f" counted <= {self.highest_counted_w:.0f} W of {self._site.power_cap_w:.0f} W"
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Sample until stopped."""
        while not stop.is_set():
            await self.look()
            await asyncio.sleep(_PERIOD_S)

    async def look(self) -> None:
        """Take one sample of the truth and one of what the agent says."""
        cap_w = self._site.power_cap_w
        drawn_w = await self._drawn_w()
        if drawn_w is not None:
            self.highest_w = max(self.highest_w, drawn_w)
            if drawn_w > cap_w + _ROUND_W:
                self.broken.append(f"{self._site.site_id} draws {drawn_w:.0f} W of {cap_w:.0f} W")
        view = self._home / "run" / "view.sock"
        try:
            before = await ask_agent(view, "/v1/devices")
            site = (await ask_agent(view, "/v1/status"))["site"]
            after = await ask_agent(view, "/v1/devices")
        except (OSError, EOFError, ValueError):
            self.blind += 1  # it is killed just now
            return
        measured_w, counted_w = site["power_w"], site["power_counted_w"]
        if measured_w is not None and measured_w > cap_w + _ROUND_W:
            self.broken.append(f"{site['site_id']} measures {measured_w:.0f} W of {cap_w:.0f} W")
        # What was not heard of yet counts as its highest nameplate, which may exceed the cap.
        if not all(_is_known(row["device"]) for row in [*before["items"], *after["items"]]):
            self.unsure += 1
            return
        self.sure += 1
        self.highest_counted_w = max(self.highest_counted_w, counted_w)
        if counted_w > cap_w + _ROUND_W:
            said = f"counts {counted_w:.0f} W of {cap_w:.0f} W"
            self.broken.append(
                f"{site['site_id']} {said}: {site['prewarm']}, {[*map(_row, before['items'])]},"
                f" then {[*map(_row, after['items'])]}"
            )

    async def _drawn_w(self) -> float | None:
        total_w = 0.0
        try:
            for asics in self._site.asics:
                answer = await ask_line(asic_control(self._home, asics), {"do": "truth"})
                total_w += sum(row["power_w"] for row in answer["truth"])
            for gpus in self._site.gpus:
                socket = node_home(self._home, gpus) / "gpu.sock"
                answer = await ask_line(socket, {"id": 1, "op": "sample"})
                total_w += sum(row["power_w"] for row in answer["gpus"])
        except (OSError, EOFError, ValueError):
            return None
        return total_w * PUE


async def give_back(stack: Stack, site: SiteSpec, stop: asyncio.Event) -> None:
    """Be the technician who gives devices back that failed with their host."""
    while not stop.is_set():
        await asyncio.sleep(2.0)
        try:
            lines = await ask_agent(stack.home(site) / "run" / "view.sock", "/v1/devices")
            if any(row["device"]["quarantined"] for row in lines["items"]):
                await stack.agent_command(site, "undrain", "*")
        except (OSError, EOFError, ValueError, StartError):
            continue  # the agent is killed just now


def _is_known(device: dict[str, Any]) -> bool:
    return device["reachable"] and device["activity"] not in {"unknown", "fault"}


def _row(line: dict[str, Any]) -> dict[str, Any]:
    """Give what of a device bears on what it counts for."""
    names = ("device_id", "activity", "power_w", "lease_id")
    return {name: line["device"][name] for name in names if line["device"].get(name) is not None}


async def ask_agent(path: Path, target: str) -> Any:  # noqa: ANN401 - JSON
    """Ask the agent's view socket, as `hcp-agent` does, without the cost of a process."""
    return json.loads(await agent_text(path, target))


async def agent_text(path: Path, target: str) -> str:
    """Ask the agent's view socket for a page; gives its body."""
    async with asyncio.timeout(_DEADLINE_S):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(f"GET {target} HTTP/1.1\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
    return answer.partition(b"\r\n\r\n")[2].decode()


async def ask_line(path: Path, question: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """Ask a simulator's socket: one JSON line there, one back."""
    async with asyncio.timeout(_DEADLINE_S):
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
        try:
            writer.write(json.dumps(question).encode() + b"\n")
            return json.loads(await reader.readline())
        finally:
            writer.close()

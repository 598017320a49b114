"""A whole HCP on one machine: real broker, hub, agents and nodes over simulated devices.

The demo, the end-to-end tests and the benches start it; each program is a real process that may be
killed and started again. Everything listens on loopback.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from simulators.process import Program, StartError, python_module
from simulators.stack_config import (
    AsicGroup,
    GpuGroup,
    HttpMarket,
    MarketSpec,
    SeededMarket,
    SiteSpec,
    Tuning,
    agent_toml,
    asic_control,
    node_home,
    node_toml,
)
from simulators.stack_real import RealPorts, end_engines, host_data, host_toml
from simulators.web_client import WebClient, WebError

ISSUER = "https://hub.hcp.invalid"
ADMIN = ("admin@hcp.invalid", "demo-admin-password")
CUSTOMER_ID = "acme"
CUSTOMER = ("ops@acme.invalid", "demo-customer-password")
# Agents, nodes and first readings of all devices come before the replayed prices begin to move.
_MARKET_DELAY = timedelta(seconds=5)
PRICES_USD_PER_H = {"H100": "2.49", "A100": "1.89", "H200": "3.59", "L40S": "0.99"}


class Stack:
    """Programs, files and clients of one local HCP.

    Args:
        root: empty folder for everything. sites: what to run.
        market: where prices come from; None is a seeded market in real time.
        op_ms: milliseconds one act takes on a simulated GPU host.
    """

    def __init__(
        self,
        root: Path,
        sites: tuple[SiteSpec, ...],
        *,
        market: MarketSpec | SeededMarket | HttpMarket | None = None,
        tuning: Tuning | None = None,
        op_ms: float = 2.0,
    ) -> None:
        self.root = root
        self.sites = sites
        self.programs: dict[str, Program] = {}
        self.real: dict[str, RealPorts] = {}
        self.market = market or SeededMarket()
        self._tuning = tuning or Tuning()
        self._op_ms = op_ms
        self.market_started = datetime.now(UTC)
        self.broker_port, self.hub_port = free_port(), free_port()
        self.admin = WebClient("127.0.0.1", self.hub_port)
        self.customer = WebClient("127.0.0.1", self.hub_port)

    @property
    def hub_url(self) -> str:
        """Return the hub's address."""
        return f"http://127.0.0.1:{self.hub_port}"

    def home(self, site: SiteSpec) -> Path:
        """Return the folder of a site."""
        return self.root / site.site_id

    def truth_files(self) -> list[Path]:
        """Return the truth files of all GPU hosts."""
        return [
            host_data(self.home(site), group) / "gates.jsonl"
            if group.real
            else node_home(self.home(site), group) / "truth.jsonl"
            for site in self.sites
            for group in site.gpus
        ]

    async def start(self) -> None:
        """Start everything and wait until every site is online at the hub."""
        for folder in ("log", "hub"):
            (self.root / folder).mkdir(parents=True)
        await self._start_broker()
        await self._start_hub()
        feed = await self._start_market()
        self.market_started = datetime.now(UTC) + _MARKET_DELAY
        async with asyncio.TaskGroup() as group:
            for site in self.sites:
                group.create_task(self._start_site(site, feed), name=f"start-{site.site_id}")
        await self.wait_online()

    async def start_without_hub(self) -> None:
        """Start broker and sites only: an agent decides, switches and meters with no hub."""
        (self.root / "log").mkdir(parents=True)
        await self._start_broker()
        feed = await self._start_market()
        for site in self.sites:
            await self._start_site(site, feed)

    async def stop(self) -> dict[str, int]:
        """Stop everything, users before what they use; return the exit statuses."""
        statuses: dict[str, int] = {}
        for kind in ("agent", "node", "gpu", "pool", "asic", "hub", "market", "broker"):
            chosen = [one for name, one in self.programs.items() if name.startswith(kind)]
            ended = await asyncio.gather(*(program.stop() for program in chosen))
            statuses |= {one.name: code for one, code in zip(chosen, ended, strict=True)}
        self.end_engines()
        await self.admin.close()
        await self.customer.close()
        return statuses

    def end_engines(self) -> None:
        """End the engines of real GPUs, which outlive their host."""
        for site in self.sites:
            for group in site.gpus:
                if group.real:
                    end_engines(self.home(site), group)

    async def start_again(self, name: str) -> None:
        """Start a program that was killed, and wait until it serves.

        Raises:
            StartError: it ended, or does not serve in time.
        """
        program = self.programs[name]
        await program.start()
        port = {"broker": self.broker_port, "hub": self.hub_port}.get(name)
        if port is not None:
            await wait_port(port, program)

    async def wait_online(self, limit_s: float = 60.0) -> None:
        """Wait until the hub has heard a report of every site.

        Raises:
            StartError: naming the sites that are missing.
        """
        missing = [site.site_id for site in self.sites]
        try:
            async with asyncio.timeout(limit_s):
                while missing:
                    resources = await self.admin.get("/api/v1/resources")
                    online = {row["site_id"] for row in resources["sites"] if row["online"]}
                    ready = {row["site_id"] for row in resources["sites"] if row["classes"]}
                    wanted = [site.site_id for site in self.sites]
                    missing = [name for name in wanted if name not in online & ready]
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise StartError(f"not online: {', '.join(missing)}") from None

    async def submit(self, body: dict[str, Any], key: str) -> dict[str, Any]:
        """Submit a workload as the customer; return the hub's answer."""
        answer: dict[str, Any] = await self.customer.post(
            "/api/v1/workloads", body, Idempotency_Key=key
        )
        return answer

    async def wait_state(
        self, workload_id: str, states: set[str], limit_s: float = 30.0
    ) -> dict[str, Any]:
        """Wait until a workload is in one of the states; return it.

        Raises:
            TimeoutError: naming the state that it is in.
        """
        state = "?"
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    row: dict[str, Any] = await self._get(f"/api/v1/workloads/{workload_id}")
                    state = row.get("state", state)
                    if state in states:
                        return row
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise TimeoutError(f"{workload_id} is {state}, wanted {sorted(states)}") from None

    async def hub_command(self, *args: str, stdin: str = "", ok: tuple[int, ...] = (0,)) -> str:
        """Run `hcp-hub ARGS`; return its standard output.

        Raises:
            StartError: a status not in ``ok``.
        """
        argv = python_module("hub", *args, "--config", str(self.root / "hub" / "hub.toml"))
        return await run_command(argv, stdin, ok)

    async def agent_command(self, site: SiteSpec, *args: str) -> str:
        """Run `hcp-agent ARGS` on a site; return its standard output, whatever its status."""
        run_dir = self.home(site) / "run"
        argv = python_module("edge_agent", *args, "--run-dir", str(run_dir))
        return await run_command(argv, ok=(0, 1))

    async def _get(self, path: str) -> dict[str, Any]:
        # While the hub is killed and started again, asking fails; the waiter asks again.
        try:
            answer: dict[str, Any] = await self.customer.get(path)
        except (OSError, EOFError, WebError):
            return {}
        return answer

    async def _start_broker(self) -> None:
        conf = self.root / "mosquitto.conf"
        conf.write_text(
            f"listener {self.broker_port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            "set_tcp_nodelay true\n"
            "max_inflight_messages 64\nmax_queued_messages 2000\nmax_queued_bytes 67108864\n"
            "message_size_limit 1048576\n"
        )
        found = os.environ.get("HCP_MOSQUITTO") or shutil.which(
            "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin"
        )
        if found is None:
            raise StartError("mosquitto is not installed; ./dev provides it")
        await self._start("broker", [found, "-c", str(conf)])
        await wait_port(self.broker_port, self.programs["broker"])

    async def _start_hub(self) -> None:
        home = self.root / "hub"
        (home / "hub.toml").write_text(
            f'data_dir = "{home}"\nissuer = "{ISSUER}"\n'
            f'[http]\nhost = "127.0.0.1"\nport = {self.hub_port}\n'
            f'[mqtt]\nhost = "127.0.0.1"\nport = {self.broker_port}\n'
        )
        await self.hub_command("migrate")
        await self._add_user(ADMIN, "--role", "admin")
        await self._add_user(CUSTOMER, "--role", "customer", "--customer", CUSTOMER_ID)
        for site in self.sites:
            await self.hub_command("site", "add", "--site", site.site_id)
        prices = [f"--price={name}={usd}" for name, usd in PRICES_USD_PER_H.items()]
        await self.hub_command("rate-card", "add", "--from", "2020-01-01T00:00:00Z", *prices)
        config = str(home / "hub.toml")
        await self._start("hub", python_module("hub", "serve", "--config", config))
        await wait_port(self.hub_port, self.programs["hub"])
        await self._log_in(self.admin, ADMIN)
        await self._log_in(self.customer, CUSTOMER)

    async def _start_market(self) -> MarketSpec | HttpMarket:
        market = self.market
        if not isinstance(market, SeededMarket):
            return market
        port = free_port()
        argv = python_module(
            "simulators", "market", "--port", str(port),
            "--seed", str(market.seed), "--factor", str(market.factor),
        )  # fmt: skip
        await self._start("market", argv)
        await wait_port(port, self.programs["market"])
        return HttpMarket(port=port)

    async def _add_user(self, user: tuple[str, str], *options: str) -> None:
        email, password = user
        await self.hub_command(
            "user", "add", "--email", email, *options, "--password-stdin", stdin=password
        )

    async def _log_in(self, client: WebClient, user: tuple[str, str]) -> None:
        answer = await client.post("/api/v1/auth/login", {"email": user[0], "password": user[1]})
        client.token = answer["access_token"]

    async def _start_site(self, site: SiteSpec, feed: MarketSpec | HttpMarket) -> None:
        home = self.home(site)
        (home / "run").mkdir(parents=True)
        (home / "data").mkdir()
        ports = {group.model: await self._start_asics(site, group) for group in site.asics}
        for group in site.gpus:
            await self._start_node(site, group)
        text = agent_toml(
            site,
            home=home,
            broker_port=self.broker_port,
            asic_ports=ports,
            market=feed,
            market_started_utc=self.market_started.isoformat().replace("+00:00", "Z"),
            tuning=self._tuning,
        )
        (home / "agent.toml").write_text(text)
        await self._start(
            f"agent-{site.site_id}",
            python_module("edge_agent", "run", "--config", str(home / "agent.toml")),
            ready=home / "run" / "view.sock",
        )

    async def _start_asics(self, site: SiteSpec, group: AsicGroup) -> tuple[int, int]:
        port, web_port = free_port(), free_port()
        octets = [int(part) for part in group.first_address.split(".")]
        octets[3] -= 1
        argv = python_module(
            "simulators", "asic", "--count", str(group.count), "--model", group.model.lower(),
            "--port", str(port), "--web-port", str(web_port),
            "--base", ".".join(str(part) for part in octets),
            "--time-scale", str(self._tuning.time_scale),
            "--control", str(asic_control(self.home(site), group)),
        )  # fmt: skip
        name = f"asic-{site.site_id}-{group.model}"
        await self._start(name, argv)
        await wait_port(web_port, self.programs[name], host=group.first_address)
        return port, web_port

    async def _start_node(self, site: SiteSpec, group: GpuGroup) -> None:
        home = self.home(site)
        place = node_home(home, group)
        (place / "data").mkdir(parents=True)
        if group.real:
            await self._start_real_host(home, group)
        else:
            argv = python_module(
                "simulators", "gpu", "--socket", str(place / "gpu.sock"),
                "--host-id", group.node_id, "--gpus", f"{group.model}:{group.count}",
                "--truth", str(place / "truth.jsonl"), "--op-ms", str(self._op_ms),
            )  # fmt: skip
            await self._start(f"gpu-{group.node_id}", argv, ready=place / "gpu.sock")
        (place / "node.toml").write_text(node_toml(site, group, home=home))
        await self._start(
            f"node-{group.node_id}",
            python_module("edge_agent", "node", "--config", str(place / "node.toml")),
            ready=place / "link.sock",
        )

    async def _start_real_host(self, home: Path, group: GpuGroup) -> None:
        place = node_home(home, group)
        ports = RealPorts(
            pool=free_port(),
            proxy=free_port(),
            admin=free_port(),
            miners=tuple(free_port() for _ in range(group.count)),
            servers=tuple(free_port() for _ in range(group.count)),
        )
        self.real[group.node_id] = ports
        name = f"pool-{group.node_id}"
        await self._start(
            name,
            python_module("simulators", "pool", "--port", str(ports.pool), "--difficulty", "2e-7"),
        )
        await wait_port(ports.pool, self.programs[name])
        (place / "host.toml").write_text(host_toml(group, ports, home=home))
        argv = python_module("edge_agent", "host", "--config", str(place / "host.toml"))
        await self._start(f"gpu-{group.node_id}", argv, ready=place / "gpu.sock")

    async def _start(self, name: str, argv: list[str], *, ready: Path | None = None) -> None:
        program = Program(name, argv, self.root / "log" / f"{name}.log", ready=ready)
        self.programs[name] = program
        await program.start()


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_port(port: int, program: Program, host: str = "127.0.0.1") -> None:
    """Wait until a port is listened on.

    Raises:
        StartError: the program ended first, or 30 s passed.
    """
    try:
        async with asyncio.timeout(30.0):
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, port)
                except OSError:
                    if not program.running:
                        raise StartError(f"{program.name} ended: {program.log_tail()}") from None
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return
    except TimeoutError:
        raise StartError(f"{program.name} does not listen: {program.log_tail()}") from None


async def run_command(argv: list[str], stdin: str = "", ok: tuple[int, ...] = (0,)) -> str:
    """Run a command to its end; return its standard output.

    Raises:
        StartError: with its error output, for a status not in ``ok``.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60.0):
        out, err = await process.communicate(stdin.encode())
    if process.returncode not in ok:
        raise StartError(f"{' '.join(argv[1:5])} gave {process.returncode}: {err.decode()[-2000:]}")
    return out.decode()


def parse_json(text: str) -> Any:  # noqa: ANN401 - JSON
    """Read the JSON that a command printed."""
    return json.loads(text)

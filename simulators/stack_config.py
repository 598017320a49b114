"""Sites of a local stack, and the config files that its programs read."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from protocol.resource import MODELS

# Longest start of a server that is started at each switch, on a busy machine.
RESTART_S = 14.0


class AsicGroup(Struct, frozen=True, kw_only=True):
    """Miners of one model at consecutive loopback addresses, served by one simulator."""

    model: str
    count: int
    first_address: str


class GpuGroup(Struct, frozen=True, kw_only=True):
    """GPUs of one model on one node; the work of ``real`` ones is done, on this machine's CPU.

    Args:
        restarts: servers are started and ended at each switch, so that they may be held ready.
    """

    node_id: str
    model: str
    count: int
    real: bool = False
    restarts: bool = False


class SiteSpec(Struct, frozen=True, kw_only=True):
    """One site of the stack.

    Args:
        power_cap_w: at the meter. asics, gpus: groups.
    """

    site_id: str
    power_cap_w: float
    asics: tuple[AsicGroup, ...] = ()
    gpus: tuple[GpuGroup, ...] = ()

    @property
    def asic_count(self) -> int:
        """Count of miners."""
        return sum(group.count for group in self.asics)

    @property
    def gpu_count(self) -> int:
        """Count of GPUs."""
        return sum(group.count for group in self.gpus)


class MarketSpec(Struct, frozen=True, kw_only=True):
    """Replay of a directory: from an instant of the data, at a factor; it starts with the sites."""

    directory: str
    from_utc: str
    factor: float = 900.0


class SeededMarket(Struct, frozen=True, kw_only=True):
    """A market of `hcp-sim market`, started with the stack; it answers over HTTP."""

    seed: int = 0
    factor: float = 1.0


class HttpMarket(Struct, frozen=True, kw_only=True):
    """A source on loopback that somebody else serves; it is asked every `period_s`."""

    port: int
    period_s: float = 1.0


class Tuning(Struct, frozen=True, kw_only=True):
    """What a demo changes of a site's economics, so that hours fit into seconds.

    Args:
        time_scale: divides restart, dwell, stay and ramp times (and so the restart cost).
        tick_s: period of the decision.
        quarantine_after: failed switches of a device in ten minutes that take it out of use.
        prewarm_rest_s: that a device is left alone after it was held ready in vain; None: as of a
            real site.
    """

    time_scale: float = 900.0
    tick_s: float = 1.0
    quarantine_after: int = 3
    prewarm_rest_s: float | None = None


DESIGN_SITES: tuple[SiteSpec, ...] = (
    SiteSpec(
        site_id="lubbock",
        power_cap_w=100e6,
        asics=(
            AsicGroup(model="S21", count=10_000, first_address="127.64.0.1"),
            AsicGroup(model="S19XP", count=5_000, first_address="127.65.0.1"),
        ),
        gpus=(GpuGroup(node_id="lubbock-g1", model="H100", count=1_200),),
    ),
    SiteSpec(
        site_id="houston",
        power_cap_w=75e6,
        asics=(AsicGroup(model="S21", count=8_000, first_address="127.66.0.1"),),
        gpus=(GpuGroup(node_id="houston-g1", model="H100", count=800),),
    ),
    SiteSpec(
        site_id="fargo",
        power_cap_w=50e6,
        asics=(AsicGroup(model="S21", count=15_000, first_address="127.67.0.1"),),
        gpus=(
            GpuGroup(node_id="fargo-g1", model="A100", count=400),
            GpuGroup(node_id="fargo-r1", model="L40S", count=1, real=True),
        ),
    ),
)


def scaled(site: SiteSpec, scale: float) -> SiteSpec:
    """Give the site at ``scale`` of its size, at least one device per group."""
    return SiteSpec(
        site_id=site.site_id,
        power_cap_w=site.power_cap_w * scale,
        asics=tuple(
            AsicGroup(
                model=group.model,
                count=max(1, round(group.count * scale)),
                first_address=group.first_address,
            )
            for group in site.asics
        ),
        gpus=tuple(
            GpuGroup(
                node_id=group.node_id,
                model=group.model,
                # Real work is not scaled: this machine has its few cores.
                count=group.count if group.real else min(64, max(1, round(group.count * scale))),
                real=group.real,
                restarts=group.restarts,
            )
            for group in site.gpus
        ),
    )


def gpu_device_ids(group: GpuGroup) -> list[str]:
    """Name the devices of a group, in the order of the host's own names gpu0, gpu1, ..."""
    return [f"{group.node_id}-gpu{place}" for place in range(group.count)]


def agent_toml(
    site: SiteSpec,
    *,
    home: Path,
    broker_port: int,
    asic_ports: dict[str, tuple[int, int]],
    market: MarketSpec | HttpMarket | None,
    market_started_utc: str,
    tuning: Tuning,
) -> str:
    """Write an agent's config; ``asic_ports`` gives (API, web) port per model."""
    parts = [
        f'site_id = "{site.site_id}"',
        f'data_dir = "{home / "data"}"',
        f'run_dir = "{home / "run"}"',
        f"tick_s = {tuning.tick_s}",
        f"[limits]\npower_cap_w = {site.power_cap_w}",
        # A tenth of the cap per minute, as a real site, in scaled time.
        f"ramp_w_per_min = {site.power_cap_w * 0.1 * tuning.time_scale}",
        f"quarantine_after = {tuning.quarantine_after}",
        f'[mqtt]\nhost = "127.0.0.1"\nport = {broker_port}',
    ]
    if tuning.prewarm_rest_s is not None:
        parts.append(f"[prewarm]\nrest_s = {tuning.prewarm_rest_s}")
    parts += _market_toml(market, market_started_utc)
    models = dict.fromkeys(
        [group.model for group in site.asics] + [group.model for group in site.gpus]
    )
    parts += [_class_toml(model, tuning.time_scale) for model in models]
    for gpus in site.gpus:
        devices = ", ".join(f'"{name}"' for name in gpu_device_ids(gpus))
        parts.append(
            f'[[nodes]]\nnode_id = "{gpus.node_id}"\n'
            f'address = "unix:{node_home(home, gpus) / "link.sock"}"\n'
            f'device_class = "{gpus.model}"\ndevices = [{devices}]'
        )
    for asics in site.asics:
        port, web_port = asic_ports[asics.model]
        parts.append(
            f'[[asics]]\nprefix = "{site.site_id}-{asics.model.lower()}-"\n'
            f'device_class = "{asics.model}"\nfirst_address = "{asics.first_address}"\n'
            f"count = {asics.count}\nport = {port}\nweb_port = {web_port}"
        )
    return "\n".join(parts) + "\n"


def node_toml(site: SiteSpec, group: GpuGroup, *, home: Path) -> str:
    """Write a node's config."""
    place = node_home(home, group)
    parts = [
        f'node_id = "{group.node_id}"',
        f'site_id = "{site.site_id}"',
        f'listen = "unix:{place / "link.sock"}"',
        f'data_dir = "{place / "data"}"',
        f'[driver]\nkind = "host"\nsocket = "{place / "gpu.sock"}"',
    ]
    if group.restarts:
        parts.append(f"timeout_s = {RESTART_S + 5.0}")
    parts += [
        f'[[device]]\ndevice_id = "{device_id}"\ngpu = "gpu{place_no}"\n'
        f'device_class = "{group.model}"'
        for place_no, device_id in enumerate(gpu_device_ids(group))
    ]
    return "\n".join(parts) + "\n"


def asic_control(home: Path, group: AsicGroup) -> Path:
    """Give the control socket of a group's simulator: faults in, truth out."""
    return home / f"asic-{group.model.lower()}.sock"


def node_home(home: Path, group: GpuGroup) -> Path:
    """Give the folder of a node inside its site's."""
    return home / group.node_id


def _market_toml(market: MarketSpec | HttpMarket | None, started_utc: str) -> list[str]:
    rates = "\n".join(
        f'[[market.gpu_rates]]\ndevice_class = "{name}"\n'
        f"serve_usd_per_h = {serve}\nmine_usd_per_h = {mine}"
        for name, serve, mine in (
            ("H100", 1.99, 0.30),
            ("A100", 1.74, 0.20),
            ("H200", 2.99, 0.35),
            ("L40S", 0.86, 0.12),
        )
    )
    if market is None:
        return ['[market]\nkind = "none"', rates]
    if isinstance(market, HttpMarket):
        period = f"period_s = {market.period_s}"
        return [f'[market]\nkind = "http"\nport = {market.port}\n{period}', rates]
    lines = [
        "[market]",
        'kind = "csv"',
        f'directory = "{market.directory}"',
        f"factor = {market.factor}",
        f'from_utc = "{market.from_utc}"',
        f'started_utc = "{started_utc}"',
    ]
    return [*lines, rates]


def _class_toml(model: str, time_scale: float) -> str:
    # The defaults of a real site, divided: wear and lost time shrink with the time they stand for.
    seconds = {"warmup_s": 300.0, "dwell_s": 900.0, "interval_s": 900.0}
    lines = [f"{name} = {value / time_scale}" for name, value in seconds.items()]
    if MODELS[model].hashrate_ths > 0:
        lines.append(f"wear_usd = {0.10 / time_scale}")
    else:
        lines += [f"serve_start_s = {45.0 / time_scale}", f"mine_start_s = {10.0 / time_scale}"]
    return "\n".join([f'[[classes]]\nmodel = "{model}"', *lines])

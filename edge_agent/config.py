"""The agent's configuration: one TOML file into one frozen Struct, and from it the site.

Ceilings stand here; the hub's policy may only tighten them. Secrets are named, never written: a
credential is a file in ``$CREDENTIALS_DIRECTORY`` (systemd) or in ``credentials_dir``.
"""

import ipaddress
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, structs

from edge_agent.addresses import check_address, is_local
from edge_agent.config_ranges import check_limits, check_table
from edge_agent.core.curve import ModePoint, hull
from edge_agent.core.errors import SiteError
from edge_agent.core.site import Device, DeviceClass, Limits, Site
from edge_agent.core.step_table import STEPS_MAX
from edge_agent.feeder_settings import (
    FEEDERS_MAX,
    FeederRow,
    Place,
    check_feeders,
    feeders_of,
    names_of,
)
from edge_agent.inventory import InventoryError, Label, MinerLine, read_inventory
from edge_agent.prewarm_settings import PrewarmRow, check_prewarm, limits_of
from firmware_bridges.families import FAMILY_OF
from firmware_bridges.targets import TargetError, addresses_of
from protocol.market import GpuRate
from protocol.resource import MODELS, DeviceKind
from protocol.settings import Problem, SettingsError, located, parse_settings
from protocol.units import Ident, SiteName

CONFIG_BYTES_MAX = 4 << 20
AUTO_KIND = "auto"
DEFAULT_KIND = "antminer-stock"
_Port = Annotated[int, Meta(ge=1, le=65_535)]
_Watts = Annotated[float, Meta(gt=0, le=1e10)]
_Seconds = Annotated[float, Meta(gt=0, le=86_400)]
_AnySeconds = Annotated[float, Meta(ge=0, le=31_622_400)]
_Pue = Annotated[float, Meta(ge=1, le=3)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Usd = Annotated[float, Meta(ge=0, le=1e6)]


class Mqtt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The broker. With TLS the client certificate's CN is the site id.

    Args:
        tls_ca, tls_cert, tls_key: names of credentials; all three or none.
    """

    host: Annotated[str, Meta(min_length=1, max_length=255)]
    port: _Port = 8883
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""


class NodeLink(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this site proves itself to nodes on other machines.

    Args:
        tls_ca, tls_cert, tls_key: names of credentials. The certificate's CN is the site id; a
            node's is its node id.
    """

    tls_ca: Ident
    tls_cert: Ident
    tls_key: Ident


class Market(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where prices come from.

    Args:
        kind: ``csv`` replays a directory; ``http`` polls ``GET /tick`` of host:port.
        factor: source seconds per second of a replay. from_utc: where the replay starts (ISO 8601);
            empty: the present, for a directory that is kept up to date.
        started_utc: the instant mapped to ``from_utc``; empty: the start of the agent.
        name: of the feed where there are several; empty takes the source's own.
    """

    kind: Literal["csv", "http", "none"] = "none"
    directory: str = ""
    factor: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    from_utc: str = ""
    started_utc: str = ""
    host: str = "127.0.0.1"
    port: _Port = 8090
    period_s: _Seconds = 1.0
    gpu_rates: tuple[GpuRate, ...] = ()
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{0,64}$(?!\n)")] = ""


class ClassRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Economics of one class; what is left out keeps the default of ``DeviceClass``."""

    model: str
    name: str = ""
    pue: _Pue | None = None
    adder_usd_per_mwh: Annotated[float, Meta(ge=-1e4, le=1e4)] | None = None
    pool_fee: _Share | None = None
    wear_usd: _Usd | None = None
    warmup_s: _AnySeconds | None = None
    serve_start_s: _AnySeconds | None = None
    mine_start_s: _AnySeconds | None = None
    dwell_s: _AnySeconds | None = None
    interval_s: _Seconds | None = None
    ski_rental: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    pue_by_ambient_c: tuple[tuple[float, float], ...] | None = None
    min_up_s: _AnySeconds | None = None
    min_down_s: _AnySeconds | None = None
    warm_reserve: Annotated[int, Meta(ge=0, le=65_536)] | None = None
    warm_reserve_max: Annotated[int, Meta(ge=0, le=1_024)] | None = None
    sla_usd: _Usd | None = None
    modes: Annotated[tuple[ModePoint, ...], Meta(max_length=64)] | None = None
    mode_change_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    set_modes: bool | None = None


class Duties(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the grid asks of the site in a back-test, drawn from a seed; watts at the meter.

    Args:
        cap_low_w, cap_high_w: range of the cap. cap_hold_h: mean time for which a cap stands.
        orders_per_month: mean number of orders to curtail. order_low_w, order_high_w: range of the
            load asked for. order_h_least, order_h_most: range of their length.
        notice_min: longest notice of an order, and the notice of another cap.
        rise_w_per_min, fall_w_per_min: how fast the load may change.
    """

    seed: Annotated[int, Meta(ge=0, le=2**32)] = 1
    cap_low_w: _Watts = 45e6
    cap_high_w: _Watts = 60e6
    cap_hold_h: Annotated[float, Meta(gt=0, le=100_000)] = 24.0
    orders_per_month: Annotated[float, Meta(ge=0, le=1_000)] = 6.0
    order_low_w: _Watts = 5e6
    order_high_w: _Watts = 35e6
    order_h_least: Annotated[float, Meta(gt=0, le=1_000)] = 0.5
    order_h_most: Annotated[float, Meta(gt=0, le=1_000)] = 4.0
    notice_min: Annotated[float, Meta(ge=15, le=1_440)] = 60.0
    rise_w_per_min: _Watts = 1e6
    fall_w_per_min: _Watts = 2e6


class Backtest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a back-test assumes of this site beyond its market's directory.

    Args:
        demand_quantile: the hour of the request trace that asks for all GPUs. demand_slices:
            groups that the GPUs of a class are asked in. preempt_usd: cost of ending a service
            that is still asked for. duties: a changing cap and orders; none: the cap stands.
    """

    demand_quantile: Annotated[float, Meta(ge=0, le=1)] = 0.75
    demand_slices: Annotated[int, Meta(ge=1, le=1_000)] = 20
    preempt_usd: Annotated[float, Meta(ge=0, le=1_000)] = 0.5
    duties: Duties | None = None


class NodeRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU host and its devices.

    Args:
        address: ``unix:PATH`` or ``tcp:HOST:PORT`` of the node's link.
        devices: device ids in the order of the node's own config.
    """

    node_id: Ident
    address: str
    device_class: Ident
    devices: tuple[Ident, ...]


class AsicRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Miners that are alike: at consecutive addresses, in ranges, or as an inventory lists them.

    Args:
        prefix: device ids are ``prefix`` + digits from 0001; an inventory may give its own.
        first_address: IPv4 of the first one. count: how many.
        addresses: ``10.1.0.5``, ``10.1.0.5-40`` or ``10.1.0.0/20`` (its hosts).
        inventory: CSV file, its path relative to this file; see ``edge_agent.inventory``.
        miners: what the inventory says; may be written here instead.
        kind: firmware family of all that the inventory gives no other.
        port, web_port, v3_port: where they differ from those of the firmware.
        rack, row, customer: labels.
        username, password_credential: of the miners' web pages; none means the factory's.
    """

    prefix: Ident
    device_class: Ident
    first_address: str = ""
    count: Annotated[int, Meta(ge=0, le=65_536)] = 0
    addresses: tuple[str, ...] = ()
    inventory: str = ""
    miners: tuple[MinerLine, ...] = ()
    kind: str = DEFAULT_KIND
    port: _Port | None = None
    web_port: _Port | None = None
    v3_port: _Port | None = None
    rack: Label = ""
    row: Label = ""
    customer: Label = ""
    username: str = "root"
    password_credential: str = ""


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `hcp-agent run` needs.

    Args:
        tick_s: period of the decision.
        data_dir: durable data. run_dir: sockets and the last snapshot.
        view_socket, control_socket: names inside ``run_dir``.
        node_link: needed where a node is on another machine.
        market: where prices come from. feeds: further sources that confirm or contradict it.
        feeders: parts of the supply with caps of their own.
        prewarm: engines that are held ready for likely switches.
    """

    site_id: SiteName
    limits: Limits
    classes: tuple[ClassRow, ...]
    data_dir: str = "/var/lib/hcp-agent"
    run_dir: str = "/run/hcp-agent"
    credentials_dir: str = ""
    tick_s: Annotated[float, Meta(ge=0.05, le=60)] = 5.0
    telemetry_cap_gib: Annotated[float, Meta(gt=0, le=10_000)] = 20.0
    mqtt: Mqtt | None = None
    market: Market = Market()
    feeds: tuple[Market, ...] = ()
    backtest: Backtest = Backtest()
    node_link: NodeLink | None = None
    nodes: tuple[NodeRow, ...] = ()
    asics: tuple[AsicRow, ...] = ()
    feeders: Annotated[tuple[FeederRow, ...], Meta(max_length=FEEDERS_MAX)] = ()
    prewarm: PrewarmRow = PrewarmRow()


class AsicAddress(Struct, frozen=True, kw_only=True):
    """How one miner is reached."""

    device_id: str
    device_class: str
    host: str
    kind: str
    port: int | None
    web_port: int | None
    v3_port: int | None
    rack: str
    row: str
    customer: str
    username: str
    password_credential: str


def read_config(path: Path) -> AgentConfig:
    """Read and check a configuration file.

    Raises:
        SettingsError: with every problem found.
    """
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= CONFIG_BYTES_MAX else ""
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(str(path), (Problem(path="file", detail=str(exc)),)) from exc
    if size > CONFIG_BYTES_MAX:
        problem = Problem(path="file", detail=f"larger than {CONFIG_BYTES_MAX} bytes")
        raise SettingsError(str(path), (problem,))
    config = parse_settings(text, AgentConfig, str(path))
    try:
        config = with_inventories(config, path)
    except SettingsError as exc:
        raise SettingsError(str(path), located(text, exc.problems)) from exc
    problems = located(text, _check(config))
    if problems:
        raise SettingsError(str(path), problems)
    return config


def check_links(config: AgentConfig, source: str) -> None:
    """Refuse to run a site whose nodes on other machines could be anybody.

    A back-test reaches no node, so a site's file is good for it without this.

    Raises:
        SettingsError: ``[node_link]`` is missing.
    """
    detail = "is on another machine: [node_link] must name the site's certificate"
    problems = tuple(
        Problem(path=f"nodes[{place}].address", detail=detail)
        for place, node in enumerate(config.nodes)
        if config.node_link is None and not is_local(node.address)
    )
    if problems:
        raise SettingsError(source, problems)


def with_inventories(config: AgentConfig, path: Path) -> AgentConfig:
    """Give the configuration with the miners of its CSV files.

    Raises:
        SettingsError: an inventory cannot be read; with every problem found.
    """
    rows: list[AsicRow] = []
    problems: list[Problem] = []
    for place, row in enumerate(config.asics):
        if not row.inventory:
            rows.append(row)
            continue
        try:
            lines = read_inventory(path.parent / row.inventory)
        except InventoryError as exc:
            problems.append(Problem(path=f"asics[{place}].inventory", detail=str(exc)))
        else:
            rows.append(structs.replace(row, miners=(*row.miners, *lines)))
    if problems:
        raise SettingsError(str(path), tuple(problems))
    return structs.replace(config, asics=tuple(rows))


def build_site(config: AgentConfig) -> Site:
    """Build the static site: GPUs of the nodes first, then the miners, in the order of the file.

    Raises:
        SettingsError: the configuration was not read from a file, and is no site.
    """
    places = _places(config)
    devices = tuple(place.device for place in places)
    if config.feeders:
        names = names_of(config.feeders, places)
        devices = tuple(
            structs.replace(device, feeder=name)
            for device, name in zip(devices, names, strict=True)
        )
    classes = tuple(_device_class(row) for row in config.classes)
    try:
        return Site(
            config.site_id,
            classes,
            devices,
            config.limits,
            feeders_of(config.feeders),
            limits_of(config.prewarm),
        )
    except SiteError as exc:
        problem = Problem(path=exc.detail.split(" ", maxsplit=1)[0], detail=exc.detail)
        raise SettingsError(config.site_id, (problem,)) from exc


def _places(config: AgentConfig) -> tuple[Place, ...]:
    gpus = [
        Place(Device(device_id=device_id, device_class=node.device_class, node_id=node.node_id))
        for node in config.nodes
        for device_id in node.devices
    ]
    miners = [
        Place(
            Device(
                device_id=asic.device_id,
                device_class=asic.device_class,
                address=asic.host,
                firmware="" if asic.kind == AUTO_KIND else asic.kind,
            ),
            asic.rack,
        )
        for asic in asic_addresses(config)
    ]
    return (*gpus, *miners)


def asic_addresses(config: AgentConfig) -> tuple[AsicAddress, ...]:
    """Give every miner with its address, in the order of the site's columns."""
    return tuple(
        AsicAddress(
            device_id=line.device_id or f"{row.prefix}{number:04d}",
            device_class=row.device_class,
            host=line.address,
            kind=line.kind or row.kind,
            port=line.port or row.port,
            web_port=line.web_port or row.web_port,
            v3_port=line.v3_port or row.v3_port,
            rack=line.rack or row.rack,
            row=line.row or row.row,
            customer=line.customer or row.customer,
            username=row.username,
            password_credential=row.password_credential,
        )
        for row in config.asics
        for number, line in enumerate(_lines(row), start=1)
    )


def _lines(row: AsicRow) -> Iterator[MinerLine]:
    """Give the miners of one row: the run, then the ranges, then the inventory."""
    for number in range(row.count):
        yield MinerLine(address=str(ipaddress.IPv4Address(row.first_address) + number))
    for address in addresses_of(row.addresses):
        yield MinerLine(address=address)
    yield from row.miners


def _device_class(row: ClassRow) -> DeviceClass:
    given = {
        key: value
        for key, value in msgspec.structs.asdict(row).items()
        if value is not None and key != "model"
    }
    return DeviceClass(model=MODELS[row.model], **given)


def _check(config: AgentConfig) -> Iterator[Problem]:
    yield from check_limits(config.limits)
    yield from check_prewarm(config.prewarm)
    yield from _check_classes(config)
    yield from _check_class_names(config)
    wrong = (*_check_nodes(config), *_check_asics(config))
    yield from wrong
    if config.feeders and not wrong:
        yield from check_feeders(config.feeders, _places(config))
    yield from _check_market("market", config.market)
    names = {config.market.name or config.market.kind}
    for place, feed in enumerate(config.feeds):
        yield from _check_market(f"feeds[{place}]", feed)
        name = feed.name or feed.kind
        if name in names:
            yield Problem(path=f"feeds[{place}].name", detail=f"{name} is there twice")
        names.add(name)
    yield from _check_duties(config.backtest.duties)
    if config.mqtt is not None:
        given = [
            bool(name) for name in (config.mqtt.tls_ca, config.mqtt.tls_cert, config.mqtt.tls_key)
        ]
        if any(given) and not all(given):
            yield Problem(path="mqtt", detail="tls_ca, tls_cert and tls_key: all three or none")


def _check_classes(config: AgentConfig) -> Iterator[Problem]:
    names: set[str] = set()
    for place, row in enumerate(config.classes):
        path = f"classes[{place}]"
        if row.model not in MODELS:
            known = ", ".join(sorted(MODELS))
            yield Problem(path=f"{path}.model", detail=f"unknown model {row.model}; known: {known}")
        name = row.name or row.model
        if name in names:
            yield Problem(path=f"{path}.name", detail=f"the class {name} is there twice")
        names.add(name)
        yield from _check_modes(f"{path}.modes", row)
        yield from check_table(f"{path}.pue_by_ambient_c", row.pue_by_ambient_c)


def _check_class_names(config: AgentConfig) -> Iterator[Problem]:
    """Give what is wrong with the classes that nodes (no miners) and miners (nothing else) name."""
    models = {row.name or row.model: MODELS.get(row.model) for row in config.classes}
    wanted = [(f"nodes[{at}]", row.device_class, False) for at, row in enumerate(config.nodes)]
    wanted += [(f"asics[{at}]", row.device_class, True) for at, row in enumerate(config.asics)]
    for path, name, mines_only in wanted:
        model = models.get(name)
        if name not in models:
            yield Problem(path=f"{path}.device_class", detail=f"no class {name} in [[classes]]")
        elif model is not None and (model.kind is DeviceKind.ASIC) is not mines_only:
            what = "is no class of miners" if mines_only else "is a class of miners"
            yield Problem(path=f"{path}.device_class", detail=f"{name} {what}")


def _check_modes(path: str, row: ClassRow) -> Iterator[Problem]:
    if row.set_modes and not row.modes:
        yield Problem(path=path, detail="set_modes needs them: which mode draws and hashes what")
    if not row.modes or row.model not in MODELS:
        return
    model = MODELS[row.model]
    if model.kind is not DeviceKind.ASIC:
        yield Problem(path=path, detail=f"{row.model} is no miner: it has no power modes")
        return
    if len({point.mode for point in row.modes}) < len(row.modes):
        yield Problem(path=path, detail="a mode is there twice")
    if row.set_modes and len(hull(row.modes, model.curtailed_w)) > STEPS_MAX:
        yield Problem(path=path, detail=f"at most {STEPS_MAX} modes can be set")
    if not hull(row.modes, model.curtailed_w):
        yield Problem(path=path, detail=f"no point above sleep ({model.curtailed_w:g} W)")


def _check_duties(duties: Duties | None) -> Iterator[Problem]:
    if duties is None:
        return
    for low, high in (
        ("cap_low_w", "cap_high_w"),
        ("order_low_w", "order_high_w"),
        ("order_h_least", "order_h_most"),
    ):
        if getattr(duties, low) > getattr(duties, high):
            yield Problem(path=f"backtest.duties.{low}", detail=f"is above {high}")


def _check_nodes(config: AgentConfig) -> Iterator[Problem]:
    ids: set[str] = set()
    devices: set[str] = set()
    for place, node in enumerate(config.nodes):
        path = f"nodes[{place}]"
        try:
            check_address(node.address)
        except ValueError as exc:
            yield Problem(path=f"{path}.address", detail=str(exc))
        if node.node_id in ids:
            yield Problem(path=f"{path}.node_id", detail=f"{node.node_id} is there twice")
        if not node.devices:
            yield Problem(path=f"{path}.devices", detail="a node has at least one device")
        for device_id in node.devices:
            if device_id in devices:
                yield Problem(path=f"{path}.devices", detail=f"{device_id} is there twice")
            devices.add(device_id)
        ids.add(node.node_id)


def _check_asics(config: AgentConfig) -> Iterator[Problem]:
    ids = {device_id for node in config.nodes for device_id in node.devices}
    hosts: set[str] = set()
    for place, row in enumerate(config.asics):
        path = f"asics[{place}]"
        if (row.count > 0) != bool(row.first_address):
            yield Problem(path=f"{path}.count", detail="first_address and count belong together")
            continue
        try:
            if row.first_address:
                ipaddress.IPv4Address(int(ipaddress.IPv4Address(row.first_address)) + row.count - 1)
            lines = asic_addresses(structs.replace(config, asics=(row,)))
        except ipaddress.AddressValueError as exc:
            yield Problem(path=f"{path}.first_address", detail=str(exc))
            continue
        except TargetError as exc:
            yield Problem(path=f"{path}.addresses", detail=str(exc))
            continue
        if not lines:
            yield Problem(path=path, detail="no miner: give count, addresses or inventory")
        yield from _check_lines(path, lines, ids, hosts)


def _check_lines(
    path: str, lines: tuple[AsicAddress, ...], ids: set[str], hosts: set[str]
) -> Iterator[Problem]:
    for line in lines:
        problem = ""
        if line.kind != AUTO_KIND and line.kind not in FAMILY_OF:
            known = ", ".join(sorted((*FAMILY_OF, AUTO_KIND)))
            problem = f"kind {line.kind}: no such firmware family; known: {known}"
        elif line.device_id in ids:
            problem = f"device_id {line.device_id} is there twice"
        elif line.host in hosts:
            problem = f"address {line.host} is there twice"
        ids.add(line.device_id)
        hosts.add(line.host)
        if problem:
            yield Problem(path=path, detail=problem)
            return


def _check_market(path: str, market: Market) -> Iterator[Problem]:
    if market.kind == "csv" and not market.directory:
        yield Problem(path=f"{path}.directory", detail="is needed by kind csv")
    for field in ("from_utc", "started_utc"):
        text = getattr(market, field)
        if not text:
            continue
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            yield Problem(path=f"{path}.{field}", detail=f"{text!r} is no ISO 8601 time")
        else:
            if at.tzinfo is None:
                yield Problem(path=f"{path}.{field}", detail="needs a time zone, e.g. a final Z")

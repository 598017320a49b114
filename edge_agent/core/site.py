"""The static site: classes of devices, the devices, and the limits; columns are made once.

A device's index is its place in ``Site.devices`` and the row of every column in state and plan.
Facts and stored switches name devices by id, so that a changed site file shifts no history.
"""

from collections.abc import Callable
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from edge_agent.core.curve import ModePoint, Step, steps
from edge_agent.core.errors import SiteError
from edge_agent.core.prewarm_limits import PrewarmLimits
from edge_agent.core.step_table import STEPS_MAX, StepTable, mine_w_max, step_points, step_table
from protocol.market import PRICE_USD_PER_MWH_MAX, PRICE_USD_PER_MWH_MIN
from protocol.resource import ACTIVITY_CODES, Activity, DeviceKind, DeviceModel

FloatColumn = npt.NDArray[np.float64]
IntColumn = npt.NDArray[np.int64]
IndexColumn = npt.NDArray[np.int32]
CodeColumn = npt.NDArray[np.uint8]
FlagColumn = npt.NDArray[np.bool_]
Column = TypeVar("Column", bound=npt.NDArray[Any])

CODE_OF: dict[Activity, int] = {activity: code for code, activity in enumerate(ACTIVITY_CODES)}
UNKNOWN = CODE_OF[Activity.UNKNOWN]
MINE = CODE_OF[Activity.MINE]
SERVE = CODE_OF[Activity.SERVE]
IDLE = CODE_OF[Activity.IDLE]
CURTAILED = CODE_OF[Activity.CURTAILED]
SWITCHING = CODE_OF[Activity.SWITCHING]
MAINTENANCE = CODE_OF[Activity.MAINTENANCE]
FAULT = CODE_OF[Activity.FAULT]
ACTIVITIES = len(ACTIVITY_CODES)

NS_PER_S = 1_000_000_000
# Spread columns that are kept, and the mean run of devices of one class from which on values are
# repeated and not gathered, which takes a third of the time.
SPREADS_MAX = 12
RUN_MIN = 16

# Floor and cap of a market, widened by a tenth: congestion takes single points beyond the cap
# (LZ_AEN 9,053 under a cap of 9,000 in 2021).
# Source: ERCOT's cap is 5,000 since 2022, its floor -251; AEMO's NEM reaches 20,000 and -1,000.
PRICE_BOUNDS: dict[str, tuple[float, float]] = {
    "": (PRICE_USD_PER_MWH_MIN, PRICE_USD_PER_MWH_MAX),
    "ercot": (-276.1, 5_500.0),
    "nem": (-1_100.0, 22_000.0),
}


class DeviceClass(Struct, frozen=True, kw_only=True):
    """Economics of one class of devices on this site.

    Args:
        model: nameplate row. name: class name in leases and rate cards; empty takes the model's.
        pue: site watts per device watt. adder_usd_per_mwh: fees on top of the energy price.
        pool_fee: share of mining revenue, 0..1. wear_usd: wear of one wake-up, per device.
        warmup_s: seconds at full power without earning after a wake-up.
        serve_start_s, mine_start_s: seconds of revenue lost when serving or mining starts.
        dwell_s: least stay in an activity before a change for money alone.
        interval_s: length of a settlement interval, in the time of this agent.
        ski_rental: change at the latest when the regret of staying reaches so many restarts.
        pue_by_ambient_c: (temperature, PUE) in ascending order; ``pue`` while none is known. The
            cap counts the highest.
        min_up_s, min_down_s: least time on and off, where longer than ``dwell_s``.
        warm_reserve: GPUs of the class that are kept idle for bursts instead of mining.
        warm_reserve_max: most that are kept so because leases come (``reserve``); 0: none are.
        sla_usd: cost of ending a lease early, per device.
        modes: measured points of a miner's power modes; none: it mines at the nameplate only.
        mode_change_s: seconds of the revenue of the mode reached that a cycle of one step costs.
        set_modes: the agent sets the modes of running miners; otherwise it only tells which are
            best.
    """

    model: DeviceModel
    name: str = ""
    pue: float = 1.05
    adder_usd_per_mwh: float = 5.0
    pool_fee: float = 0.02
    wear_usd: float = 0.10
    warmup_s: float = 300.0
    serve_start_s: float = 45.0
    mine_start_s: float = 10.0
    dwell_s: float = 900.0
    interval_s: float = 900.0
    ski_rental: float = 1.5
    pue_by_ambient_c: tuple[tuple[float, float], ...] = ()
    min_up_s: float = 0.0
    min_down_s: float = 0.0
    warm_reserve: int = 0
    warm_reserve_max: int = 0
    sla_usd: float = 0.0

    @property
    def pue_max(self) -> float:
        """Give the highest PUE that the class can have: what the cap counts."""
        return max([self.pue, *(pue for _, pue in self.pue_by_ambient_c)])

    modes: tuple[ModePoint, ...] = ()
    mode_change_s: float = 60.0
    set_modes: bool = False

    @property
    def least_up_s(self) -> float:
        """Give the least time on before a change for money alone."""
        return max(self.dwell_s, self.min_up_s)

    @property
    def least_down_s(self) -> float:
        """Give the least time off before a change for money alone."""
        return max(self.dwell_s, self.min_down_s)

    @property
    def class_name(self) -> str:
        """Give the name used in leases."""
        return self.name or self.model.name

    @property
    def steps(self) -> tuple[Step, ...]:
        """Give what each mode adds to the one below it; without modes one step, ``normal``."""
        model = self.model
        plain = ModePoint(mode="normal", rate_ths=model.hashrate_ths, power_w=model.mine_w)
        return steps(self.modes or (plain,), model.curtailed_w)


class Device(Struct, frozen=True, kw_only=True):
    """One device: who reaches it (a node, or an address for an ASIC); what runs on it, if known.

    Args:
        feeder: name of the feeder it hangs on; empty: only the site's cap binds it.
    """

    device_id: str
    device_class: str
    node_id: str | None = None
    address: str = ""
    firmware: str = ""
    feeder: str = ""


class Feeder(Struct, frozen=True, kw_only=True):
    """A part of the site's supply with a cap of its own, at the meter, PUE included."""

    name: str
    power_cap_w: float


class Limits(Struct, frozen=True, kw_only=True):
    """Ceilings of the local configuration; the hub's policy may only tighten them.

    Args:
        power_cap_w: at the site's meter, PUE included. ramp_w_per_min: None is 10 % of the cap.
        price_stale_s, coin_stale_s: age at which a value counts as stale: hold.
        safe_after_s: further age at which holding ends and ``safe_policy`` begins.
        shed_after_s: how long the *counted* load may stand above the cap before devices are shed;
            measured load above the cap sheds at once.
        reading_stale_s: age at which a device's reading no longer confirms anything.
        quarantine_after: failed switches of a device in ``quarantine_window_s`` that quarantine it
            for ``quarantine_s``.
        lease_restarts: restarts of a lost instance within ``restart_window_s``.
        price_knowledge: whether the feed's price is that of the running interval, or of the last
            closed one.
        price_market: whose floor and cap bound the price; empty is none.
        price_floor_usd_per_mwh, price_ceiling_usd_per_mwh: further bounds of the site's own; a
            price outside either is refused.
        agree_usd_per_mwh, agree_share: two feeds that differ by no more agree.
        near_usd_per_mwh: a price so near to the usual level is never a spike.
        confirm_values: intervals that an implausible price of one feed must stand to be believed.
        block_mw, block_usd_per_mwh: energy bought at a fixed price; what is not used is sold at
            spot less ``block_fee_usd_per_mwh``, or is lost where ``block_resale`` is none.
        peak_tariff, peak_usd_per_kw_year: charge by the load at the grid's monthly peaks, of the
            four summer months or of all twelve. peak_interval_s: over which they are metered.
        peak_from_hour_utc, peak_to_hour_utc: the hours in which a peak may fall.
        peak_near: share of the month's largest load from which on an interval may be its peak.
        peak_stop_h_per_month, peak_stop_usd_per_day: most that avoiding peaks may take.
    """

    power_cap_w: float
    ramp_w_per_min: float | None = None
    price_stale_s: float = 1_800.0
    coin_stale_s: float = 21_600.0
    safe_after_s: float = 3_600.0
    safe_policy: Literal["mine", "curtail"] = "mine"
    shed_after_s: float = 15.0
    reading_stale_s: float = 60.0
    quarantine_after: int = 3
    quarantine_window_s: float = 600.0
    quarantine_s: float = 3_600.0
    lease_restarts: int = 3
    restart_window_s: float = 600.0
    price_knowledge: Literal["nowcast", "settled"] = "nowcast"
    price_market: Literal["", "ercot", "nem"] = ""
    price_floor_usd_per_mwh: float = PRICE_USD_PER_MWH_MIN
    price_ceiling_usd_per_mwh: float = PRICE_USD_PER_MWH_MAX
    agree_usd_per_mwh: float = 2.0
    agree_share: float = 0.05
    near_usd_per_mwh: float = 100.0
    confirm_values: int = 3
    block_mw: float = 0.0
    block_usd_per_mwh: float = 0.0
    block_resale: Literal["spot", "none"] = "spot"
    block_fee_usd_per_mwh: float = 0.0
    peak_tariff: Literal["none", "4cp", "12cp"] = "none"
    peak_usd_per_kw_year: float = 0.0
    peak_interval_s: float = 900.0
    peak_from_hour_utc: float = 0.0
    peak_to_hour_utc: float = 24.0
    peak_near: float = 0.98
    peak_stop_h_per_month: float = 60.0
    peak_stop_usd_per_day: float = 20_000.0

    @property
    def price_bounds_usd_per_mwh(self) -> tuple[float, float]:
        """Give the lowest and the highest price that can be true here."""
        low, high = PRICE_BOUNDS[self.price_market]
        return max(low, self.price_floor_usd_per_mwh), min(high, self.price_ceiling_usd_per_mwh)

    @property
    def ramp_w_per_s(self) -> float:
        """Give the wake-up ramp in site watts per second."""
        per_min = self.power_cap_w * 0.1 if self.ramp_w_per_min is None else self.ramp_w_per_min
        return per_min / 60.0


class Site:
    """The site with its columns; built once, never changed.

    Args:
        site_id: the site's name. classes: every class that a device names. devices: in index order.
        limits: local ceilings. feeders: every feeder that a device names.
        prewarm: what may be held ready for likely switches; None: nothing.

    Raises:
        SiteError: duplicate ids, an unknown class or feeder, a GPU without a node, or a limit out
            of range.
    """

    def __init__(
        self,
        site_id: str,
        classes: tuple[DeviceClass, ...],
        devices: tuple[Device, ...],
        limits: Limits,
        feeders: tuple[Feeder, ...] = (),
        prewarm: PrewarmLimits | None = None,
    ) -> None:
        self.site_id = site_id
        self.classes = classes
        self.devices = devices
        self.limits = limits
        self.feeders = feeders
        self.prewarm = prewarm
        self._class_index = {row.class_name: at for at, row in enumerate(classes)}
        self._index = {device.device_id: at for at, device in enumerate(devices)}
        self._made: dict[Callable[..., Any], npt.NDArray[Any]] = {}
        self._spread: dict[bytes, FloatColumn] = {}
        self._check()
        self._check_feeders()
        self.nodes: tuple[str, ...] = tuple(
            dict.fromkeys(device.node_id for device in devices if device.node_id is not None)
        )
        node_index = {node_id: at for at, node_id in enumerate(self.nodes)}
        # In numpy's own type for indices: it copies any other at each use.
        self.class_of: IntColumn = np.array(
            [self._class_index[device.device_class] for device in devices], dtype=np.int64
        )
        self.class_of.flags.writeable = False
        self._runs = _runs(self.class_of)
        self.node_of: IndexColumn = _frozen_i4(
            [-1 if device.node_id is None else node_index[device.node_id] for device in devices]
        )
        place = {row.name: at for at, row in enumerate(feeders)}
        self.feeder_of: IndexColumn = _frozen_i4(
            [place[device.feeder] if device.feeder else -1 for device in devices]
        )
        self.steps: StepTable | None = step_table(classes)
        self.has_steps: FlagColumn = np.array([bool(step_points(row)) for row in classes])[
            self.class_of
        ]
        self.nameplate_w: FloatColumn = self._nameplate_w()
        self.pue: FloatColumn = self.spread([row.pue_max for row in classes])
        self.is_asic: FlagColumn = self.spread(
            [row.model.kind is DeviceKind.ASIC for row in classes]
        ).astype(np.bool_)
        self.is_asic.flags.writeable = False
        self.digest: bytes = blake2b(
            "\x1f".join(device.device_id for device in devices).encode(), digest_size=16
        ).digest()

    def __len__(self) -> int:
        return len(self.devices)

    def index_of(self, device_id: str) -> int | None:
        """Give the index of a device, or None when the site has no such device."""
        return self._index.get(device_id)

    def class_index(self, name: str) -> int | None:
        """Give the index of a class, or None when the site has no such class."""
        return self._class_index.get(name)

    def indices_of(self, device_ids: tuple[str, ...]) -> IntColumn:
        """Give the indices of the devices that the site still has, in the order given."""
        found = [self._index[key] for key in device_ids if key in self._index]
        return np.array(found, dtype=np.int64)

    def spread(self, per_class: list[float] | list[bool] | FloatColumn) -> FloatColumn:
        """Spread one value per class over the devices."""
        values: FloatColumn = np.asarray(per_class, dtype=np.float64)
        # By its bytes: 0.0 is not -0.0. Most of what a pass spreads is as in the pass before.
        key = values.tobytes()
        made = self._spread.get(key)
        if made is None:
            made = self._spread_out(values)
            kept = self._spread if len(self._spread) < SPREADS_MAX else {}
            self._spread = {**kept, key: made}
        return made

    def _spread_out(self, values: FloatColumn) -> FloatColumn:
        classes, lengths = self._runs
        column: FloatColumn
        if len(lengths) * RUN_MIN <= len(self.devices):
            column = values[classes].repeat(lengths)
        else:
            # No class is out of range: to clip spares the check of it.
            column = values.take(self.class_of, mode="clip")
        column.flags.writeable = False
        return column

    def column(self, of_class: Callable[[DeviceClass], float]) -> FloatColumn:
        """Give a constant of the classes, spread over the devices; computed once.

        Args:
            of_class: named once in its module: it is the key under which the column is kept.
        """
        made = self._made.get(of_class)
        if made is None:
            made = self._made[of_class] = self.spread([of_class(row) for row in self.classes])
        return made

    def once(self, make: Callable[["Site"], Column]) -> Column:
        """Give a column that depends on the site alone; computed once, never written.

        Args:
            make: a function of a module, the key under which the column is kept.
        """
        made = self._made.get(make)
        if made is None:
            made = self._made[make] = make(self)
            made.flags.writeable = False
        return cast("Column", made)

    def activity_w(self, code: CodeColumn) -> FloatColumn:
        """Give the nameplate watts of each device in an activity of its own."""
        out: FloatColumn = self.nameplate_w.ravel().take(
            self.once(_activity_row) + code, mode="clip"
        )
        return out

    def step_row(self, step: CodeColumn) -> npt.NDArray[np.unsignedinteger]:
        """Give the place of each device's step in a raveled table over class and step.

        Raises:
            AssertionError: the agent sets no power modes here.
        """
        assert self.steps is not None, "asked only where the agent sets modes"
        return self.once(_step_row) + step

    def _nameplate_w(self) -> FloatColumn:
        # (class, activity) in device watts; what is not known to be lower counts as the highest.
        table = np.zeros((len(self.classes), ACTIVITIES))
        for at, row in enumerate(self.classes):
            model = row.model
            mine_w = mine_w_max(row)
            highest = max(mine_w, model.serve_w, model.idle_w, model.curtailed_w)
            table[at, :] = highest
            table[at, MINE] = mine_w
            table[at, SERVE] = model.serve_w if model.serve_w > 0.0 else highest
            table[at, IDLE] = model.idle_w
            table[at, CURTAILED] = model.curtailed_w
        table.flags.writeable = False
        return table

    def _check(self) -> None:
        if len(self._index) != len(self.devices):
            raise SiteError("duplicate_device", "devices: a device_id stands twice")
        if len(self._class_index) != len(self.classes):
            raise SiteError("duplicate_class", "classes: a class name stands twice")
        if not 0.0 < self.limits.power_cap_w < 1e10:
            raise SiteError("bad_limit", "limits.power_cap_w must be within 0..1e10")
        low, high = self.limits.price_bounds_usd_per_mwh
        if not low < high:
            raise SiteError("bad_limit", "limits.price_floor_usd_per_mwh is above the ceiling")
        for row in self.classes:
            if len(step_points(row)) > STEPS_MAX:
                raise SiteError("too_many_modes", f"{row.class_name}.modes: at most {STEPS_MAX}")
            points = row.pue_by_ambient_c
            if any(one[0] >= other[0] for one, other in pairwise(points)):
                raise SiteError("bad_table", f"{row.class_name}.pue_by_ambient_c must ascend")
            if any(not 1.0 <= pue <= 3.0 for _, pue in points):
                raise SiteError("bad_table", f"{row.class_name}.pue_by_ambient_c: 1..3")
        for device in self.devices:
            at = self._class_index.get(device.device_class)
            if at is None:
                raise SiteError("unknown_class", f"devices[{device.device_id}].device_class")
            if self.classes[at].model.kind is not DeviceKind.ASIC and device.node_id is None:
                raise SiteError("no_node", f"devices[{device.device_id}].node_id is missing")

    def _check_feeders(self) -> None:
        names = {row.name for row in self.feeders}
        if len(names) != len(self.feeders):
            raise SiteError("duplicate_feeder", "feeders: a name stands twice")
        for feeder in self.feeders:
            if not 0.0 < feeder.power_cap_w < 1e10:
                raise SiteError("bad_limit", f"feeders[{feeder.name}].power_cap_w: 0..1e10")
        for device in self.devices:
            if device.feeder and device.feeder not in names:
                raise SiteError("unknown_feeder", f"devices[{device.device_id}].feeder")


def _activity_row(site: Site) -> npt.NDArray[np.unsignedinteger]:
    return _row_of(site, ACTIVITIES)


def _step_row(site: Site) -> npt.NDArray[np.unsignedinteger]:
    return _row_of(site, 0 if site.steps is None else site.steps.most + 1)


def _row_of(site: Site, width: int) -> npt.NDArray[np.unsignedinteger]:
    """Give where the row of each device's class begins; in the least type, to which codes add."""
    least = np.min_scalar_type(len(site.classes) * width)
    return (site.class_of * width).astype(least)


def _runs(class_of: IntColumn) -> tuple[IntColumn, IntColumn]:
    """Give class and length of each run of devices of one class."""
    starts = np.flatnonzero(np.diff(class_of, prepend=-1))
    return class_of[starts], np.diff(starts, append=len(class_of))


def _frozen_i4(values: list[int]) -> IndexColumn:
    column: IndexColumn = np.array(values, dtype=np.int32)
    column.flags.writeable = False
    return column

"""Devices: kinds, activities, and the nameplate rows of the models we know.

Sources: Bitmain product pages S21 (200 TH/s, 3,500 W) and S19 XP (140 TH/s, 3,010 W); NVIDIA data
sheets H100 SXM5, H200 SXM, A100 SXM4 80 GB, L40S (board power); the node share (CPU, fans, NIC)
included in the rows is an assumption of ours.
"""

from enum import StrEnum

from msgspec import Struct


class DeviceKind(StrEnum):
    """What a device is."""

    GPU = "gpu"
    ASIC = "asic"
    CPU = "cpu"


class Activity(StrEnum):
    """What a device does; every instant of a device's life is exactly one of these."""

    MINE = "mine"
    SERVE = "serve"
    IDLE = "idle"
    CURTAILED = "curtailed"
    SWITCHING = "switching"
    MAINTENANCE = "maintenance"
    FAULT = "fault"
    UNKNOWN = "unknown"


# Column code of each activity in arrays and telemetry; append only, never renumber.
ACTIVITY_CODES: tuple[Activity, ...] = (
    Activity.UNKNOWN,
    Activity.MINE,
    Activity.SERVE,
    Activity.IDLE,
    Activity.CURTAILED,
    Activity.SWITCHING,
    Activity.MAINTENANCE,
    Activity.FAULT,
)


class DeviceModel(Struct, frozen=True, kw_only=True):
    """Nameplate of one model; powers are at the device's share of the wall, before PUE.

    Args:
        name: class name used in leases and rate cards, e.g. ``H100``.
        hashrate_ths: SHA-256 rate of an ASIC in TH/s; 0 for a GPU.
        mine_w: power while mining. serve_w: while serving (0: cannot serve).
        idle_w: idle with everything on. curtailed_w: asleep.
        inrush_w: highest power for a moment at wake-up.
    """

    name: str
    kind: DeviceKind
    hashrate_ths: float
    mine_w: float
    serve_w: float
    idle_w: float
    curtailed_w: float
    inrush_w: float
    vram_gib: int = 0


CATALOG: tuple[DeviceModel, ...] = (
    DeviceModel(
        name="S21",
        kind=DeviceKind.ASIC,
        hashrate_ths=200.0,
        mine_w=3_500.0,
        serve_w=0.0,
        idle_w=350.0,
        curtailed_w=20.0,
        inrush_w=3_850.0,
    ),
    DeviceModel(
        name="S19XP",
        kind=DeviceKind.ASIC,
        hashrate_ths=140.0,
        mine_w=3_010.0,
        serve_w=0.0,
        idle_w=300.0,
        curtailed_w=20.0,
        inrush_w=3_311.0,
    ),
    DeviceModel(
        name="H100",
        kind=DeviceKind.GPU,
        hashrate_ths=0.0,
        mine_w=900.0,
        serve_w=1_275.0,
        idle_w=350.0,
        curtailed_w=350.0,
        inrush_w=1_275.0,
        vram_gib=80,
    ),
    DeviceModel(
        name="H200",
        kind=DeviceKind.GPU,
        hashrate_ths=0.0,
        mine_w=900.0,
        serve_w=1_275.0,
        idle_w=350.0,
        curtailed_w=350.0,
        inrush_w=1_275.0,
        vram_gib=141,
    ),
    DeviceModel(
        name="A100",
        kind=DeviceKind.GPU,
        hashrate_ths=0.0,
        mine_w=600.0,
        serve_w=812.0,
        idle_w=250.0,
        curtailed_w=250.0,
        inrush_w=812.0,
        vram_gib=80,
    ),
    DeviceModel(
        name="L40S",
        kind=DeviceKind.GPU,
        hashrate_ths=0.0,
        mine_w=420.0,
        serve_w=560.0,
        idle_w=180.0,
        curtailed_w=180.0,
        inrush_w=560.0,
        vram_gib=48,
    ),
)
MODELS: dict[str, DeviceModel] = {row.name: row for row in CATALOG}

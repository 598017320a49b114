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


def _asic(name: str, hashrate_ths: float, mine_w: float, curtailed_w: float) -> DeviceModel:
    """Give a miner: a tenth of its power while awake and idle, a tenth more while it starts."""
    return DeviceModel(
        name=name,
        kind=DeviceKind.ASIC,
        hashrate_ths=hashrate_ths,
        mine_w=mine_w,
        serve_w=0.0,
        idle_w=round(mine_w / 10.0, -1),
        curtailed_w=curtailed_w,
        inrush_w=round(mine_w * 1.1, 0),
    )


CATALOG: tuple[DeviceModel, ...] = (
    _asic("S21", 200.0, 3_500.0, 20.0),
    _asic("S19XP", 140.0, 3_010.0, 20.0),
    # Source: the makers' data sheets, the middle bin of each model; asleep, 15 to 25 W were read.
    _asic("S19PRO", 110.0, 3_250.0, 20.0),
    _asic("S19JPRO", 104.0, 3_068.0, 20.0),
    _asic("S19KPRO", 120.0, 2_760.0, 20.0),
    _asic("T21", 190.0, 3_610.0, 20.0),
    _asic("S21PLUS", 216.0, 3_564.0, 20.0),
    _asic("S21PRO", 234.0, 3_510.0, 20.0),
    _asic("S21XP", 270.0, 3_645.0, 20.0),
    _asic("M30S++", 112.0, 3_472.0, 15.0),
    _asic("M50S", 126.0, 3_276.0, 15.0),
    _asic("M60S", 186.0, 3_441.0, 15.0),
    _asic("M66S", 298.0, 5_513.0, 15.0),
    _asic("A1466", 150.0, 3_230.0, 25.0),
    _asic("A1566", 185.0, 3_420.0, 25.0),
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

"""Facts about the simulated miners, as rows: nameplates, firmware habits, times of a change."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from simulators.errors import SettingError


class WorkMode(IntEnum):
    """Work mode of Bitmain's stock firmware, as `miner-mode` writes it."""

    NORMAL = 0
    SLEEP = 1
    HIGH = 2
    LOW = 3


class Firmware(msgspec.Struct, frozen=True, kw_only=True):
    """Habits of a firmware build.

    Args:
        joins: Whether joined commands such as `summary+pools` are served.
        rates_as_text: Whether SUMMARY carries the hash rate as a string.
        tells_power: Whether STATS carries the power drawn.
        comma_lost: Whether STATS lacks the comma between its two elements, so that it is no JSON.
    """

    miner_version: str
    compile_time: str
    joins: bool
    rates_as_text: bool
    tells_power: bool
    comma_lost: bool = False


# Source: recorded answers of an S21 of 2024-07 (power as text "3250 W" in STATS, joins refused).
STOCK_2024 = Firmware(
    miner_version="uart_trans.1.3",
    compile_time="Thu Jul 11 16:38:25 CST 2024",
    joins=False,
    rates_as_text=False,
    tells_power=True,
)
# Source: recorded answers of an S19 Pro of 2022-12 (no power field anywhere).
STOCK_2022 = Firmware(
    miner_version="49.0.1.3",
    compile_time="Tue Dec  6 16:12:30 CST 2022",
    joins=False,
    rates_as_text=False,
    tells_power=False,
)
# Old builds (S9 class): rates as strings, joined commands, and a comma missing in STATS.
STOCK_OLD = Firmware(
    miner_version="30.0.1.3",
    compile_time="Fri Nov 17 17:37:49 CST 2017",
    joins=True,
    rates_as_text=True,
    tells_power=False,
    comma_lost=True,
)


class MinerModel(msgspec.Struct, frozen=True, kw_only=True):
    """Nameplate of one model, in normal mode at 25 C inlet air.

    Args:
        device_type: The firmware's own name of the model.
        hashrate_ths: Rated hash rate.
        power_w: Rated power at the wall.
        chips: Chips of one hash board.
        firmware: Habits of its build, where it is Bitmain's.
        dialect: Firmware that it speaks, by the name of its dialect.
    """

    device_type: str
    hashrate_ths: float
    power_w: float
    power_w_asleep: float
    boards: int
    chips: int
    frequency_mhz: int
    firmware: Firmware = STOCK_2024
    dialect: str = "antminer"


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How long the steps of a mode change take, in seconds.

    Args:
        conf_answer_s: From a POST of the configuration to its answer.
        reload_s: For which the API on 4028 is away after such a POST.
        stop_s: For which the miner hashes on after it was told to stop.
        fall_s: From full power to sleep power.
        boot_s: From the start to the first hash.
        rise_s: From sleep power to full power, after the boot.
        warm_up_s: Seconds of full-rate hashing that a start costs; the rate rises in a line after
            the boot, and reaches its full value when just so much is lost.
        cooling_s: Time constant of the chip temperature.
        factor: How much shorter than in truth these times are.
    """

    conf_answer_s: float = 21.0
    reload_s: float = 25.0
    stop_s: float = 12.0
    fall_s: float = 4.0
    boot_s: float = 45.0
    rise_s: float = 15.0
    warm_up_s: float = 300.0
    cooling_s: float = 120.0
    factor: float = 1.0

    def scaled(self, factor: float) -> Timing:
        """Return the same times divided by `factor`; energy and hash rate stay in true time."""
        if not 0 < factor < float("inf"):
            raise SettingError("time_scale", f"{factor} is not a positive number")
        times = (name for name in self.__struct_fields__ if name != "factor")
        shorter = {name: getattr(self, name) / factor for name in times}
        return Timing(**shorter, factor=self.factor * factor)


S21 = MinerModel(
    device_type="Antminer S21",
    hashrate_ths=200.0,
    power_w=3500.0,
    power_w_asleep=20.0,
    boards=3,
    chips=108,
    frequency_mhz=490,
    firmware=STOCK_2024,
)
S19_XP = MinerModel(
    device_type="Antminer S19 XP",
    hashrate_ths=140.0,
    power_w=3010.0,
    power_w_asleep=20.0,
    boards=3,
    chips=110,
    frequency_mhz=675,
    firmware=STOCK_2022,
)
A1566 = MinerModel(
    device_type="AvalonMiner 15-194",
    hashrate_ths=194.0,
    power_w=3700.0,
    power_w_asleep=25.0,
    boards=3,
    chips=160,
    frequency_mhz=346,
    dialect="avalon",
)
M50S = MinerModel(
    device_type="M50SVH50",
    hashrate_ths=126.0,
    power_w=3276.0,
    power_w_asleep=15.0,
    boards=3,
    chips=135,
    frequency_mhz=600,
    dialect="whatsminer",
)
M60S = MinerModel(
    device_type="M60S_VK40",
    hashrate_ths=186.0,
    power_w=3441.0,
    power_w_asleep=15.0,
    boards=3,
    chips=75,
    frequency_mhz=625,
    dialect="whatsminer-v3",
)
MODELS = {
    "s21": S21,
    "s19xp": S19_XP,
    "s21-old": msgspec.structs.replace(S21, firmware=STOCK_OLD),
    "s19xp-old": msgspec.structs.replace(S19_XP, firmware=STOCK_OLD),
    "s19xp-braiins": msgspec.structs.replace(S19_XP, dialect="braiins"),
    "s19xp-braiins-old": msgspec.structs.replace(S19_XP, dialect="braiins-old"),
    "s19xp-braiins-graphql": msgspec.structs.replace(S19_XP, dialect="braiins-graphql"),
    "s21-luxos": msgspec.structs.replace(S21, dialect="luxos"),
    "a1566": A1566,
    "s19xp-epic": msgspec.structs.replace(S19_XP, dialect="epic"),
    "s21-vnish": msgspec.structs.replace(S21, dialect="vnish"),
    "m50s": M50S,
    "m50s-locked": msgspec.structs.replace(M50S, dialect="whatsminer-locked"),
    "m60s": M60S,
    "m60s-locked": msgspec.structs.replace(M60S, dialect="whatsminer-v3-locked"),
    "s21-mara": msgspec.structs.replace(S21, dialect="mara"),
}

# Share of the rated hash rate and power in each mode. Low is a flat quarter less of both; high is
# not published by the maker, the row is an assumption.
MODE_SHARE = {
    WorkMode.NORMAL: (1.0, 1.0),
    WorkMode.SLEEP: (0.0, 0.0),
    WorkMode.HIGH: (1.08, 1.12),
    WorkMode.LOW: (0.75, 0.75),
}


def models_by_name(names: str) -> tuple[MinerModel, ...]:
    """Return the models of a list such as `s21,s19xp`; `mix` means all current ones.

    Raises:
        SettingError: When a name is not known.
    """
    models: list[MinerModel] = []
    for name in names.split(","):
        if name == "mix":
            models += [S21, S19_XP]
        elif name in MODELS:
            models.append(MODELS[name])
        else:
            raise SettingError("model", f"{name!r} is not one of {', '.join([*MODELS, 'mix'])}")
    return tuple(models)

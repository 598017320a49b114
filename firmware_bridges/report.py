"""One reading as others get to see it: a flat object with fixed names, and lines for a person."""

from typing import Final

import msgspec

from firmware_bridges.base import Pool
from firmware_bridges.recognise import Decoded

VERSION: Final = 1


class MinerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A normalised reading; `null` = the machine did not say. Units are in the names.

    Args:
        v: Version of this form.
        family: Firmware family that the answers speak for.
        parts_missing: What a full reading of that family asks for and that gave nothing.
        repairs: `source:repair` of each repair that an answer needed.
        rejected: `source.field` of each value that was implausible and is not passed on.
    """

    v: int
    family: str
    make: str | None
    model: str | None
    firmware: str | None
    fw_version: str | None
    api_version: str | None
    mac: str | None
    serial: str | None
    hostname: str | None
    hashrate_ths: float | None
    hashrate_avg_ths: float | None
    expected_hashrate_ths: float | None
    power_w: float | None
    power_limit_w: float | None
    uptime_s: int | None
    is_mining: bool | None
    state: str | None
    board_count: int | None
    chips_total: int | None
    fan_count: int | None
    fans_rpm: tuple[int, ...] | None
    chip_temp_c_max: float | None
    board_temp_c_max: float | None
    inlet_temp_c: float | None
    configured_mode: str | None
    pools: tuple[Pool, ...] | None
    error_codes: tuple[int | str, ...] | None
    fault_light: bool | None
    parts_missing: tuple[str, ...]
    repairs: tuple[str, ...]
    rejected: tuple[str, ...]


def report_of(decoded: Decoded) -> MinerReport:
    """Put a decoded machine into its reported form."""
    reading = decoded.reading
    own = {"v", "family", "state", "configured_mode", "parts_missing"}
    shared = {
        name: getattr(reading, name) for name in MinerReport.__struct_fields__ if name not in own
    }
    return MinerReport(
        v=VERSION,
        family=decoded.family.name,
        state=None if reading.state is None else reading.state.value,
        configured_mode=None if reading.configured_mode is None else reading.configured_mode.value,
        parts_missing=decoded.missing,
        **shared,
    )


def lines_of(report: MinerReport) -> list[str]:
    """Give a report as `name  value` lines, without what the machine did not say."""
    width = max(len(name) for name in MinerReport.__struct_fields__)
    rows = msgspec.to_builtins(report).items()
    return [f"{name:<{width}}  {_text(value)}" for name, value in rows if value is not None]


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) or "none"
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items() if item is not None)
    return str(value)

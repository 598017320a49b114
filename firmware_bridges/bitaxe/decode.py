"""AxeOS /api/system/info, in all its versions: `hashRate` is in GH/s, `temp` the chip's.

Source: recorded answers of a Supra (2.4.5); 256foundation/asic-rs on other versions. Newer builds
and relatives (NerdAxe) add members; what is missing is unknown.
"""

from typing import Final

from firmware_bridges.base import MinerState, Partial, Pool
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths, temp_c
from firmware_bridges.collect import CHIPS_MAX, fans_of, hottest_c
from firmware_bridges.document import Document
from firmware_bridges.paths import reader_at
from firmware_bridges.rows import UPTIME_S_MAX, RowReader, as_float

COUNT_MAX: Final = 1 << 53

# The hundreds of the board's number name the product; source: the project's public board list.
_PRODUCTS: Final = {"1": "Max", "2": "Ultra", "3": "Hex", "4": "Supra", "6": "Gamma",
                    "7": "Supra Hex", "8": "Gamma Turbo"}  # fmt: skip


def decode_info(document: Document) -> Partial:
    """Decode the page."""
    reader = reader_at(document.value)
    row = reader.row
    return Partial(
        source=document.source,
        model=_model(reader, truncated=document.truncated),
        fw_version=reader.text("version") or reader.text("axeOSVersion"),
        mac=mac_address(reader.text("macAddr")),
        hostname=reader.text("hostname"),
        hashrate_ths=rate_ths(reader, "hashRate", "GH"),
        hashrate_avg_ths=rate_ths(reader, "hashRate_1h", "GH"),
        expected_hashrate_ths=rate_ths(reader, "expectedHashrate", "GH") or None,
        power_w=power_w(reader, "power"),
        uptime_s=reader.whole("uptimeSeconds", low=0, high=UPTIME_S_MAX),
        state=_state(reader),
        chip_temp_c_max=hottest_c([row.get("temp"), row.get("temp2")]),
        board_temp_c_max=temp_c(reader, "vrTemp", "boardTemp"),
        fans_rpm=_fans(reader),
        chips_total=reader.whole("asicCount", low=1, high=CHIPS_MAX),
        pools=_pools(reader),
        rejected=reader.rejected,
    )


def _model(reader: RowReader, *, truncated: bool) -> str | None:
    """Name the machine; of a cut page only by the best name, which comes last on some builds."""
    named = reader.text("deviceModel")
    if named is not None or truncated:
        return named
    board = as_float(reader.row.get("boardVersion"))
    if board is None:
        return reader.text("ASICModel")
    number = f"{int(board)}"
    product = _PRODUCTS.get(number[0]) if len(number) == 3 else None
    return f"Bitaxe {product} {number}" if product else f"Bitaxe {number}"


def _state(reader: RowReader) -> MinerState | None:
    if as_float(reader.row.get("overheat_mode")):
        return MinerState.OVERHEATED
    if any(reader.row.get(key) is True for key in ("miningPaused", "paused")):
        return MinerState.ASLEEP
    return None


def _fans(reader: RowReader) -> tuple[int, ...] | None:
    """Read the fans; boards with one fan have `fan2rpm` too, and it stays 0."""
    first, second = (as_float(reader.row.get(key)) for key in ("fanrpm", "fan2rpm"))
    known = [first] if first is not None and first >= 0 else []
    return fans_of([*known, second] if second is not None and second > 0 else known)


def _pools(reader: RowReader) -> tuple[Pool, ...] | None:
    fallback = as_float(reader.row.get("isUsingFallbackStratum"))
    pools = []
    for place, prefix in enumerate(("stratum", "fallbackStratum")):
        host = reader.text(f"{prefix}URL")
        if host is None:
            continue
        port = reader.whole(f"{prefix}Port", low=1, high=65_535)
        active = None if fallback is None else bool(fallback) == (place == 1)
        pools.append(
            Pool(
                url=host if port is None else f"{host}:{port}",
                user=reader.text(f"{prefix}User"),
                priority=place,
                is_active=active,
                accepted=_shares(reader, "sharesAccepted") if active else None,
                rejected=_shares(reader, "sharesRejected") if active else None,
            )
        )
    return tuple(pools) if "stratumURL" in reader.row else None


def _shares(reader: RowReader, key: str) -> int | None:
    return reader.whole(key, low=0, high=COUNT_MAX)

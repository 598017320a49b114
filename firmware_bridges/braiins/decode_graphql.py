"""Braiins OS GraphQL, releases 21.09 to 25.05: whichever members an answer has are read.

The schema differs from release to release and the query's name says nothing; rates are in MH/s by
their member's name (`mhs5S`, `nominalMhs`). Source: recorded answers of 22.08 and 25.03.
"""

from typing import Final

from firmware_bridges.base import MinerState, Partial, Pool
from firmware_bridges.braiins.decode_rest import COUNT_MAX, ERRORS_MAX
from firmware_bridges.cgminer.decode import mac_address, power_w, rate_ths
from firmware_bridges.collect import chips_of, fans_of, hottest_c
from firmware_bridges.document import Document
from firmware_bridges.paths import dig, flag_at, object_at, reader_at, rows_at
from firmware_bridges.rows import UPTIME_S_MAX, Row, RowReader, as_text, rows_of

_MHS_WINDOWS: Final = ("mhs5S", "mhs1M", "mhs5M", "mhs15M")


def decode_graphql(document: Document) -> Partial:
    """Decode any answer under `data`."""
    data = object_at(document.value, "data")
    bos, info = object_at(data, "bos"), object_at(data, "bosminer", "info")
    solver = object_at(info, "workSolver")
    summary = object_at(info, "summary")
    # Which of the two carries rate and power differs with the query and the release.
    real = _first_reader(solver, summary, "realHashrate")
    power = _first_reader(summary, solver, "power")
    told, nominal = reader_at(data, "bosminer", "config", "autotuning"), RowReader(solver)
    boards = rows_at(solver, "childSolvers")
    chips = chips_of(dig(row, "hwDetails", "chips") for row in boards)
    uptime = reader_at(bos, "uptime")
    return Partial(
        source=document.source,
        model=as_text(dig(info, "modelName")) or as_text(dig(bos, "info", "modelName")),
        fw_version=as_text(dig(bos, "info", "version", "full")),
        hostname=as_text(bos.get("hostname")),
        hashrate_ths=_rate_now(real, truncated=document.truncated),
        hashrate_avg_ths=rate_ths(real, "mhsAv", "MH"),
        expected_hashrate_ths=rate_ths(nominal, "nominalMhs", "MH"),
        power_w=power_w(power, "approxConsumptionW"),
        power_limit_w=power_w(power, "limitW") or power_w(told, "powerTarget"),
        uptime_s=uptime.whole("durationS", low=0, high=UPTIME_S_MAX),
        fans_rpm=fans_of((row.get("rpm") for row in rows_at(info, "fans")), drop_silent=True),
        board_count=len(boards) or None,
        chips_total=sum(chips) or None,
        chip_temp_c_max=hottest_c(_degrees(boards, "chip")),
        board_temp_c_max=hottest_c(_degrees(boards, "board")),
        inlet_temp_c=hottest_c(_degrees(boards, "inlet")),
        pools=_pools(info),
        error_codes=_appeals(data),
        fault_light=flag_at(bos, "faultLight"),
        state=_state(summary),
        rejected=(*real.rejected, *power.rejected, *nominal.rejected, *uptime.rejected),
    )


def decode_interface(document: Document) -> Partial:
    """Decode luci's iface_status page: a list of interfaces, of which the first has a MAC."""
    macs = [mac_address(as_text(row.get("macaddr"))) for row in rows_of(document.value)]
    return Partial(source=document.source, mac=next((mac for mac in macs if mac), None))


def _first_reader(first: Row, second: Row, key: str) -> RowReader:
    return reader_at(first if object_at(first, key) else second, key)


def _state(summary: Row) -> MinerState | None:
    word = (as_text(summary.get("tunerStatus")) or "").lower()
    if "paused" in word:
        return MinerState.ASLEEP
    return MinerState.TUNING if word.startswith(("tuning", "testing")) else None


def _rate_now(real: RowReader, *, truncated: bool) -> float | None:
    for window in _MHS_WINDOWS[:1] if truncated else _MHS_WINDOWS:
        rate = rate_ths(real, window, "MH")
        if rate is not None:
            return rate
    return None


def _degrees(boards: tuple[Row, ...], word: str) -> list[object]:
    return [
        sensor.get("degreesC")
        for board in boards
        for sensor in rows_at(board, "temperatures")
        if word in (as_text(sensor.get("name")) or "").lower()
    ]


def _pools(info: Row) -> tuple[Pool, ...] | None:
    if not isinstance(info.get("poolGroups"), list):
        return None
    rows = [row for group in rows_at(info, "poolGroups") for row in rows_at(group, "pools")]
    return tuple(pool for row in rows if (pool := _pool(row)) is not None)


def _pool(row: Row) -> Pool | None:
    reader, shares = RowReader(row), reader_at(row, "shares")
    url = reader.text("url")
    if url is None:
        return None
    status = reader.text("status")
    return Pool(
        url=url,
        user=reader.text("user"),
        is_alive=None if status is None else status.upper() == "ALIVE",
        is_active=flag_at(row, "active"),
        accepted=shares.whole("acceptedSolutions", low=0, high=COUNT_MAX),
        rejected=shares.whole("rejectedSolutions", low=0, high=COUNT_MAX),
    )


def _appeals(data: Row) -> tuple[int | str, ...] | None:
    if not isinstance(dig(data, "events", "appeals"), list):
        return None
    rows = rows_at(data, "events", "appeals")
    texts = [as_text(row.get("message")) or as_text(row.get("title")) for row in rows]
    return tuple(dict.fromkeys(text for text in texts if text))[:ERRORS_MAX]

"""Newest readings of all devices, and the facts that leave their deadband.

Raw readings go to telemetry; the journal gets a device only when a value left its band since the
journal's last one (rate 2 %, power 2 %, temperature 1 C, utilisation 0.1) or its state changed.
The first reading of each device in a life of the agent it gets in any case: it says that the device
was read since the start.
"""

from collections.abc import Sequence

import numpy as np

from edge_agent.core.facts import ReadingColumns, ReadingsSeen, pack_readings
from edge_agent.core.site import (
    CURTAILED,
    IDLE,
    MINE,
    NS_PER_S,
    UNKNOWN,
    CodeColumn,
    FlagColumn,
    FloatColumn,
    IndexColumn,
    Site,
)
from edge_agent.core.site_state import SiteState, mode_of
from edge_agent.devices.ports import AsicReadings, ModeCode, StateCode
from protocol.node import GpuSample

BAND_SHARE = 0.02
BAND_TEMP_C = 1.0
BAND_UTILISATION = 0.1
THS_PER_MHS = 1e-6
# A firmware's settings are asked for once a minute: for so long after a change they may be old.
MODE_TOLD_S = 150.0
# Share of the mining power up to which a miner sleeps, as when its command is confirmed.
ASLEEP_SHARE = 0.1
_ACTIVITY_OF_STATE = np.full(256, UNKNOWN, dtype=np.uint8)
_ACTIVITY_OF_STATE[[StateCode.MINING, StateCode.IDLE, StateCode.ASLEEP]] = (MINE, IDLE, CURTAILED)


class ReadingsBuffer:
    """Newest value per device (NaN unknown), bounded by the number of devices."""

    def __init__(self, site: Site) -> None:
        n = len(site)
        self._site = site
        self.power_w: FloatColumn = np.full(n, np.nan)
        self.hashrate_ths: FloatColumn = np.full(n, np.nan)
        self.temp_c: FloatColumn = np.full(n, np.nan)
        self.utilisation: FloatColumn = np.full(n, np.nan)
        self._activity: CodeColumn = np.zeros(n, dtype=np.uint8)
        self._reachable: FlagColumn = np.zeros(n, dtype=np.bool_)
        self._measured_ns = np.full(n, -1, dtype=np.int64)
        rated_w = site.nameplate_w[site.class_of]
        self._asleep_w = np.maximum(2.0 * rated_w[:, CURTAILED], ASLEEP_SHARE * rated_w[:, MINE])
        self._unread: FlagColumn = np.ones(n, dtype=np.bool_)
        self._step: CodeColumn = np.zeros(n, dtype=np.uint8)
        self._step_of = _steps_of_modes(site)
        none = np.zeros(0, dtype=np.int32)
        self._rows_of: tuple[tuple[str, ...], IndexColumn, IndexColumn] = ((), none, none)

    def take_asics(self, readings: AsicReadings) -> None:
        """Take the newest readings of the miners; devices of another site file are left out."""
        rows, source = self._rows(readings.device_ids)
        self.power_w[rows] = readings.power_w[source]
        self.hashrate_ths[rows] = readings.hashrate_ths[source]
        self.temp_c[rows] = readings.temp_c[source]
        self._measured_ns[rows] = readings.measured_ns[source]
        self._reachable[rows] = (readings.reachable[source] == 1) & (
            readings.at_ns - readings.measured_ns[source]
            <= int(self._site.limits.reading_stale_s * NS_PER_S)
        )
        self._activity[rows] = _ACTIVITY_OF_STATE[readings.state[source]]
        if readings.mode is not None and self._step_of is not None:
            # An unknown mode is -1: the last row of the table.
            self._step[rows] = self._step_of[self._site.class_of[rows], readings.mode[source]]

    def take_gpus(self, samples: Sequence[GpuSample], now_ns: int) -> None:
        """Take a node's samples; what it says of activities comes through adoption."""
        for sample in samples:
            at = self._site.index_of(sample.device_id)
            if at is None:
                continue
            self.power_w[at] = _number(sample.power_w)
            self.temp_c[at] = _number(sample.temp_c)
            self.utilisation[at] = _number(sample.utilisation)
            self.hashrate_ths[at] = _number(sample.hashrate_mhs) * THS_PER_MHS
            self._measured_ns[at] = now_ns
            # Not healthy: lost, or its host does not answer. Nothing is begun on it.
            self._reachable[at] = sample.healthy

    def lose_node(self, node_id: str) -> None:
        """Mark the devices of a node as not heard."""
        if node_id in self._site.nodes:
            self._reachable[self._site.node_of == self._site.nodes.index(node_id)] = False

    def collect(self, state: SiteState) -> ReadingsSeen | None:
        """Give the devices whose values left their band against the state; None when none did."""
        # A reading older than the present mode says nothing about it.
        newer = self._measured_ns > state.mode_since_ns
        seen = np.where((self._activity == IDLE) & self._rests(state), CURTAILED, self._activity)
        activity = np.where(newer & self._reachable, seen, UNKNOWN).astype(np.uint8)
        heard = self._measured_ns >= 0
        step = self._told(state)
        with np.errstate(invalid="ignore"):
            changed = (
                (self._unread & self._reachable)
                | (self._reachable != state.reachable)
                | ((activity != UNKNOWN) & (activity != mode_of(state)) & (state.switch_no < 0))
                | _left_share(self.power_w, state.power_w)
                | _left_share(self.hashrate_ths, state.hashrate_ths)
                | _left(self.temp_c, state.temp_c, BAND_TEMP_C)
                | _left(self.utilisation, state.utilisation, BAND_UTILISATION)
                | (step != state.step) & (step > 0)
            ) & heard
        index = np.flatnonzero(changed)
        if not len(index):
            return None
        self._unread &= ~(changed & self._reachable)
        return pack_readings(
            self._site.digest,
            ReadingColumns(
                index.astype(np.int32),
                activity[index],
                self._reachable[index].astype(np.uint8),
                self.power_w[index],
                self.hashrate_ths[index],
                self.temp_c[index],
                self.utilisation[index],
                None if self._step_of is None else step[index],
            ),
        )

    def _told(self, state: SiteState) -> CodeColumn:
        """Give the steps that running miners tell; what is of before a change is no news."""
        if self._step_of is None:
            return self._step
        after_ns = int(MODE_TOLD_S * NS_PER_S)
        mines = (state.activity == MINE) & (state.switch_no < 0) & self._reachable
        settled = state.now_ns - state.step_since_ns > after_ns
        # While nothing is known yet, the first word counts.
        out: CodeColumn = np.where(mines & (settled | (state.step == 0)), self._step, 0)
        return out.astype(np.uint8)

    def _rests(self, state: SiteState) -> FlagColumn:
        """Tell which curtailed devices do not draw more than sleep does.

        Some firmwares say of a miner told to pause no more than that it has no rate.
        """
        out: FlagColumn = (mode_of(state) == CURTAILED) & ~(self.power_w > self._asleep_w)
        return out

    def _rows(self, device_ids: tuple[str, ...]) -> tuple[IndexColumn, IndexColumn]:
        if device_ids != self._rows_of[0]:
            found = [self._site.index_of(device_id) for device_id in device_ids]
            rows = np.array([-1 if at is None else at for at in found], dtype=np.int32)
            source = np.flatnonzero(rows >= 0).astype(np.int32)
            self._rows_of = (device_ids, rows[source], source)
        return self._rows_of[1:]


def _steps_of_modes(site: Site) -> CodeColumn | None:
    """Give the step of each class by the code of the mode that a firmware tells."""
    if site.steps is None:
        return None
    table = np.zeros((len(site.classes), len(ModeCode)), dtype=np.uint8)
    for at in range(len(site.classes)):
        for code in ModeCode:
            table[at, code] = site.steps.step_of(at, code.name.lower())
    return table


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _left(now: FloatColumn, before: FloatColumn, band: float) -> FlagColumn:
    appeared = np.isnan(now) != np.isnan(before)
    out: FlagColumn = appeared | (np.abs(now - before) > band)
    return out


def _left_share(now: FloatColumn, before: FloatColumn) -> FlagColumn:
    appeared = np.isnan(now) != np.isnan(before)
    out: FlagColumn = appeared | (
        np.abs(now - before) > BAND_SHARE * np.maximum(np.abs(before), 1e-9)
    )
    return out

"""Columns of readings: filled by the poller (or the fake), copied out as one frozen batch."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edge_agent.devices.ports import MODE_CODES, STATE_CODES, AsicReadings, ModeCode, StateCode
from firmware_bridges.base import Reading

Scalar = TypeVar("Scalar", np.float64, np.int8, np.int64)


class ReadingColumns:
    """The newest value of every device.

    Args:
        device_ids: The site's device index.
    """

    def __init__(self, device_ids: Sequence[str]) -> None:
        count = len(device_ids)
        self._device_ids = tuple(device_ids)
        self._hashrate_ths = np.full(count, np.nan)
        self._power_w = np.full(count, np.nan)
        self._temp_c = np.full(count, np.nan)
        self._state = np.full(count, StateCode.UNKNOWN, dtype=np.int8)
        self._reachable = np.full(count, -1, dtype=np.int8)
        self._measured_ns = np.full(count, -1, dtype=np.int64)
        self._mode = np.full(count, ModeCode.UNKNOWN, dtype=np.int8)

    def put(self, index: int, reading: Reading, now_ns: int, *, tells_mode: bool = False) -> None:
        """Take one reading.

        Args:
            tells_mode: Its firmware has power modes: what it says of them is what it was told.
        """
        told = reading.configured_mode if tells_mode else None
        code = ModeCode.UNKNOWN if told is None else MODE_CODES.get(told, ModeCode.UNKNOWN)
        self._mode[index] = code
        temp_c = reading.chip_temp_c_max
        if temp_c is None:
            temp_c = reading.board_temp_c_max
        self.put_values(
            index,
            hashrate_ths=reading.hashrate_ths,
            power_w=reading.power_w,
            temp_c=temp_c,
            state=STATE_CODES[reading.state],
            now_ns=now_ns,
        )

    def put_values(
        self,
        index: int,
        *,
        hashrate_ths: float | None,
        power_w: float | None,
        temp_c: float | None,
        state: StateCode,
        now_ns: int,
    ) -> None:
        """Take the values of one reading; `None` becomes NaN."""
        self._hashrate_ths[index] = np.nan if hashrate_ths is None else hashrate_ths
        self._power_w[index] = np.nan if power_w is None else power_w
        self._temp_c[index] = np.nan if temp_c is None else temp_c
        self._state[index] = state
        self._reachable[index] = 1
        self._measured_ns[index] = now_ns

    def lose(self, index: int) -> None:
        """Note that a device did not answer: what it did a tick ago is no longer known."""
        self._hashrate_ths[index] = np.nan
        self._power_w[index] = np.nan
        self._temp_c[index] = np.nan
        self._state[index] = StateCode.UNKNOWN
        self._mode[index] = ModeCode.UNKNOWN
        self._reachable[index] = 0

    def batch(self, now_ns: int) -> AsicReadings:
        """Copy the columns out; later changes do not reach the copy."""
        return AsicReadings(
            at_ns=now_ns,
            device_ids=self._device_ids,
            hashrate_ths=_frozen(self._hashrate_ths),
            power_w=_frozen(self._power_w),
            temp_c=_frozen(self._temp_c),
            state=_frozen(self._state),
            reachable=_frozen(self._reachable),
            measured_ns=_frozen(self._measured_ns),
            mode=_frozen(self._mode),
        )


def _frozen(column: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    copy = column.copy()
    copy.setflags(write=False)
    return copy

"""Keeps what ended engines were at, in a folder of the host: at most one small file for each.

No fsync: a state serves within one boot, and what a process wrote outlives its death. A file is
taken out of the folder before its engine starts with it, so that no state is ever given twice.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from edge_agent.workloads.engine import EngineSpec
from edge_agent.workloads.engines.record import checked_name
from edge_agent.workloads.switching.saved import (
    BODY_BYTES_MAX,
    FILE_BYTES_MAX,
    Drop,
    SavedUse,
    seal,
    unseal,
)

logger = logging.getLogger(__name__)

_FOLDER_MODE = 0o700
_KEPT = ".saved"
_GIVEN = ".given"
_FRESH = ".new"


class SavedStates:
    """The saved states of one host's engines.

    Args:
        folder: of its own; made when something is kept. boot_id: of this boot.
        now_ns: CLOCK_BOOTTIME.

    Attributes:
        counts: what became of states, by word: a ``SavedUse`` that the host decides, or a ``Drop``.
    """

    def __init__(self, folder: Path, *, boot_id: str, now_ns: Callable[[], int]) -> None:
        self._folder = folder
        self._boot_id = boot_id
        self._now_ns = now_ns
        self.counts: Counter[str] = Counter()

    def tidy(self, engine_ids: Iterable[str]) -> None:
        """Remove what belongs to none of these engines."""
        known = {f"{name}{end}" for name in engine_ids for end in (_KEPT, _GIVEN)}
        try:
            strays = [path for path in self._folder.iterdir() if path.name not in known]
            for path in strays:
                path.unlink()
                self._drop(path.name, Drop.TORN if path.suffix == _FRESH else Drop.FOREIGN)
        except FileNotFoundError:
            return
        except OSError as exc:
            logger.warning("saved states are not tidied: %s", exc)

    def keep(self, spec: EngineSpec, body: bytes) -> SavedUse:
        """Keep what an engine that is about to be ended was at, in place of what was kept of it."""
        if len(body) > BODY_BYTES_MAX:
            return self.lose(spec, f"{len(body)} bytes")
        path = self._path(spec, _KEPT)
        fresh = path.with_suffix(_FRESH)
        try:
            self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            fresh.write_bytes(seal(spec, body, boot_id=self._boot_id, now_ns=self._now_ns()))
            os.replace(fresh, path)  # noqa: PTH105 - the one rename that replaces
        except OSError as exc:
            return self.lose(spec, str(exc))
        self.counts[SavedUse.KEPT] += 1
        return SavedUse.KEPT

    def lose(self, spec: EngineSpec, why: str) -> SavedUse:
        """Keep nothing of an engine: an older state would have it do again what it has done."""
        logger.warning("engine=%s its state is not kept: %s", spec.engine_id, why)
        self.counts[SavedUse.LOST] += 1
        self._remove(spec, _KEPT)
        return SavedUse.LOST

    def take(self, spec: EngineSpec) -> Path | Drop | None:
        """Give, once, the file that an engine may start with; None: nothing is kept of it."""
        path = self._path(spec, _KEPT)
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
            path.unlink()
        except FileNotFoundError:
            return None
        except OSError as exc:
            logger.warning("engine=%s its saved state cannot be read: %s", spec.engine_id, exc)
            return self._drop(spec.engine_id, Drop.TORN)
        body = unseal(data, spec, boot_id=self._boot_id, now_ns=self._now_ns())
        if isinstance(body, Drop):
            return self._drop(spec.engine_id, body)
        given = self._path(spec, _GIVEN)
        try:
            given.write_bytes(body)
        except OSError as exc:
            logger.warning("engine=%s its saved state is not given: %s", spec.engine_id, exc)
            return self._drop(spec.engine_id, Drop.TORN)
        return given

    def _drop(self, name: str, why: Drop) -> Drop:
        logger.warning("saved state dropped: %s: %s", name, why.value)
        self.counts[why] += 1
        return why

    def _remove(self, spec: EngineSpec, end: str) -> None:
        try:
            self._path(spec, end).unlink(missing_ok=True)
        except OSError as exc:
            logger.warning("engine=%s an older saved state stays: %s", spec.engine_id, exc)

    def _path(self, spec: EngineSpec, end: str) -> Path:
        return self._folder / f"{checked_name(spec.engine_id)}{end}"

"""What a directory tells beside prices: outside air, the grid's load, and the height of the chain.

The columns, their bounds and how long a value holds are those of ``market.series``, which the live
feed reads. A cell beyond the bounds is unknown and counted, where the live feed refuses the file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from edge_agent.backtest.files import Column, files_of, read, rising
from edge_agent.core.site import FloatColumn, IntColumn
from edge_agent.market.errors import SeriesError
from edge_agent.market.series import BESIDE, STEPS_HELD, file_order

Files = dict[Path, tuple[str, ...]]
# Blocks as their publishers list them: by height, each with its time.
_BLOCKS = ("height", "block_time_utc")


class Beside(Struct, frozen=True, eq=False, kw_only=True):
    """Columns on the grid, as known at the start of each interval; None: no file tells.

    Args:
        ambient_c: outside air. grid_load_mw: of the last interval that is over.
        peak_probability: that the interval is the month's peak. grid_load: row by row, from the
            start of each. heights: of the chain, by the time of the block. difficulty: in force
            from the time on.
    """

    ambient_c: FloatColumn | None = None
    grid_load_mw: FloatColumn | None = None
    peak_probability: FloatColumn | None = None
    grid_load: Column | None = None
    heights: Column | None = None
    difficulty: Column | None = None


NOTHING = Beside()


def read_beside(files: Files, more: Sequence[Path], at_s: IntColumn, notes: list[str]) -> Beside:
    """Read what is there.

    Args:
        files: of the market's directory. more: further directories, for what that one lacks.
    """
    folders = [files, *(_files(folder, notes) for folder in more)]
    load = _first(folders, "grid_load_mw", notes)
    return Beside(
        ambient_c=_known(_first(folders, "ambient_c", notes), at_s),
        grid_load_mw=None if load is None else _known(load.moved(load.step_s), at_s),
        peak_probability=_known(_first(folders, "peak_probability", notes), at_s),
        grid_load=load,
        heights=_heights(folders, notes),
        difficulty=_difficulty(folders),
    )


def _files(folder: Path, notes: list[str]) -> Files:
    """Give the files of a directory that the site's file names; it may be on another machine."""
    try:
        return files_of(folder)
    except (SeriesError, OSError):
        notes.append(f"{folder}: the site's own directory of prices is not here")
        return {}


def _first(folders: Sequence[Files], column: str, notes: list[str]) -> Column | None:
    """Read a column from the first file that has it, in the order of the live feed."""
    for files in folders:
        for path in sorted(files, key=file_order):
            if column not in files[path][1:]:
                continue
            try:
                return _bounded(read(path, column), column, notes)
            except SeriesError as exc:
                notes.append(str(exc))
    return None


def _bounded(column: Column, name: str, notes: list[str]) -> Column:
    _, least, most = BESIDE[name]
    wrong = (column.value < least) | (column.value > most)
    count = int(wrong.sum()) + column.broken
    if count:
        notes.append(f"{column.name}: {count} cells are no value within {least:g}..{most:g}")
    value = np.where(wrong, np.nan, column.value)
    return Column(column.name, column.at_s, value, column.step_s, column.broken)


def _known(column: Column | None, at_s: IntColumn) -> FloatColumn | None:
    if column is None:
        return None
    # The live series counts a value as held up to and at the end of its last step.
    return column.held(at_s, STEPS_HELD * column.step_s + 1)


def _heights(folders: Sequence[Files], notes: list[str]) -> Column | None:
    told = _first(folders, "block_height", notes)
    if told is not None:
        return told
    for files in folders:
        for path, names in sorted(files.items()):
            if path.suffix == ".parquet" and set(_BLOCKS) <= set(names):
                return rising(path, *_BLOCKS)
    return None


def _difficulty(folders: Sequence[Files]) -> Column | None:
    paths = [path for files in folders for path in sorted(files) if "difficulty" in files[path]]
    return read(paths[0], "difficulty") if paths else None

"""Pictures of a span: price and break-even, share mining, power against the cap, profit.

Needs the extra ``plots``. The same data give the same bytes of SVG, with the same version of the
library: no date, no drawn ids.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from edge_agent.core.site import FloatColumn, IntColumn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")
# More points than this are drawn as means of equal runs of intervals.
POINTS_MAX = 4_000
# Prices beyond this are drawn on a logarithmic scale above its half.
SPIKE_USD_PER_MWH = 400.0
# Of two classes with modes of their own there are many: each has a colour to itself.
_MODE_COLOURS = (
    "tab:cyan", "tab:olive", "tab:orange", "tab:pink", "tab:purple", "tab:brown", "tab:gray",
    "gold", "lightgreen", "navy", "salmon", "teal", "khaki", "orchid", "tan", "black",
)  # fmt: skip
_INCHES = (11.0, 10.0)
_DPI = 110


class PlotError(Exception):
    """The picture cannot be drawn: matplotlib is missing."""


class PlotNameError(PlotError):
    """The picture's file is of no known kind."""


class Picture(Struct, frozen=True, eq=False, kw_only=True):
    """What is drawn; all columns have the length of ``at_s``, NaN leaves a hole.

    Args:
        at_s: start of each interval, seconds since 1970. mining: share of the miners, 0..1.
        modes: share in each mode, the lowest first; empty: there is one only. load_mw: at the
        meter; cap_mw: what binds it, orders included. above_s1_usd: profit above S1 in the
        interval, by name.
    """

    title: str
    at_s: IntColumn
    price: FloatColumn
    break_even: FloatColumn
    mining: FloatColumn
    load_mw: FloatColumn
    cap_mw: FloatColumn
    above_s1_usd: dict[str, FloatColumn]
    modes: dict[str, FloatColumn] = {}


def check_plot(path: Path) -> None:
    """Check before any work whether a picture can be drawn into a file.

    Raises:
        PlotError: it cannot.
    """
    if path.suffix not in SUFFIXES:
        raise PlotNameError(f"--plot {path}: want a name that ends with {' or '.join(SUFFIXES)}")
    try:
        import matplotlib.figure  # noqa: F401, PLC0415 - an extra; the agent runs without it
    except ImportError as exc:
        raise PlotError("matplotlib is missing: install the extra `plots`") from exc


def draw(picture: Picture, path: Path) -> None:
    """Draw into a file, SVG or PNG by its suffix.

    Raises:
        PlotError: it cannot be drawn. OSError: the file cannot be written.
    """
    check_plot(path)
    import matplotlib as mpl  # noqa: PLC0415 - as in check_plot
    from matplotlib.figure import Figure  # noqa: PLC0415 - as in check_plot

    with mpl.rc_context(
        {
            "svg.hashsalt": "hcp",
            "svg.fonttype": "none",
            "path.simplify": False,
            "font.size": 9,
            "date.converter": "concise",
        }
    ):
        figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        axes = figure.subplots(4, 1, sharex=True)
        _fill(list(axes), picture)
        figure.suptitle(picture.title)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, metadata=metadata)


def _fill(axes: "list[Axes]", picture: Picture) -> None:
    run = -(-len(picture.at_s) // POINTS_MAX)
    at = picture.at_s[::run].astype("datetime64[s]")

    def line(place: int, column: FloatColumn, name: str, colour: str, style: str = "-") -> None:
        axes[place].plot(
            at, _means(column, run), style, color=colour, label=name, linewidth=1.2,
            drawstyle="steps-post" if place < 3 else "default", gid=name.replace(" ", "-"),
        )  # fmt: skip

    line(0, picture.price, "price", "tab:blue")
    line(0, picture.break_even, "break-even", "tab:red", "--")
    line(1, picture.mining * 100.0, "miners on", "tab:green")
    below = np.zeros(len(at))
    for number, (mode, share) in enumerate(picture.modes.items()):
        top = below + _means(share, run) * 100.0
        axes[1].fill_between(
            at, below, top, step="post", alpha=0.5, linewidth=0.0, label=f"mode {mode}",
            color=_MODE_COLOURS[number % len(_MODE_COLOURS)], gid=f"mode-{mode}",
        )  # fmt: skip
        below = top
    line(2, picture.load_mw, "load", "tab:blue")
    line(2, picture.cap_mw, "cap", "tab:red", "--")
    colours = ("tab:green", "tab:blue", "tab:orange", "tab:purple")
    for number, (name, column) in enumerate(picture.above_s1_usd.items()):
        line(3, _summed(column), name, colours[number % len(colours)])
    axes[3].axhline(0.0, color="grey", linewidth=0.8, linestyle=":", label="S1")
    _wide(axes[0], picture.price)
    labels = ("price, USD/MWh", "miners on, %", "power, MW", "profit above S1, USD")
    for axis, label in zip(axes, labels, strict=True):
        axis.set_ylabel(label)
        axis.grid(visible=True, alpha=0.3)
        # Beside the axes: inside they would lie on a line that runs along the top.
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    axes[1].set_ylim(-5.0, 105.0)
    axes[2].set_ylim(bottom=0.0)
    axes[3].set_xlabel("time, UTC" if run == 1 else f"time, UTC; means of {run} intervals")


def _wide(axis: "Axes", price: FloatColumn) -> None:
    """Let a spike not press everything else flat: it is drawn on a logarithmic scale."""
    low, high = np.nanmin(price, initial=0.0), np.nanmax(price, initial=0.0)
    if max(-low, high) <= SPIKE_USD_PER_MWH:
        return
    axis.set_yscale("symlog", linthresh=SPIKE_USD_PER_MWH / 2.0)
    axis.set_ylim(1.3 * low - 20.0, 1.3 * high + 20.0)
    axis.yaxis.set_major_formatter("{x:,.0f}")


def _means(column: FloatColumn, run: int) -> FloatColumn:
    if run == 1:
        return column
    rest = -len(column) % run
    rows = np.concatenate((column, np.full(rest, np.nan))).reshape(-1, run)
    known = ~np.isnan(rows)
    count = known.sum(axis=1)
    total = np.where(known, rows, 0.0).sum(axis=1)
    out: FloatColumn = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out


def _summed(column: FloatColumn) -> FloatColumn:
    out: FloatColumn = np.add.accumulate(np.nan_to_num(column))
    return out


def break_even(
    revenue_usd_per_h: FloatColumn, saved_mw: FloatColumn, adder_usd_per_mwh: FloatColumn | float
) -> FloatColumn:
    """Give the price at which mining earns what being off earns; NaN where nothing is saved."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = revenue_usd_per_h / saved_mw - adder_usd_per_mwh
    out: FloatColumn = np.where(saved_mw > 0.0, found, np.nan)
    return out

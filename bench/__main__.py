"""`./dev bench --list | NAME [--json]`: run one bench and print its figures."""

import argparse
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bench.figure import Figure

_HELPERS = {"__init__", "__main__", "figure"}


def main(argv: list[str] | None = None) -> int:
    """Run a bench; give 1 when a figure misses its target; one that is not judged misses none."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("name", nargs="?", help="which bench")
    parser.add_argument("--list", action="store_true", help="name all benches")
    parser.add_argument("--market", type=Path, help="directory of real prices, for `economics`")
    parser.add_argument("--rows", type=Path, help="file for the raw rows, for `gpu-switch`")
    parser.add_argument("--budget-s", type=float, help="seconds for all of it, for `gpu-switch`")
    parser.add_argument(
        "--only", action="append", help="part of a plan's name, for `gpu-switch`; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per figure")
    args = parser.parse_args(argv)
    names = bench_names()
    if args.list or args.name is None:
        print("\n".join(names))
        return 0
    if args.name not in names:
        parser.error(f"no bench {args.name}; there are: {', '.join(names)}")
    module = importlib.import_module(f"bench.{args.name.replace('-', '_')}")
    given = {"market": args.market, "rows": args.rows, "budget_s": args.budget_s}
    given["only"] = tuple(args.only) if args.only else None
    options = {name: value for name, value in given.items() if value is not None}
    missed = False
    figures: Iterable[Figure] = module.run(**options)
    for figure in figures:  # some benches give each as it is known
        told = msgspec.json.encode(figure).decode() if args.json else _text(figure)
        print(told, flush=True)
        missed |= figure.ok is False
    return 1 if missed else 0


def bench_names() -> list[str]:
    """Give the names of all benches."""
    folder = Path(__file__).parent
    stems = (path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return sorted(stem.replace("_", "-") for stem in stems if stem not in _HELPERS)


def _text(figure: Figure) -> str:
    verdict = {True: "ok", False: "MISSED", None: "not judged"}[figure.ok]
    told = {name: value for name, value in figure.conditions.items() if not isinstance(value, list)}
    conditions = ", ".join(f"{name} {value}" for name, value in told.items())
    value = "-" if figure.value is None else f"{figure.value:,.3f}"
    return (
        f"{figure.name:<32} {value:>12} {figure.unit:<12} "
        f"{figure.target:<12} {verdict}\n    {conditions}"
    )


if __name__ == "__main__":
    sys.exit(main())

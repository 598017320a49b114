"""`./dev bench --list | NAME [--json]`: run one bench and print its figures."""

import argparse
import importlib
import sys
from pathlib import Path

import msgspec

from bench.figure import Figure

_HELPERS = {"__init__", "__main__", "figure"}


def main(argv: list[str] | None = None) -> int:
    """Run a bench; give 1 when a figure misses its target."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("name", nargs="?", help="which bench")
    parser.add_argument("--list", action="store_true", help="name all benches")
    parser.add_argument("--market", type=Path, help="directory of real prices, for `economics`")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure")
    args = parser.parse_args(argv)
    names = bench_names()
    if args.list or args.name is None:
        print("\n".join(names))
        return 0
    if args.name not in names:
        parser.error(f"no bench {args.name}; there are: {', '.join(names)}")
    module = importlib.import_module(f"bench.{args.name.replace('-', '_')}")
    options = {} if args.market is None else {"market": args.market}
    figures: list[Figure] = module.run(**options)
    for figure in figures:
        print(msgspec.json.encode(figure).decode() if args.json else _text(figure))
    return 0 if all(figure.ok for figure in figures) else 1


def bench_names() -> list[str]:
    """Give the names of all benches."""
    folder = Path(__file__).parent
    stems = (path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return sorted(stem.replace("_", "-") for stem in stems if stem not in _HELPERS)


def _text(figure: Figure) -> str:
    verdict = "ok" if figure.ok else "MISSED"
    conditions = ", ".join(f"{name} {value}" for name, value in figure.conditions.items())
    return (
        f"{figure.name:<32} {figure.value:>12,.3f} {figure.unit:<12} "
        f"{figure.target:<12} {verdict}\n    {conditions}"
    )


if __name__ == "__main__":
    sys.exit(main())

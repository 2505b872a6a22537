"""``python -m benchmarks NAME``: run one benchmark, keep its result, and write the tables again."""

import argparse
import shlex
import sys
from types import ModuleType

from benchmarks import (
    backbones,
    extraction,
    fixed_cost,
    peers_anomalib,
    peers_memory,
    peers_sklearn,
    plans,
    results,
    scale,
    shortcuts,
    soak,
    statistics,
)

# Each module has a docstring, ``add_arguments(parser)`` and ``measure(arguments, command) -> results.Record``.
BENCHMARKS: dict[str, ModuleType] = {
    "backbones": backbones,
    "extraction": extraction,
    "fixed-cost": fixed_cost,
    "peers-anomalib": peers_anomalib,
    "peers-memory": peers_memory,
    "peers-scikit-learn": peers_sklearn,
    "plan": plans,
    "scale": scale,
    "shortcuts": shortcuts,
    "soak": soak,
    "statistics": statistics,
}

# Options with which each benchmark only shows that it works, in about a minute.
QUICK: dict[str, tuple[str, ...]] = {
    "backbones": ("--names", "squeezenet1_1", "--images", "8", "--rounds", "1"),
    "extraction": ("--backbones", "squeezenet1_1", "--files", "256:JPEG", "--images", "32", "--rounds", "1"),
    "fixed-cost": ("--rounds", "1"),
    "peers-anomalib": ("--rounds", "1", "--limit-s", "1"),
    "peers-memory": ("--images", "20", "40"),
    "peers-scikit-learn": ("--rounds", "1"),
    "plan": ("--cases", "1", "--share", "0.2"),
    "scale": ("--sizes", "600", "700", "900", "--groups", "4", "--rounds", "2"),
    "shortcuts": ("--images", "30"),
    "soak": ("--images", "512"),
    "statistics": ("--rounds", "1"),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--show", action="store_true", help="show the result and do not keep it")
    parser.add_argument(
        "--quick", action="store_true", help="only show that it works, with too little work for meaningful figures"
    )
    names = parser.add_subparsers(dest="name", required=True)
    for name, module in BENCHMARKS.items():
        module.add_arguments(names.add_parser(name, help=str(module.__doc__).splitlines()[0]))
    parsed = parser.parse_args(arguments)
    return parser.parse_args([*arguments, *QUICK[parsed.name]]) if parsed.quick else parsed


def main(arguments: list[str]) -> None:
    """Run the benchmark that the arguments name."""
    parsed = parse(arguments)
    found = BENCHMARKS[parsed.name].measure(parsed, f"python -m benchmarks {shlex.join(arguments)}")
    if not (parsed.show or parsed.quick):
        results.save(parsed.name, found)
    for row in found.rows:
        print(", ".join(f"{column}: {value}" for column, value in row.items()))


if __name__ == "__main__":
    main(sys.argv[1:])

"""``python -m tests.benchmarks NAME``: measure one thing, keep what was found, and make the tables anew."""

import argparse
import shlex
import sys
from types import ModuleType

from tests.benchmarks import (
    extraction,
    fixed_cost,
    peers_anomalib,
    peers_memory,
    peers_sklearn,
    plans,
    results,
    scale,
    soak,
    statistics,
)

# Each module has a docstring, ``add_arguments(parser)`` and ``measure(arguments, command) -> results.Record``.
BENCHMARKS: dict[str, ModuleType] = {
    "extraction": extraction,
    "fixed-cost": fixed_cost,
    "peers-anomalib": peers_anomalib,
    "peers-memory": peers_memory,
    "peers-scikit-learn": peers_sklearn,
    "plan": plans,
    "scale": scale,
    "soak": soak,
    "statistics": statistics,
}


def main(arguments: list[str]) -> None:
    """Run the benchmark that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--show", action="store_true", help="show what was found and keep nothing")
    names = parser.add_subparsers(dest="name", required=True)
    for name, module in BENCHMARKS.items():
        module.add_arguments(names.add_parser(name, help=str(module.__doc__).splitlines()[0]))
    parsed = parser.parse_args(arguments)
    found = BENCHMARKS[parsed.name].measure(parsed, f"python -m tests.benchmarks {shlex.join(arguments)}")
    if not parsed.show:
        results.save(parsed.name, found)
    for row in found.rows:
        print(", ".join(f"{column}: {value}" for column, value in row.items()))


if __name__ == "__main__":
    main(sys.argv[1:])

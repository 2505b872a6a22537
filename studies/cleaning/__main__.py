"""How well the strategies clean, and how good their clean sets are: the command behind docs/study.md.

The study makes dirty sets of a panel of labelled archives, with several noises and seeds, by both protocols of the
paper's section 4.1, and cleans them by every strategy with several backbones. It compares purity, kept share, and the
test AUROC of the published map with an oracle's, and notes what the product says about each result: a clean set that is
not clean, without a word about it, is a silent failure. Features are extracted once; the strategies run on Gram
matrices in memory. After an interruption or a change of the code, run it again: it keeps every result that still holds.

    python -m studies.cleaning ../shared/data --weights ../shared/weights
    python -m studies.cleaning ../shared/data --weights ../shared/weights --sets bottle casting --seeds 1 --out trial
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from pipeline.judging.strategies.registry import STRATEGIES
from schemas.errors import EXIT_INTERRUPTED, EXIT_USAGE, PaireError
from studies.cleaning.methods import COMPARED, SWEEPS, parse_sweep
from studies.cleaning.panel import ALL, BACKBONES, RANDOM
from studies.cleaning.study import Study, run_check, run_study

NOISES = (0.0, 0.1, 0.2, 0.3, 0.4)
SEEDS = 3


def main(words: list[str] | None = None) -> int:
    """Run the study; return the exit code."""
    arguments = parse(words)
    try:
        with tempfile.TemporaryDirectory(prefix="paire-study-") as scratch:
            study = Study.of(arguments, Path(scratch))
            if arguments.check:
                run_check(study)
            else:
                run_study(study)
    except PaireError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    """Parse the arguments; where they are wrong, end the command with the reason."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.cleaning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="folder that holds the sets of the panel")
    parser.add_argument("--weights", required=True, help=f"folder of the backbones' weights, or {RANDOM!r}")
    parser.add_argument("--sets", nargs="+", choices=ALL, default=ALL, help="which sets of the panel")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=COMPARED)
    parser.add_argument("--noise", type=float, nargs="+", default=NOISES, help="shares of anomalies")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--sweep",
        type=parse_sweep,
        nargs="*",
        default=SWEEPS,
        metavar="STRATEGY:OPTION=VALUE,VALUE",
        help="constants to choose on all sets but one, such as grow:trim.smoothing=3,7",
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="gets study.md and study/")
    parser.add_argument("--cache", type=Path, help="keeps features and Gram matrices, else they are made again")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--check", action="store_true", help="compare one dirty set with the whole `paire clean`")
    arguments = parser.parse_args(words)
    if arguments.seeds < 1 or arguments.workers < 1:
        parser.exit(EXIT_USAGE, "error: --seeds and --workers must be 1 or more\n")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

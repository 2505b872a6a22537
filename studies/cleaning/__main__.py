"""How well the strategies clean, and how good their clean sets are: the command behind docs/study.md.

The study makes dirty sets of labelled archives, with several noises and seeds, by both protocols of the paper's section
4.1. It compares purity, kept share, and the test AUROC of a map fitted on the kept images, with the oracle and with no
trimming, and repeats the paper's ablations. Features are extracted once; the strategies run on Gram matrices in memory.
After an interruption or a change of the code, run it again: it keeps every result that still holds.

    python -m studies.cleaning ../shared/data/mvtec_bottle ../shared/data/kolektor_sdd \
        --weights ../shared/weights/squeezenet1_1-imagenet.pth
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from schemas.errors import EXIT_INTERRUPTED, EXIT_USAGE, PaireError
from studies.cleaning.study import Study, run_check, run_study

NOISES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
SEEDS = 5


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
    parser.add_argument(
        "archives", type=Path, nargs="+", help="labelled archives as `paire dirty` takes them; the first is swept"
    )
    parser.add_argument("--weights", required=True, help="squeezenet1_1 state dict")
    parser.add_argument("--noise", type=float, nargs="+", default=NOISES, help="shares of anomalies, 0 among them")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="gets study.md and study/")
    parser.add_argument("--cache", type=Path, help="keeps features and Gram matrices, else they are made anew")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--check", action="store_true", help="hold one dirty set against the whole `paire clean`")
    arguments = parser.parse_args(words)
    if arguments.seeds < 1 or arguments.workers < 1:
        parser.exit(EXIT_USAGE, "error: --seeds and --workers must be 1 or more\n")
    names = [path.resolve().name for path in arguments.archives]
    if len(set(names)) < len(names):
        parser.exit(EXIT_USAGE, f"error: two archives are called {max(names, key=names.count)!r}; rename one folder\n")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

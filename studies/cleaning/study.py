"""The study as a job: draw the dirty sets, extract once, compute missing results in parallel, write the report."""

import argparse
import datetime
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from pipeline.intake.locations import with_absolute_weights
from studies.cleaning.check import agreement_table, compare_with_command
from studies.cleaning.dirty_sets import OVERLAP, Case, DirtySet, draw, list_cases, source_of
from studies.cleaning.images import GramFile, prepare_gram, weights_digest
from studies.cleaning.judge import Task, judge, use_one_thread
from studies.cleaning.methods import (
    CONCENTRATE,
    GROW,
    PAIRE,
    SQUEEZENET,
    SWEPT_NOISES,
    Method,
    methods_for,
)
from studies.cleaning.plots import draw_ablations, draw_archive, draw_passes
from studies.cleaning.report import with_report, write_report
from studies.cleaning.results import ResultsFile, digest_of

REPORT, FOLDER, RESULTS, AGREEMENT = "study.md", "study", "results.csv", "agreement.md"

# The dirty set on which the study is compared with the command: of the first archive, by the paper's own protocol.
_CHECKED_NOISE, _CHECKED_SEED = 0.1, 0
_CHECKED_STRATEGIES = (PAIRE, CONCENTRATE, GROW)

_PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "torchvision")


@dataclass(frozen=True)
class Study:
    """A study to run.

    Attributes
    ----------
    sources
        Name of each archive to the source of its labels.
    cases
        The dirty sets.
    base
        Settings of the features.
    out, scratch
        Folders for the report and for intermediate files.
    workers
        How many processes to use.
    """

    sources: dict[str, Path]
    cases: tuple[Case, ...]
    base: tuple[str, ...]
    out: Path
    scratch: Path
    workers: int

    @classmethod
    def of(cls, arguments: argparse.Namespace, scratch: Path) -> "Study":
        """Return the study of a command's arguments."""
        sources = {path.resolve().name: source_of(path.resolve()) for path in arguments.archives}
        return cls(
            sources=sources,
            cases=tuple(list_cases(tuple(sources), sorted(set(arguments.noise)), arguments.seeds)),
            base=(*SQUEEZENET, f"features.weights={arguments.weights}"),
            out=arguments.out,
            scratch=arguments.cache or scratch,
            workers=arguments.workers,
        )

    @property
    def swept(self) -> str:
        """The archive of the sweeps."""
        return next(iter(self.sources))

    @cached_property
    def weights(self) -> str:
        """The sha256 of the backbone's weights."""
        return weights_digest(with_absolute_weights(Method(PAIRE).config(self.base)))

    def draw(self, archive: str) -> list[DirtySet]:
        """Draw an archive's dirty sets."""
        cases = [case for case in self.cases if case.archive == archive]
        return [self.draw_case(case) for case in cases]

    def draw_case(self, case: Case) -> DirtySet:
        """Draw one dirty set."""
        name = f"{case.archive}-{case.protocol.replace(' ', '-')}-{case.noise:g}-{case.seed}"
        return draw(case, self.sources[case.archive], self.scratch / "dirty" / name)

    def prepare(self, sets: list[DirtySet]) -> GramFile:
        """Extract the features of all images in some sets."""
        paths = {digest: path for one in sets for digest, path in one.paths.items()}
        config = with_absolute_weights(Method(PAIRE).config(self.base))
        return prepare_gram(paths, self.scratch / "grams", config)

    def missing(self, dirty: DirtySet, results: ResultsFile) -> Iterator[tuple[Method, str]]:
        """Yield the methods without a valid result on a set, each with the digest of its result."""
        digest = dirty.digest()
        for method in methods_for(dirty.case, self.swept):
            made_of = digest_of(digest, self.weights, method.config(self.base), method)
            if results.lacks(dirty.case, method, made_of):
                yield method, made_of


def run_study(study: Study) -> None:
    """Compute what is missing, archive by archive, and write the report.

    Raises
    ------
    PaireError
        When an archive cannot be read or made dirty, or the backbone cannot be built.
    """
    results = ResultsFile(study.out / FOLDER / RESULTS)
    _say(f"weights {study.weights[:12]}, {len(study.cases)} dirty sets")
    tasks: list[Task] = []
    for archive in study.sources:
        sets = study.draw(archive)
        missing = [(one, tuple(study.missing(one, results))) for one in sets]
        if any(methods for _, methods in missing):
            _say(f"{archive}: {len(sets)} dirty sets drawn; extracting features")
            gram = study.prepare(sets)
            tasks += [
                Task(one, gram, tuple((method, method.config(study.base), made_of) for method, made_of in methods))
                for one, methods in missing
                if methods
            ]
    # Seed by seed over all archives, as the cases are.
    order = {case: number for number, case in enumerate(study.cases)}
    _judge_all(sorted(tasks, key=lambda task: order[task.dirty.case]), results, study.workers)
    write(study, results)


def _judge_all(tasks: list[Task], results: ResultsFile, workers: int) -> None:
    """Judge in parallel processes, and keep each row as soon as it is computed."""
    started = time.monotonic()
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
        try:
            futures = {pool.submit(judge, task): task for task in tasks}
            for done, future in enumerate(as_completed(futures), start=1):
                results.add(future.result())
                case, elapsed = futures[future].dirty.case, time.monotonic() - started
                left = elapsed / done * (len(tasks) - done)
                _say(
                    f"{done} of {len(tasks)}: {case.archive}, {case.protocol}, {case.noise:.0%}, seed {case.seed}; "
                    f"{elapsed:.0f} s, about {left:.0f} s left"
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    """Compute on one thread, and let the parent process handle an interruption."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_one_thread()


def write(study: Study, results: ResultsFile) -> None:
    """Write the report and its figures from the results."""
    rows = results.rows_of((case, method) for case in study.cases for method in methods_for(case, study.swept))
    folder = study.out / FOLDER
    for archive in study.sources:
        (folder / f"{archive}.png").write_bytes(draw_archive(rows[rows["archive"] == archive], archive))
    own = rows[(rows["archive"] == study.swept) & (rows["protocol"] == OVERLAP)]
    swept = own[own["noise"].isin(SWEPT_NOISES)]
    (folder / "ablations.png").write_bytes(draw_ablations(own[own["setting"] == ""], swept))
    if len(swept):
        (folder / "passes.png").write_bytes(draw_passes(swept[swept["setting"] == ""]))
    made = _made(study, rows["seconds"].sum())
    generated = write_report(rows, archives=tuple(study.sources), swept_archive=study.swept, made=made)
    path = study.out / REPORT
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(with_report(text, generated), encoding="utf-8")
    _say(f"wrote {path}")


def run_check(study: Study) -> None:
    """Compare the kept images of one dirty set with those of the whole command, and keep the table for the report.

    Raises
    ------
    PaireError
        As for `run_study`.
    """
    dirty = study.draw_case(Case(study.swept, OVERLAP, _CHECKED_NOISE, _CHECKED_SEED))
    gram = study.prepare([dirty])
    agreements = list(compare_with_command(dirty, gram, _CHECKED_STRATEGIES, study.base, dirty.train_list.parent))
    table = agreement_table(agreements)
    (study.out / FOLDER).mkdir(parents=True, exist_ok=True)
    (study.out / FOLDER / AGREEMENT).write_text(table + "\n", encoding="utf-8")
    print(table)


def _made(study: Study, seconds: float) -> str:
    """Return how, when and where the results were made."""
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    agreement = study.out / FOLDER / AGREEMENT
    check = (
        f"\n\nThe study computes distances from Gram matrices. The whole `paire clean` on one of its dirty sets "
        f"({study.swept}, overlap, {_CHECKED_NOISE:.0%}, seed {_CHECKED_SEED}), by the same command with `--check`:"
        f"\n\n{agreement.read_text(encoding='utf-8').strip()}"
        if agreement.is_file()
        else ""
    )
    return (
        f"Made {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d} by `make study`: "
        f"{len(study.cases)} dirty sets, `squeezenet1_1` with its ImageNet weights, {seconds / 60:.0f} minutes on one "
        f"core of a machine with {os.cpu_count()} ({platform.machine()}); Python {platform.python_version()}, "
        f"{versions}. Each row behind the tables is in [results.csv](study/results.csv).{check}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

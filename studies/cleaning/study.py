"""The study as a job: draw the dirty sets, extract once, compute missing results in parallel, write the report."""

import argparse
import datetime
import os
import platform
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from pipeline.intake.locations import with_absolute_weights
from schemas.config import Config
from studies.cleaning.check import agreement_table, compare_with_command
from studies.cleaning.dirty_sets import OVERLAP, Case, DirtySet, draw, list_cases
from studies.cleaning.images import GramFile, prepare_gram, weights_digest
from studies.cleaning.judge import Task, judge, use_one_thread
from studies.cleaning.methods import COMPARED, Method, Sweep, methods_for
from studies.cleaning.panel import BACKBONES, MADE, find_sets
from studies.cleaning.plots import draw_archive
from studies.cleaning.report import Report, with_report
from studies.cleaning.results import Key, ResultsFile, digest_of, key_of

REPORT, FOLDER, RESULTS, AGREEMENT = "study.md", "study", "results.csv", "agreement.md"

# The dirty set on which the study is compared with the command: of the first archive, by the paper's own protocol.
_CHECKED_NOISE, _CHECKED_SEED = 0.1, 0

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
    backbones
        Name of each backbone to the settings of its features.
    strategies
        The strategies to compare.
    sweeps
        The constants to sweep, with the first backbone.
    out, scratch
        Folders for the report and for intermediate files.
    workers
        How many processes to use.
    """

    sources: dict[str, Path]
    cases: tuple[Case, ...]
    backbones: dict[str, tuple[str, ...]]
    strategies: tuple[str, ...]
    sweeps: tuple[Sweep, ...]
    out: Path
    scratch: Path
    workers: int
    _weights: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: argparse.Namespace, scratch: Path) -> "Study":
        """Return the study of a command's arguments.

        Raises
        ------
        SourceError
            When a set is not there or cannot be read.
        """
        scratch = arguments.cache or scratch
        return cls(
            sources=find_sets(arguments.data, arguments.sets, scratch / "made"),
            cases=tuple(list_cases(arguments.sets, sorted(set(arguments.noise)), arguments.seeds, made=MADE)),
            backbones={name: BACKBONES[name].settings(arguments.weights) for name in arguments.backbones},
            strategies=tuple(arguments.strategies),
            sweeps=tuple(arguments.sweep),
            out=arguments.out,
            scratch=scratch,
            workers=arguments.workers,
        )

    def config(self, backbone: str, method: Method) -> Config:
        """Return the configuration of a method with a backbone."""
        return with_absolute_weights(method.config(self.backbones[backbone]))

    def methods(self, case: Case, backbone: str) -> list[Method]:
        """Return the methods to compare on a set."""
        return methods_for(case, self.strategies, self.sweeps if backbone == next(iter(self.backbones)) else ())

    def keys(self) -> Iterator[Key]:
        """Yield everything that the report shows."""
        for case in self.cases:
            for backbone in self.backbones:
                yield from ((case, backbone, method) for method in self.methods(case, backbone))

    def draw_case(self, case: Case) -> DirtySet:
        """Draw one dirty set."""
        name = f"{case.archive}-{case.protocol.replace(' ', '-')}-{case.noise:g}-{case.seed}"
        return draw(case, self.sources[case.archive], self.scratch / "dirty" / name)

    def prepare(self, sets: list[DirtySet], backbone: str) -> GramFile:
        """Extract the features of all images in some sets."""
        paths = {digest: path for one in sets for digest, path in one.paths.items()}
        return prepare_gram(paths, self.scratch / "grams", self.config(backbone, Method(COMPARED[0])))

    def missing(self, sets: tuple[DirtySet, ...], backbone: str, results: ResultsFile) -> dict[Method, dict[Case, str]]:
        """Return the methods without a valid result, each with the sets that lack it and the digests of their rows."""
        missing: dict[Method, dict[Case, str]] = defaultdict(dict)
        known, weights = results.digests, self._weights_digest(backbone)
        for one in sets:
            digest = one.digest()
            for method in self.methods(one.case, backbone):
                made_of = digest_of(digest, weights, self.config(backbone, method), method)
                if known.get(key_of(one.case, backbone, method)) != made_of:
                    missing[method][one.case] = made_of
        return dict(missing)

    def _weights_digest(self, backbone: str) -> str:
        if backbone not in self._weights:
            self._weights[backbone] = weights_digest(self.config(backbone, Method(COMPARED[0])))
        return self._weights[backbone]


def run_study(study: Study) -> None:
    """Compute what is missing, archive by archive, and write the report.

    Raises
    ------
    PaireError
        When an archive cannot be read or made dirty, or a backbone cannot be built.
    """
    results = ResultsFile(study.out / FOLDER / RESULTS)
    _say(f"{len(study.sources)} archives, {len(study.cases)} dirty sets, {len(study.backbones)} backbones")
    tasks: list[Task] = []
    for archive in study.sources:
        sets = [study.draw_case(case) for case in study.cases if case.archive == archive]
        for backbone, base in study.backbones.items():
            parts = [(part, study.missing(part, backbone, results)) for part in _by_training(sets)]
            if any(missing for _, missing in parts):
                _say(f"{archive}, {backbone}: extracting features")
                gram = study.prepare(sets, backbone)
                tasks += [Task(part, backbone, base, gram, missing) for part, missing in parts if missing]
    # Seed by seed over all archives, as the cases are.
    order = {case: number for number, case in enumerate(study.cases)}
    _judge_all(sorted(tasks, key=lambda task: order[task.sets[0].case]), results, study.workers)
    write(study, results)


def _by_training(sets: list[DirtySet]) -> list[tuple[DirtySet, ...]]:
    """Return the sets in parts of the same training images, which are cleaned once."""
    parts: dict[tuple[str, ...], list[DirtySet]] = defaultdict(list)
    for one in sets:
        parts[one.train.distinct().in_order().digests].append(one)
    return [tuple(part) for part in parts.values()]


def _judge_all(tasks: list[Task], results: ResultsFile, workers: int) -> None:
    """Judge in parallel processes, and keep each row as soon as it is computed."""
    started = time.monotonic()
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
        try:
            futures = {pool.submit(judge, task): task for task in tasks}
            for done, future in enumerate(as_completed(futures), start=1):
                results.add(future.result())
                task, elapsed = futures[future], time.monotonic() - started
                case, left = task.sets[0].case, elapsed / done * (len(tasks) - done)
                _say(
                    f"{done} of {len(tasks)}: {case.archive}, {task.backbone}, {case.noise:.0%}, seed {case.seed}; "
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
    rows = results.rows_of(study.keys())
    plain = rows[rows["setting"] == ""]
    for archive in study.sources:
        picture = draw_archive(plain[plain["archive"] == archive], archive)
        (study.out / FOLDER / f"{archive}.png").write_bytes(picture)
    report = Report(rows, tuple(study.sources), tuple(study.backbones), study.strategies, study.sweeps)
    path = study.out / REPORT
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(with_report(text, report.write(_made(study, rows["seconds"].sum()))), encoding="utf-8")
    _say(f"wrote {path}")


def run_check(study: Study) -> None:
    """Compare the kept images of one dirty set with those of the whole command, and keep the table for the report.

    Raises
    ------
    PaireError
        As for `run_study`.
    """
    archive, (backbone, base) = next(iter(study.sources)), next(iter(study.backbones.items()))
    dirty = study.draw_case(Case(archive, OVERLAP, _CHECKED_NOISE, _CHECKED_SEED))
    gram = study.prepare([dirty], backbone)
    agreements = list(compare_with_command(dirty, gram, study.strategies, base, dirty.train_list.parent))
    table = (
        f"The study computes distances from Gram matrices. The whole `paire clean` on one of its dirty sets "
        f"({archive}, {backbone}, overlap, {_CHECKED_NOISE:.0%}, seed {_CHECKED_SEED}), by the same command with "
        "`--check`:\n\n" + agreement_table(agreements)
    )
    (study.out / FOLDER).mkdir(parents=True, exist_ok=True)
    (study.out / FOLDER / AGREEMENT).write_text(table + "\n", encoding="utf-8")
    print(table)


def _made(study: Study, seconds: float) -> str:
    """Return how, when and where the results were made."""
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    agreement = study.out / FOLDER / AGREEMENT
    check = f"\n\n{agreement.read_text(encoding='utf-8').strip()}" if agreement.is_file() else ""
    return (
        f"Made {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d} by `make study`: {len(study.cases)} dirty sets, "
        f"{' and '.join(f'`{name}`' for name in study.backbones)} with ImageNet weights, {seconds / 60:.0f} minutes on "
        f"one core of a machine with {os.cpu_count()} ({platform.machine()}) after extraction; "
        f"Python {platform.python_version()}, {versions}. "
        f"Each row behind the tables is in [results.csv](study/results.csv).{check}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""One dirty training set under all its methods: the task of a worker process."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.commands.evaluate.metrics import CleanCounts, image_auroc
from pipeline.judging.strategies.registry import estimator_of, strategy_of
from schemas.arrays import Floats, Mask
from schemas.config import Config
from studies.cleaning.dirty_sets import Case, DirtySet, LabelledImages
from studies.cleaning.guard import Said, listen, measure_power
from studies.cleaning.images import GramFile
from studies.cleaning.methods import NONE, Method
from studies.cleaning.passes import Archive
from studies.cleaning.results import Result

# A clean set below this purity, without a word about it, is a silent failure.
PURE = 0.98

# The purity of the oracle's own cut.
ORACLE_PURITY = 0.995


@dataclass(frozen=True)
class Task:
    """Dirty sets of the same training images, which differ in their test sets, and what to compute of them."""

    sets: tuple[DirtySet, ...]
    backbone: str
    base: tuple[str, ...]  # the settings of the features
    gram: GramFile
    missing: Mapping[Method, Mapping[Case, str]]  # for each method, the sets that lack it, and the digest of its row


class _Oracle(NamedTuple):
    """A map fitted on the true normals."""

    scores: dict[str, float]  # of each test image, by its digest
    cut: float  # share of the normals that its ranking keeps


@dataclass
class _Training:
    """The training images of a task, and the oracles so far."""

    images: LabelledImages
    archive: Archive
    gram: GramFile
    tested: tuple[str, ...]  # digests of all test images
    _oracles: dict[tuple[str, int, bool], _Oracle] = field(default_factory=dict)

    def scores(self, fitted: Mask, config: Config) -> dict[str, float]:
        """Return the largest distance of each test image under the map fitted on some images."""
        distances = self.archive.map_distances(fitted, self.gram.rows(self.tested), config)
        return dict(zip(self.tested, distances.max(axis=(1, 2)).tolist(), strict=True))

    def oracle(self, config: Config, smoothing: int) -> _Oracle:
        """Return the oracle with an estimator and a smoothing, made once."""
        key = estimator_of(config), smoothing, strategy_of(config).measures_neighbours
        if key not in self._oracles:
            normal = ~self.images.is_anomalous
            own = self.archive.scores(normal, config, estimator=key[0], smoothing=smoothing)
            self._oracles[key] = _Oracle(self.scores(normal, config), best_cut(own, self.images.is_anomalous))
        return self._oracles[key]


def use_one_thread() -> None:
    """Let this process compute on one thread: more do not help, and other processes need the cores."""
    threadpool_limits(limits=1)


def judge(task: Task) -> list[Result]:
    """Return one row for each method and each set that lacks it."""
    images = task.sets[0].train.distinct().in_order()
    tested = dict.fromkeys(digest for one in task.sets for digest in one.test.digests)
    training = _Training(images, _archive(images, task.gram), task.gram, tuple(tested))
    rows: list[Result] = []
    for method, lacking in task.missing.items():
        rows += _judge(task, training, method, lacking)
    return rows


def clean_digests(dirty: DirtySet, gram: GramFile, config: Config) -> set[str]:
    """Return the digests of the images that a strategy keeps."""
    train = dirty.train.distinct()
    clean = _archive(train, gram).clean(config).trimming.clean
    return {digest for digest, is_clean in zip(train.digests, clean, strict=True) if is_clean}


def best_cut(scores: Floats, is_anomalous: Mask, purity: float = ORACLE_PURITY) -> float:
    """Return the largest share of the normals below any threshold that leaves the images below it pure.

    Parameters
    ----------
    scores
        (images,) float64: higher is worse; of images with the same score the anomalous ones count first.
    is_anomalous
        (images,) bool.
    """
    bad = is_anomalous[np.lexsort((~is_anomalous, scores))]
    normals = np.cumsum(~bad)
    pure = normals >= purity * np.arange(1, len(bad) + 1)
    return float(normals[pure].max(initial=0) / max(normals[-1], 1))


def _judge(task: Task, training: _Training, method: Method, lacking: Mapping[Case, str]) -> list[Result]:
    """Clean once, and test the map on the test set of each set that lacks the row."""
    started, config, bad = time.monotonic(), method.config(task.base), training.images.is_anomalous
    cleaning = training.archive.clean(config)
    trimming = cleaning.trimming
    power = None
    if strategy_of(config).rejects:
        power = measure_power(training.archive, cleaning, config, training.gram, training.images.digests)
    said = listen(training.archive, cleaning, config, power)
    scores = training.scores(trimming.published, config)
    oracle = training.oracle(config, trimming.smoothing)
    counts = CleanCounts.of(bad, trimming.clean)
    failed = method.name != NONE and _defined(counts.purity) < PURE
    rows = [
        Result(
            archive=dirty.case.archive,
            backbone=task.backbone,
            protocol=dirty.case.protocol,
            noise=dirty.case.noise,
            seed=dirty.case.seed,
            method=method.name,
            setting=method.setting,
            made_of=lacking[dirty.case],
            images=len(bad),
            anomalies=int(bad.sum()),
            kept=int(trimming.clean.sum()),
            kept_anomalies=int(trimming.clean[bad].sum()),
            purity=_defined(counts.purity),
            kept_share=_defined(counts.kept_share),
            passes=len(trimming.iterations),
            stop_reason=trimming.stop_reason,
            stops=said.stops,
            said=_in_short(said),
            failed=failed,
            silent=failed and not said.anything,
            **_contamination(said, float(bad.mean())),
            test_normals=int((~dirty.test.is_anomalous).sum()),
            test_anomalies=int(dirty.test.is_anomalous.sum()),
            auroc=_auroc(dirty.test, scores),
            oracle_auroc=_auroc(dirty.test, oracle.scores),
            oracle_cut=oracle.cut,
            seconds=0.0,
        )
        for dirty in task.sets
        if dirty.case in lacking
    ]
    seconds = (time.monotonic() - started) / len(rows)
    return [row._replace(seconds=seconds) for row in rows]


def _contamination(said: Said, truth: float) -> dict[str, float]:
    """Return the estimate, its interval, and 1.0 if that covers the truth; NaN if too little is clean for one."""
    found = said.examination.contamination
    if found is None:
        return dict.fromkeys(("contamination", "lower", "upper", "covered"), float("nan"))
    covered = float(found.lower <= truth <= found.upper)
    return {"contamination": found.share, "lower": found.lower, "upper": found.upper, "covered": covered}


def _in_short(said: Said) -> str:
    """Return the conditions of the findings, those that stop with ``stop`` before them, and the heads of warnings."""
    findings = [f"{'stop ' if one.stops else ''}{one.condition}" for one in said.examination.findings]
    return "; ".join([*findings, *(sentence.partition(":")[0] for sentence in said.warnings)])


def _archive(train: LabelledImages, gram: GramFile) -> Archive:
    rows = gram.rows(train.digests)
    return Archive(gram.matrices, rows, gram.grid, gram.sketches[rows])


def _auroc(test: LabelledImages, scores: Mapping[str, float]) -> float:
    return _defined(image_auroc(test.is_anomalous, np.array([scores[digest] for digest in test.digests])))


def _defined(value: float | None) -> float:
    return float("nan") if value is None else value

"""One dirty set under all its methods: the task of a worker process."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.commands.evaluate.metrics import CleanCounts, image_auroc
from pipeline.judging.strategies.base import Trimming
from schemas.arrays import Mask
from schemas.config import Config
from studies.cleaning.dirty_sets import DirtySet, LabelledImages
from studies.cleaning.images import GramFile
from studies.cleaning.methods import ORACLE, Method
from studies.cleaning.passes import Archive
from studies.cleaning.results import Result
from workers.verdict.smoothing import smooth


@dataclass(frozen=True)
class Task:
    """A dirty set, the Gram matrices of its images, and the configuration and the digest of each method."""

    dirty: DirtySet
    gram: GramFile
    methods: tuple[tuple[Method, Config, str], ...]


def use_one_thread() -> None:
    """Let this process compute on one thread: more do not help, and other processes need the cores."""
    threadpool_limits(limits=1)


def judge(task: Task) -> list[Result]:
    """Return one row for each method."""
    return [_judge(task.dirty, task.gram, *method) for method in task.methods]


def clean_digests(dirty: DirtySet, gram: GramFile, config: Config) -> set[str]:
    """Return the digests of the images that a strategy keeps."""
    train = dirty.train.distinct()
    clean = _archive(train, gram).clean(config).clean
    return {digest for digest, is_clean in zip(train.digests, clean, strict=True) if is_clean}


def _judge(dirty: DirtySet, gram: GramFile, method: Method, config: Config, made_of: str) -> Result:
    started = time.monotonic()
    train, test = dirty.train.distinct(), dirty.test
    archive = _archive(train, gram)
    trimming = None if method.name == ORACLE else archive.clean(config)
    clean = ~train.is_anomalous if trimming is None else trimming.clean
    counts = CleanCounts.of(train.is_anomalous, clean)
    distances = archive.map_distances(
        trimming.published if trimming else clean,
        gram.rows(test.digests),
        config,
        nearest=trimming.nearest if trimming else 1.0,
    )
    return Result(
        archive=dirty.case.archive,
        protocol=dirty.case.protocol,
        noise=dirty.case.noise,
        seed=dirty.case.seed,
        method=method.name,
        setting=method.setting,
        made_of=made_of,
        images=len(train.digests),
        anomalies=int(train.is_anomalous.sum()),
        kept=int(clean.sum()),
        kept_anomalies=int(clean[train.is_anomalous].sum()),
        purity=_defined(counts.purity),
        kept_share=_defined(counts.kept_share),
        passes=len(trimming.iterations) if trimming else 0,
        stop_reason=trimming.stop_reason if trimming else "",
        floor_applied=bool(trimming and trimming.iterations[-1].floor_applied),
        history=_history(trimming, train.is_anomalous) if trimming else "",
        test_normals=int((~test.is_anomalous).sum()),
        test_anomalies=int(test.is_anomalous.sum()),
        auroc=_auroc(test.is_anomalous, distances),
        auroc_smoothed=_auroc(test.is_anomalous, smooth(distances, config.trim.smoothing)),
        seconds=time.monotonic() - started,
    )


def _archive(train: LabelledImages, gram: GramFile) -> Archive:
    rows = gram.rows(train.digests)
    return Archive(gram.matrices, rows, gram.grid, gram.sketches[rows])


def _history(trimming: Trimming, is_anomalous: Mask) -> str:
    return " ".join(f"{clean.sum()}:{clean[is_anomalous].sum()}" for clean in trimming.history)


def _auroc(is_anomalous: Mask, distances: NDArray[np.float64]) -> float:
    return _defined(image_auroc(is_anomalous, distances.max(axis=(1, 2))))


def _defined(value: float | None) -> float:
    return float("nan") if value is None else value

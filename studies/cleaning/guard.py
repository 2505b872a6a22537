"""What the product says about a clean set: the breakdown guard in memory, and the warnings of the ledger.

`pipeline.judging.examination` and `pipeline.judging.power` compute the same from Dask tasks over stored features.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from pipeline.judging.examination import ESTIMATOR, RATE, Examination, estimate_for, weigh_power
from pipeline.judging.judge import warnings_about
from pipeline.judging.result import Census, GroupResult
from schemas.config import Config
from schemas.records.image import ImageRef
from studies.cleaning.images import GramFile
from studies.cleaning.passes import Archive, Cleaning
from workers.guard.findings import count_exclusions, examine
from workers.guard.structure import describe_structure, sample_images
from workers.trust.power import DEFECTS, Plot, Power
from workers.trust.trial import Trials
from workers.verdict.smoothing import smooth


class Said(NamedTuple):
    """What the product says about one clean set."""

    examination: Examination
    warnings: tuple[str, ...]  # sentences

    @property
    def stops(self) -> bool:
        """Whether the run would stop with an exit code."""
        return any(finding.stops for finding in self.examination.findings)

    @property
    def anything(self) -> bool:
        """Whether there is any finding or warning."""
        return bool(self.examination.findings or self.warnings)


def listen(archive: Archive, cleaning: Cleaning, config: Config, power: Power | None = None) -> Said:
    """Return what the product says about a clean set of an archive, and about its power if that was measured."""
    examination = examine_archive(archive, cleaning, config)
    if power is not None:
        examination = weigh_power({"": examination}, {"": power})[""]
    everything = np.arange(len(archive.rows))
    result = GroupResult(
        outcomes=(),
        census=Census(np.ones(len(everything), dtype=bool), everything),
        examination=examination,
        trimming=cleaning.trimming,
        fitted_for=cleaning.fitted_for,
        near_duplicates=cleaning.near_duplicates,
    )
    return Said(examination, tuple(warnings_about(result, cleaning.trimming)))


def measure_power(
    archive: Archive, cleaning: Cleaning, config: Config, gram: GramFile, digests: Sequence[str]
) -> Power:
    """Plant defects into kept images as `workers.trust.power` does, and count those that the map sees.

    ``gram`` is the archive's, with images that have planted defects, and ``digests`` are those of its images.
    """
    kept = {digest for digest, is_clean in zip(digests, cleaning.trimming.clean, strict=True) if is_clean}
    chosen = [digest for digest in gram.ground if digest in kept][: config.guard.power_images]
    place = {digest: number for number, digest in enumerate(gram.ground)}
    plots = [Plot(ImageRef(0, ""), digest, DEFECTS[place[digest] % len(DEFECTS)]) for digest in chosen]
    rows = np.column_stack([gram.rows(chosen), gram.planted_rows(chosen)])
    distances = archive.map_distances(cleaning.trimming.published, rows.ravel(), config)
    smoothed = smooth(distances, cleaning.trimming.smoothing)
    margin = (smoothed / cleaning.map_thresholds).max(axis=(1, 2)).reshape(-1, 3)
    return Power.of(plots, Trials(margin[:, 0], margin[:, 1:], gram.contrast(chosen), ("",) * len(plots)))


def examine_archive(archive: Archive, cleaning: Cleaning, config: Config) -> Examination:
    """Examine a clean set as `pipeline.judging.examination.examine_group` does."""
    trimming = cleaning.trimming
    score = partial(archive.scores, config=config, estimator=ESTIMATOR, smoothing=config.trim.smoothing)
    contamination = estimate_for(trimming, score, images=len(archive.rows))
    sample = sample_images(np.ones(len(archive.rows), dtype=bool))
    findings = examine(
        contamination,
        count_exclusions(cleaning.distances, trimming.thresholds, smoothing=trimming.smoothing),
        describe_structure(archive.gram.over_all_positions(archive.rows[sample]), trimming.clean[sample]),
        kept=int(trimming.clean.sum()),
        false_reject=RATE,
        min_clean_fraction=config.trim.min_clean_fraction,
        purity=trimming.purity,
    )
    return Examination(contamination, findings, purity=trimming.purity)

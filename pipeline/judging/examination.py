"""What the breakdown guard looks at, as Dask tasks: a final clean set under a fit of its own, whatever chose it.

The distances that decided are no measure of contamination: those of the paper's rule jump between fitted images and
others by construction. So the final clean set is fitted once more, with the covariance estimator of the strategy
`grow`, all images are measured, the fitted ones without themselves, and scored as `grow` scores them: one pass, or two
(see `workers.guard.contamination.fit_and_estimate`), into an array that is removed again. The driver holds one number
for each image, and a sample's Gram matrix besides.
"""

import dataclasses
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Reporter
from pipeline.cluster.tasks import Window, open_window
from pipeline.judging.statistics import GroupStatistics
from pipeline.judging.strategies.paire import Trimming
from schemas.arrays import Floats, Mask
from schemas.config import Config
from schemas.names import storage_name
from schemas.records.run import DISTANCE, DISTANCES
from schemas.stores.features import FeatureGeometry
from workers.features.arrays import ArrayRef, cut_segments
from workers.guard.contamination import Contamination, fit_and_estimate
from workers.guard.findings import Exclusions, Finding, count_segment, examine, excuse_small_groups
from workers.guard.structure import MIN_SAMPLE, Structure, describe_structure, gram_row, sample_images
from workers.storage.directory import Directory

# The estimator of `grow`, whose scores the law of clean images was studied on.
ESTIMATOR = "relative-ridge"

# The rate of false rejects that estimate and limits were studied at, whatever a strategy is asked for: at a larger one
# the contamination is taken for the law's tail, at a smaller one fewer images stand for more.
RATE = 0.02

# Digits of a share in the ledger: one image in ten thousand.
SHARE_DIGITS = 4


@dataclass(frozen=True)
class Examination:
    """What the breakdown guard found of one group.

    Attributes
    ----------
    contamination
        The estimate; None where too few images are clean for any.
    findings
        Those that stop first; empty for a group that can be trusted.
    """

    contamination: Contamination | None
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the group's part of the ledger, JSON-ready."""
        found, shares = self.contamination, None
        if found is not None:
            shares = {name: round(getattr(found, name), SHARE_DIGITS) for name in ("share", "lower", "upper")}
        return {"contamination": shares, "findings": [dataclasses.asdict(finding) for finding in self.findings]}


@dataclass(frozen=True)
class Examiner:
    """Examines the groups of a run.

    Attributes
    ----------
    cluster
        Where to compute; None for here.
    run
        The run directory; holds the distances that decided.
    features
        The feature store.
    geometry
        The grid of positions.
    config
        The configuration of the run.
    reporter
        Shows progress.
    """

    cluster: Cluster | None
    run: Directory
    features: Directory
    geometry: FeatureGeometry
    config: Config
    reporter: Reporter

    def examine(self, group: str, measured: Mask, trimming: Trimming, statistics: GroupStatistics) -> Examination:
        """Examine how one group came out; the distances that decided are left as they are.

        Parameters
        ----------
        group
            Product group.
        measured
            (images,) bool: the images that take part.
        trimming
            How its clean set came out.
        statistics
            The group's passes.
        """
        contamination = self._estimate(group, trimming.clean, statistics)
        findings = examine(
            contamination,
            self._count_exclusions(group, measured, trimming),
            self._structure(group, measured, trimming.clean),
            kept=int(trimming.clean.sum()),
            false_reject=RATE,
            min_clean_fraction=self.config.trim.min_clean_fraction,
        )
        return Examination(contamination, findings)

    def _estimate(self, group: str, clean: Mask, statistics: GroupStatistics) -> Contamination | None:
        """Estimate the contamination under fits of the guard's own."""

        def score(fitted: Mask) -> Floats:
            name, rows = f"{group}: examine", self.geometry.rows
            with self.reporter.phase(name, rows, "rows", kind="examine", brief=True) as phase:
                smoothing = self.config.trim.smoothing
                return statistics.score_apart(fitted, smoothing=smoothing, phase=phase, estimator=ESTIMATOR)

        return fit_and_estimate(score, clean, false_reject=RATE)

    def _count_exclusions(self, group: str, measured: Mask, trimming: Trimming) -> Exclusions:
        """Count what the thresholds exclude of the distances that decided."""
        distances, window = ArrayRef(self.run / DISTANCES / storage_name(group), "", DISTANCE), self._window()
        parts: list[Exclusions] = window.gather(
            [
                window.submit(
                    count_segment,
                    distances,
                    segment,
                    trimming.thresholds,
                    smoothing=trimming.smoothing,
                )
                for segment in cut_segments(measured, self.config.gaussian.segment_images)
            ]
        )
        return sum(parts[1:], parts[0])

    def _structure(self, group: str, measured: Mask, clean: Mask) -> Structure | None:
        """Describe a sample of the images; None where they are too few."""
        if int(measured.sum()) < MIN_SAMPLE:
            return None
        features, sample = ArrayRef(self.features, "", storage_name(group)), sample_images(measured)
        window = self._window()
        total: Any = None
        for row in range(self.geometry.rows):
            products = window.submit(gram_row, features, row, sample)
            # Added on the workers, row by row in order: one matrix comes back, and always the same.
            total = products if total is None else window.submit(operator.add, total, products)
        assert total is not None
        return describe_structure(window.gather([total])[0], clean[sample])

    def _window(self) -> Window:
        return open_window(self.cluster)


def weigh_small_groups(examinations: Mapping[str, Examination], images: Mapping[str, int]) -> dict[str, Examination]:
    """Return the examinations of all groups of a run, small groups excused where they are a small part of it.

    Parameters
    ----------
    examinations
        Group to what was found of it.
    images
        Group to how many images take part.
    """
    findings = {group: examination.findings for group, examination in examinations.items()}
    excused = excuse_small_groups(findings, images)
    return {
        group: dataclasses.replace(examination, findings=excused[group]) for group, examination in examinations.items()
    }

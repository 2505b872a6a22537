"""What the breakdown guard looks at, as Dask tasks: the final clean set of any strategy, under a fit of its own.

The distances that decided do not measure contamination: those of the paper's rule jump between fitted images and others
by construction. So the final clean set is fitted once more, with the covariance estimator of the strategy `grow`. All
images are measured, the fitted ones without themselves, and scored as `grow` scores them. That takes one pass or two
(see `workers.guard.contamination.fit_and_estimate`), into an array that is removed again. The driver holds one number
for each image, and the Gram matrix of a sample.
"""

import dataclasses
import logging
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.tasks import Window, open_window
from pipeline.judging.group import Group
from pipeline.judging.statistics import GroupStatistics
from pipeline.judging.strategies.base import GAP, Trimming
from schemas.arrays import Floats, Mask
from schemas.records.run import DISTANCE
from workers.features.arrays import ArrayRef
from workers.guard.contamination import Contamination, beyond_gap, fit_and_estimate, widen
from workers.guard.findings import (
    HALF,
    Exclusions,
    Finding,
    count_segment,
    examine,
    excuse_small_groups,
    is_blind,
    misses_defects,
    misses_medium,
    with_finding,
)
from workers.guard.structure import MIN_SAMPLE, Structure, describe_structure, gram_row, sample_images
from workers.trust.power import NOT_JUDGED, Power, add_up
from workers.verdict.purity import Purity

logger = logging.getLogger("paire")

# The estimator of `grow`, whose scores the law of clean images was studied on.
ESTIMATOR = "relative-ridge"

# The rate of false rejects at which estimate and limits were studied; it ignores the strategy's own rate. At a larger
# rate contamination would pass for the law's tail, at a smaller one fewer images would stand for more.
RATE = 0.02

# Digits of a share in the ledger: one image in ten thousand.
SHARE_DIGITS = 4


@dataclass(frozen=True)
class Examination:
    """What the breakdown guard found about one group."""

    contamination: Contamination | None  # the estimate; None if too few images are clean for one
    findings: tuple[Finding, ...]  # those that stop a run first; empty for a group that can be trusted
    power: Power = NOT_JUDGED  # what the published map sees of planted defects
    purity: Purity | None = None  # of the clean set; None if the strategy does not estimate it

    def to_json(self) -> dict[str, Any]:
        """Return the group's part of the ledger, JSON-ready."""
        return {
            "contamination": _rounded(self.contamination, "share", "lower", "upper"),
            "purity": _rounded(self.purity, "estimate", "lower"),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "power": self.power.to_json(),
        }


def examine_group(
    cluster: Cluster | None, group: Group, trimming: Trimming, statistics: GroupStatistics
) -> Examination:
    """Examine a group's clean set; the stored distances, which decided, stay as they are."""
    smoothing, window = group.config.trim.smoothing, open_window(cluster)

    def score(fitted: Mask) -> Floats:
        return statistics.score_aside(fitted, kind="examine", smoothing=smoothing, neighbours=True, estimator=ESTIMATOR)

    contamination = estimate_for(trimming, score, images=group.count)
    findings = examine(
        contamination,
        _count_exclusions(window, group, trimming, statistics.distances.array(DISTANCE)),
        _structure(window, group, trimming.clean),
        kept=int(trimming.clean.sum()),
        false_reject=RATE,
        min_clean_fraction=group.config.trim.min_clean_fraction,
        purity=trimming.purity,
    )
    for finding in findings:
        logger.warning("%s: %s", group.name, finding.sentence, extra={"group": group.name})
    return Examination(contamination, findings, purity=trimming.purity)


def estimate_for(trimming: Trimming, score: Callable[[Mask], Floats], *, images: int) -> Contamination | None:
    """Estimate the contamination of a group in which a clean set was found.

    ``score`` is that of `fit_and_estimate`, and ``images`` how many take part.
    """
    kept, purity = int(trimming.clean.sum()), trimming.purity
    if trimming.stop_reason == GAP:
        found: Contamination | None = beyond_gap(images, kept)
    else:
        found = fit_and_estimate(score, trimming.clean, false_reject=RATE)
    if found is None or purity is None:
        return found
    # As if all that was rejected were bad, and what was kept no purer than its bound.
    return widen(found, 1.0 - purity.lower * kept / images)


def _rounded(found: Contamination | Purity | None, *names: str) -> dict[str, float] | None:
    """Return some shares, rounded for the ledger; None if there is no estimate."""
    return None if found is None else {name: round(getattr(found, name), SHARE_DIGITS) for name in names}


def _count_exclusions(window: Window, group: Group, trimming: Trimming, distances: ArrayRef) -> Exclusions:
    """Count what the thresholds exclude, in the distances that decided."""
    counted = [
        window.submit(count_segment, distances, segment, trimming.thresholds, smoothing=trimming.smoothing)
        for segment in group.segments()
    ]
    parts: list[Exclusions] = window.gather(counted)
    return sum(parts[1:], parts[0])


def _structure(window: Window, group: Group, clean: Mask) -> Structure | None:
    """Describe a sample of the images; None if there are too few."""
    if group.count < MIN_SAMPLE:
        return None
    sample, total = sample_images(group.measured), None
    for row in range(group.geometry.rows):
        products = window.submit(gram_row, group.features, row, sample)
        # The workers add the rows in order: one matrix comes back, and always the same one.
        total = products if total is None else window.submit(operator.add, total, products)
    return describe_structure(window.gather([total])[0], clean[sample])


def weigh_small_groups(examinations: Mapping[str, Examination], images: Mapping[str, int]) -> dict[str, Examination]:
    """Return the examinations of all groups of a run; small groups are excused if they are a small part of the run.

    ``images`` is, for each group, how many images take part.
    """
    findings = {group: examination.findings for group, examination in examinations.items()}
    excused = excuse_small_groups(findings, images)
    return {
        group: dataclasses.replace(examination, findings=excused[group]) for group, examination in examinations.items()
    }


def weigh_power(examinations: Mapping[str, Examination], powers: Mapping[str, Power]) -> dict[str, Examination]:
    """Return the examinations of all groups of a run, with what their maps see of planted defects.

    ``powers`` has the groups that were judged. A group that few defects were planted into stops the run only if all
    groups together are blind. Where defects are missed, the contamination may be nothing or up to the breakdown point,
    and so may the impurity of the clean set.
    """
    together = add_up(powers.values())
    run_is_blind = is_blind(together.of, high=together.high)
    weighed = dict(examinations)
    for group, power in powers.items():
        seen, examination = power.seen, examinations[group]
        found = misses_defects(seen.of, seen.count, low=seen.low, high=seen.high, run_is_blind=run_is_blind)
        found = found or misses_medium(power.medium_seen.of, power.medium_seen.count)
        findings = with_finding(examination.findings, found)
        contamination, purity = examination.contamination, examination.purity
        if len(findings) > len(examination.findings) and found is not None:
            logger.warning("%s: %s", group, found.sentence, extra={"group": group})
            contamination = contamination and widen(contamination, HALF, lower=0.0)
            purity = purity and dataclasses.replace(purity, lower=min(purity.lower, 1.0 - HALF))
        weighed[group] = dataclasses.replace(
            examination, findings=findings, contamination=contamination, purity=purity, power=power
        )
    return weighed

"""The breakdown guard: say in sentences whether a group's result can be trusted, before anyone trains on it.

Every strategy supposes one product in one pose, mostly good, in enough images. If that is wrong, it still returns a
manifest, and nothing in the manifest shows it. Each condition here checks one of these suppositions against round
limits, each with a reason. A finding that stops calls the result untrustworthy; any other is a warning.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from schemas.arrays import Floats, Indices
from workers.features.arrays import ArrayRef, Segment, read_distances
from workers.guard.contamination import Contamination
from workers.guard.structure import LEADING_SHARE, Structure
from workers.verdict.calibration import gumbel_quantile
from workers.verdict.purity import Purity
from workers.verdict.smoothing import smooth

# The breakdown point: the strategies start from the better half. If half is bad, they may take the bad half for normal.
# The lower limit leaves a tenth of the images for errors in the ranking.
HALF, NEAR_HALF = 0.5, 0.4

# Images of two kinds differ more between the kinds than within them.
MOSTLY_BETWEEN = 0.5

# Each kind is tight: normal variation split at its mean reaches 2 / pi = 0.64, even drift 0.75, a ring 0.81.
TIGHT = 0.9

# A tenth of the archive in a second kind is more than a few odd frames; a fifth is too much for a rate of defects.
ODD_KIND, OTHER_KIND = 0.1, 0.2

# A twentieth of the kept images in a second kind is too much for an oversight: the map was fitted on both.
KEPT_KIND = 0.05

# Halfway between a ring, where all have one distance from the mean (0), and even drift (0.4); the normal law has 1.
RING_KURTOSIS = 0.2

# A threshold whose real false-reject rate may be a half says nothing; a rate beyond this factor is worth a warning.
RATE_FACTOR = 10.0

# Two-sided 95 % of the normal law.
NORMAL_95 = 1.96

# Of what models train on, one image in fifty may be bad before the owner must hear of it.
PURE = 0.98

# A map that misses a fifth of strong defects is worth a warning; one that misses most of them is blind.
SEES_ENOUGH = 0.8

# The recall of fewer planted defects says nothing; that of fewer than sixteen is too wide to stop a run for.
MIN_PLANTED, MIN_PLANTED_TO_STOP = 5, 16

# Some archives simply have small groups, as some have unreadable images: both have the same budget, a tenth of the
# run's images.
SMALL_GROUPS = 0.1


@dataclass(frozen=True)
class Finding:
    """One reason for doubt."""

    condition: str  # for programs: "contamination", "positions", "kinds", "poses", "images", "power" or "purity"
    sentence: str  # for people: what was seen, its value, what was expected, what to do
    stops: bool = True  # False for a warning


@dataclass(frozen=True)
class Exclusions:
    """How many images each position excludes, and all together; the counts of disjoint images add up."""

    images: int  # that took part
    by_position: Indices  # (rows, columns): images at or beyond the threshold there
    by_any: int  # images at or beyond the threshold at any position

    def __add__(self, other: "Exclusions") -> "Exclusions":
        """Return the exclusions among both sets of images."""
        return Exclusions(self.images + other.images, self.by_position + other.by_position, self.by_any + other.by_any)


def count_exclusions(distances: Floats, thresholds: Floats, *, smoothing: int) -> Exclusions:
    """Count the images that each position excludes.

    Parameters
    ----------
    distances
        (images, rows, columns) float64, of images that take part.
    thresholds
        (rows, columns) float64; infinite excludes none.
    smoothing
        Side of the square of positions that log distances are averaged over; 1 for none.
    """
    beyond = smooth(distances, smoothing) >= thresholds
    return Exclusions(len(distances), beyond.sum(axis=0, dtype=np.int64), int(beyond.any(axis=(1, 2)).sum()))


def count_segment(distances: ArrayRef, segment: Segment, thresholds: Floats, *, smoothing: int) -> Exclusions:
    """Count the images of a segment that each position excludes in the stored distances of a pass: one task."""
    return count_exclusions(read_distances(distances, segment), thresholds, smoothing=smoothing)


def impure(purity: Purity | None) -> Finding | None:
    """Find (a warning) that more than two of a hundred kept images may be anomalies."""
    if purity is None or purity.lower >= PURE:
        return None
    return Finding(
        "purity",
        f"kept images and anomalies lie close together: an estimated {purity.estimate:.1%} of the kept images are "
        f"clean, and perhaps only {purity.lower:.1%}, expected at least {PURE:.0%}. Look at the kept images with the "
        "largest margins, or reject more with a larger trim.target_false_reject.",
        stops=False,
    )


def near_half(contamination: Contamination) -> Finding | None:
    """Find that an estimated four images of ten are bad, or (a warning) that half of them may be."""
    stops = contamination.share >= NEAR_HALF
    if contamination.law is None or not (stops or contamination.upper >= HALF):
        return None
    return Finding(
        "contamination",
        f"an estimated {contamination.share:.0%} of the images (95 % interval {contamination.lower:.0%} to "
        f"{contamination.upper:.0%}) do not follow the law of the clean ones, expected below {NEAR_HALF:.0%}, its "
        f"interval below {HALF:.0%}: paire takes for normal what is common. Compare rejected images with kept ones; "
        "remove known defects from the archive, or split it with --group-by if it holds several products.",
        stops=stops,
    )


def positions_disagree(exclusions: Exclusions, *, min_clean_fraction: float) -> Finding | None:
    """Find that few images pass although no position excludes many: each position excludes different ones.

    Stops if fewer than ``min_clean_fraction`` pass all thresholds while the median position lets at least half pass:
    then the floor decides, not the thresholds. Images that many positions exclude together are contamination, which
    is another condition.
    """
    if not exclusions.images:
        return None
    passing = 1.0 - exclusions.by_any / exclusions.images
    typical = float(np.median(exclusions.by_position)) / exclusions.images
    if passing >= min_clean_fraction or typical > HALF:
        return None
    return Finding(
        "positions",
        f"the median position excludes {typical:.0%} of the images, but all positions together {1 - passing:.0%}: each "
        f"excludes different ones, and at least {min_clean_fraction:.0%} must pass everywhere. Check that all images "
        "show the same part in the same place, or use --set trim.strategy=grow, which judges an image as a whole.",
    )


def several_kinds(structure: Structure | None) -> Finding | None:
    """Find two kinds of images: both tight, far from each other, and neither rare."""
    if structure is None or structure.minority < ODD_KIND:
        return None
    if structure.between < MOSTLY_BETWEEN or structure.tightness < TIGHT:
        return None
    both_kept = structure.kept_minority >= KEPT_KIND
    return Finding(
        "kinds",
        f"the images fall into two kinds of {1 - structure.minority:.0%} and {structure.minority:.0%}, and "
        f"{structure.between:.0%} of all variance lies between them (expected below {MOSTLY_BETWEEN:.0%}); "
        + ("the clean set holds both. " if both_kept else "the clean set holds one of them. ")
        + "One Gaussian cannot describe two products, orientations, cameras or lightings. Give each its own group with "
        "--group-by, or accept this if one kind is waste.",
        stops=both_kept or structure.minority >= OTHER_KIND,
    )


def unaligned(structure: Structure | None) -> Finding | None:
    """Find that all images lie at one distance from their mean, in few directions: turned parts or several products."""
    if structure is None or structure.share < LEADING_SHARE or structure.kurtosis >= RING_KURTOSIS:
        return None
    carry = "components carry" if structure.leading > 1 else "component carries"
    return Finding(
        "poses",
        f"{structure.leading} principal {carry} {structure.share:.0%} of the variance, and all images lie at about the "
        f"same distance from the mean there (relative kurtosis {structure.kurtosis:.2f}; expected at least "
        f"{RING_KURTOSIS:.1f}, 1 is normal), as freely turned parts or several products do. Align the images "
        "before cleaning, or give each pose or product its own group with --group-by.",
    )


def false_reject_range(images: int, false_reject: float) -> float:
    """Return the factor that bounds the real false-reject rate at a threshold meant for a rate, with 95 % confidence.

    The law is fitted on n clean images; its threshold is the one that the contamination is estimated by (`grow` knows
    its own better). It is location + scale q, from the median and the lower quartile of n scores, in units of the scale
    T = (1 + w) x_(1/2) - w x_(1/4) with w = (q - q_(1/2)) / (q_(1/2) - q_(1/4)). The quantiles' covariances are
    min(p, p') (1 - max(p, p')) / (n f f'), with Gumbel's density f = -p ln p. In the tail the rate falls as exp(-T), so
    the standard error of T is that of the rate's logarithm. The number of positions does not matter: an image's score
    is one number.
    """
    median, quartile = gumbel_quantile(0.5), gumbel_quantile(0.25)
    weight = (gumbel_quantile(1.0 - false_reject) - median) / (median - quartile)
    density = [-p * math.log(p) for p in (0.5, 0.25)]
    variance = (
        (1 + weight) ** 2 * 0.25 / density[0] ** 2
        + weight**2 * 0.1875 / density[1] ** 2
        - 2 * weight * (1 + weight) * 0.125 / (density[0] * density[1])
    )
    return math.exp(NORMAL_95 * math.sqrt(variance / max(images, 1)))


def too_few(images: int, *, false_reject: float) -> Finding | None:
    """Find too few clean images: the real false-reject rate may be a half (stops), or ten times the chosen (warns)."""
    factor = false_reject_range(images, false_reject)
    stops = factor * false_reject >= HALF
    if not stops and factor <= RATE_FACTOR:
        return None
    limit = HALF / false_reject if stops else RATE_FACTOR
    needed = _images_for(limit, false_reject)
    return Finding(
        "images",
        f"with {images} clean images, a threshold meant to reject {false_reject:.0%} of good images may reject "
        f"{min(1.0, factor * false_reject):.0%} (95 % confidence); {needed} would keep that below "
        f"{limit * false_reject:.0%}. Add images, merge groups that show the same view, or keep more of them "
        "(trim.strategy=grow does).",
        stops=stops,
    )


def _images_for(factor: float, false_reject: float) -> int:
    """Return how many clean images keep the rate within a factor."""
    return math.floor((math.log(false_reject_range(1, false_reject)) / math.log(factor)) ** 2) + 1


def misses_medium(planted: int, seen: int) -> Finding | None:
    """Find (a warning) that the map of a group misses medium defects that were planted into kept images."""
    if planted < MIN_PLANTED_TO_STOP or seen >= SEES_ENOUGH * planted:
        return None
    return Finding(
        "power",
        f"of {planted} medium defects (8 or 15 % of the image's side, a fifth of its contrast) that were planted into "
        f"kept images, the published map sees {seen}, expected at least {SEES_ENOUGH:.0%}: images with such defects "
        "may be kept and then hide one another. Look at a sample of the kept images, or see more with a larger "
        "features.image_size or another features.backbone.",
        stops=False,
    )


def misses_defects(planted: int, seen: int, *, low: float, high: float, run_is_blind: bool = False) -> Finding | None:
    """Find that the map of a group misses strong defects that were planted into kept images.

    Stops if it surely misses most of them (the interval lies below a half) and at least sixteen were planted. A few
    planted defects only warn, unless all groups of the run together miss most.

    Parameters
    ----------
    planted, seen
        How many defects were planted, and how many of them the map sees.
    low, high
        The 95 % interval of the share that it sees.
    run_is_blind
        Whether `is_blind` holds for the defects of all groups together.
    """
    if planted < MIN_PLANTED:
        return None
    misses_most = high < HALF
    if not misses_most and (planted < MIN_PLANTED_TO_STOP or seen >= SEES_ENOUGH * planted):
        return None
    return Finding(
        "power",
        f"of {planted} strong defects that were planted into kept images, the published map sees {seen} (95 % interval "
        f"{low:.0%} to {high:.0%}), expected at least {SEES_ENOUGH:.0%}: images may be kept because their defects "
        "cannot be seen, not because they are clean. Try a larger features.image_size, another features.backbone or "
        "trim.strategy; give each product, pose or camera its own group with --group-by; align the images.",
        stops=misses_most and (planted >= MIN_PLANTED_TO_STOP or run_is_blind),
    )


def is_blind(planted: int, *, high: float) -> bool:
    """Tell whether at least sixteen planted defects show that most are missed: the interval ends below a half."""
    return planted >= MIN_PLANTED_TO_STOP and high < HALF


def examine(
    contamination: Contamination | None,
    exclusions: Exclusions,
    structure: Structure | None,
    *,
    kept: int,
    false_reject: float,
    min_clean_fraction: float,
    purity: Purity | None = None,
) -> tuple[Finding, ...]:
    """Return all findings on a group, those that stop first; none if the group can be trusted.

    Parameters
    ----------
    contamination
        From the scores under the fit on the final clean set; None if that is too small for an estimate.
    exclusions
        Of the deciding pass, over all images that took part.
    kept
        Size of the clean set.
    false_reject, min_clean_fraction
        The options ``trim.target_false_reject`` and ``trim.min_clean_fraction``.
    purity
        Of the clean set, if the strategy estimates it.
    """
    few = too_few(kept, false_reject=false_reject)
    if few is not None:
        # A cautious strategy keeps little of a good group. That only warns: what it keeps is good, and all can see how
        # much that is. It stops if the group itself is too small.
        group = too_few(exclusions.images, false_reject=false_reject)
        if group is not None and group.stops:
            # What positions and scores say about so few images is chance: this is one reason, not several.
            return (replace(few, stops=True),)
        few = replace(few, stops=False)
    candidates = (
        few,
        near_half(contamination) if contamination is not None else None,
        impure(purity),
        positions_disagree(exclusions, min_clean_fraction=min_clean_fraction),
        # Two even kinds also lie at one distance from their mean: report them once, under the better name.
        several_kinds(structure) or unaligned(structure),
    )
    return _stopping_first(found for found in candidates if found)


def not_judged(reason: str) -> Finding:
    """Find that a group is too small to judge; ``reason`` says how many images it has and needs, without full stop."""
    return Finding("images", f"{reason}. Add images, or merge groups that show the same view.")


def excuse_small_groups(
    findings: Mapping[str, Sequence[Finding]], images: Mapping[str, int]
) -> dict[str, tuple[Finding, ...]]:
    """Turn "too few images" into a warning if the groups that have too few hold at most a tenth of all images.

    Every other condition says that something is wrong with a group, so that its clean images cannot be used. A small
    group says nothing bad about its images. If nearly all images come from groups that are large enough, a model
    trained on the result hardly notices; if not, or if the only group is small, there is no useful result.

    Parameters
    ----------
    findings
        Group to all findings on it.
    images
        Group to the number of images that take part.
    """
    small = {
        group for group, found in findings.items() if any(one.condition == "images" and one.stops for one in found)
    }
    held, total = sum(images[group] for group in small), sum(images.values())
    is_excused = total > 0 and held <= SMALL_GROUPS * total
    return {
        group: _stopping_first(
            replace(one, stops=False) if is_excused and one.condition == "images" else one for one in found
        )
        for group, found in findings.items()
    }


def with_finding(findings: Sequence[Finding], finding: Finding | None) -> tuple[Finding, ...]:
    """Return the findings on a group and one more, unless it is None or the group is too small to be judged at all.

    What a few images say about anything else is chance: that is one reason, not several.
    """
    is_small = any(one.condition == "images" and one.stops for one in findings)
    return _stopping_first([*findings, *([finding] if finding and not is_small else [])])


def _stopping_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: not finding.stops))

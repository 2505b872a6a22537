"""The breakdown guard: whether a group's result can be trusted, said in sentences before anyone trains on it.

Every strategy supposes one product in one pose, mostly good, in enough images. Where that does not hold it still
returns a manifest, and nothing in the manifest shows it. Each condition here looks at one of these suppositions; its
limits are round numbers with a reason. A finding that stops calls the result untrustworthy; one that does not is a
warning.
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
from workers.verdict.smoothing import smooth

# The breakdown point: the strategies start from the better half, and a worse half is what they would take for normal.
# Below it a tenth of the images is left for what the ranking of that half may get wrong.
HALF, NEAR_HALF = 0.5, 0.4

# Two kinds of images differ more from each other than images of a kind do.
MOSTLY_BETWEEN = 0.5

# And are tight: normal variation split at its mean reaches 2 / pi = 0.64, even drift 0.75, a ring 0.81.
TIGHT = 0.9

# A tenth of the archive in one other kind of image is more than a few odd frames; a fifth is no rate of defects.
ODD_KIND, OTHER_KIND = 0.1, 0.2

# As many as a twentieth of the kept images in a second kind are no oversights: the map was fitted on both.
KEPT_KIND = 0.05

# Half way between one distance from the mean for all (0) and even drift (0.4), of the normal law's kurtosis (1).
RING_KURTOSIS = 0.2

# A real false-reject rate of a half is a threshold that says nothing; one beyond this factor is worth a warning.
RATE_FACTOR = 10.0

# Two-sided 95 % of the normal law.
NORMAL_95 = 1.96

# Small groups are what some archives are like and no mistake in them, as unreadable images are: they have the same
# budget, a tenth of the run's images.
SMALL_GROUPS = 0.1


@dataclass(frozen=True)
class Finding:
    """One reason for doubt.

    Attributes
    ----------
    condition
        A name for programs: ``contamination``, ``positions``, ``kinds``, ``poses`` or ``images``.
    sentence
        What was seen, its value, what was expected, what to do.
    stops
        Whether the result is untrustworthy, or this is a warning only.
    """

    condition: str
    sentence: str
    stops: bool = True


@dataclass(frozen=True)
class Exclusions:
    """How many images the positions exclude, one by one and together; those of disjoint images add up.

    Attributes
    ----------
    images
        That took part.
    by_position
        (rows, columns) int64: images at or beyond the threshold there.
    by_any
        Images at or beyond the threshold at any position.
    """

    images: int
    by_position: Indices
    by_any: int

    def __add__(self, other: "Exclusions") -> "Exclusions":
        """Return those of both sets of images together."""
        return Exclusions(self.images + other.images, self.by_position + other.by_position, self.by_any + other.by_any)


def count_exclusions(distances: Floats, thresholds: Floats, *, smoothing: int) -> Exclusions:
    """Count what each position excludes among some images.

    Parameters
    ----------
    distances
        (images, rows, columns) float64: of the images that take part.
    thresholds
        (rows, columns) float64; infinite excludes none.
    smoothing
        Side of the square of positions that log distances are averaged over; 1 for none.
    """
    beyond = smooth(distances, smoothing) >= thresholds
    return Exclusions(len(distances), beyond.sum(axis=0, dtype=np.int64), int(beyond.any(axis=(1, 2)).sum()))


def count_segment(distances: ArrayRef, segment: Segment, thresholds: Floats, *, smoothing: int) -> Exclusions:
    """Count what each position excludes among a segment's images: one task.

    Parameters
    ----------
    distances
        The stored distances of the deciding pass.
    segment
        The images, masked to those that take part.
    thresholds, smoothing
        As for `count_exclusions`.
    """
    return count_exclusions(read_distances(distances, segment), thresholds, smoothing=smoothing)


def near_half(contamination: Contamination) -> Finding | None:
    """Find that four images of ten are estimated to be bad, or (a warning) that half of them can not be ruled out."""
    stops = contamination.share >= NEAR_HALF
    if contamination.law is None or not (stops or contamination.upper >= HALF):
        return None
    return Finding(
        "contamination",
        f"an estimated {contamination.share:.0%} of the images (95 % interval {contamination.lower:.0%} to "
        f"{contamination.upper:.0%}) do not follow the law of the clean ones; expected is below {NEAR_HALF:.0%}, its "
        f"interval below {HALF:.0%}: what is common is taken as normal. Look at rejected images beside kept ones; "
        "remove known defects from the archive, or split it with --group-by if it holds several products.",
        stops=stops,
    )


def positions_disagree(exclusions: Exclusions, *, min_clean_fraction: float) -> Finding | None:
    """Find that few pass although no position excludes many: each excludes other images.

    Stops where fewer than ``min_clean_fraction`` pass all thresholds, for then these decide nothing any more (the
    floor does), while the median position lets at least half of the images pass. Images that many positions exclude
    together are contamination and not for this condition.

    Parameters
    ----------
    exclusions
        Of the deciding pass, over all images that took part.
    min_clean_fraction
        The floor's share.
    """
    if not exclusions.images:
        return None
    passing = 1.0 - exclusions.by_any / exclusions.images
    typical = float(np.median(exclusions.by_position)) / exclusions.images
    if passing >= min_clean_fraction or typical > HALF:
        return None
    return Finding(
        "positions",
        f"the median position excludes {typical:.0%} of the images, but all positions together {1 - passing:.0%}: they "
        f"do not agree on which. At least {min_clean_fraction:.0%} must pass everywhere. Check that all images show "
        "the same part in the same place, or use --set trim.strategy=grow, which judges an image as a whole.",
    )


def several_kinds(structure: Structure | None) -> Finding | None:
    """Find two kinds of images: tight, farther from each other than images of a kind, and neither a rarity."""
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
        + "Two products, orientations, cameras or lightings are no one Gaussian: give each its group with --group-by, "
        "or accept it if one kind is waste.",
        stops=both_kept or structure.minority >= OTHER_KIND,
    )


def unaligned(structure: Structure | None) -> Finding | None:
    """Find that all images lie at one distance from their mean in few directions: turned parts, or several products."""
    if structure is None or structure.share < LEADING_SHARE or structure.kurtosis >= RING_KURTOSIS:
        return None
    carry = "components carry" if structure.leading > 1 else "component carries"
    return Finding(
        "poses",
        f"{structure.leading} principal {carry} {structure.share:.0%} of the variance, and all images lie at about one "
        f"distance from the mean there (relative kurtosis {structure.kurtosis:.2f}; expected at least "
        f"{RING_KURTOSIS:.1f}, 1 is normal): parts that are turned freely, or several products. Align the images "
        "before cleaning, or give each pose or product its group with --group-by.",
    )


def false_reject_range(images: int, false_reject: float) -> float:
    """Return the factor that the real false-reject rate at a threshold stays within, with 95 % confidence.

    The threshold is that of the law which the contamination is estimated by; `grow`'s own is known better. It is
    location + scale q, from the median and the lower quartile of n scores, in units of the scale
    T = (1 + w) x_(1/2) - w x_(1/4) with w = (q - q_(1/2)) / (q_(1/2) - q_(1/4)). The quantiles' covariances are
    min(p, p') (1 - max(p, p')) / (n f f'), with Gumbel's density f = -p ln p. In the tail the rate falls as exp(-T), so
    the standard error of T is that of the rate's logarithm. The number of positions does not enter: an image's score
    is one number.

    Parameters
    ----------
    images
        n: clean images that the law was fitted on.
    false_reject
        The rate that the threshold was meant for.
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
    """Find that the threshold is known too badly: the real false-reject rate may be a half, or ten times the chosen.

    Parameters
    ----------
    images
        Clean images.
    false_reject
        The chosen rate, ``trim.target_false_reject``.
    """
    factor = false_reject_range(images, false_reject)
    stops = factor * false_reject >= HALF
    if not stops and factor <= RATE_FACTOR:
        return None
    limit = HALF / false_reject if stops else RATE_FACTOR
    needed = _images_for(limit, false_reject)
    return Finding(
        "images",
        f"{images} clean images fix a threshold so loosely that one meant to reject {false_reject:.0%} of good images "
        f"may reject {min(1.0, factor * false_reject):.0%} (95 % confidence); {needed} would keep that below "
        f"{limit * false_reject:.0%}. Add images, put groups together that show the same view, or keep more of them "
        "(trim.strategy=grow does).",
        stops=stops,
    )


def _images_for(factor: float, false_reject: float) -> int:
    """Return how many clean images keep the rate within a factor."""
    return math.floor((math.log(false_reject_range(1, false_reject)) / math.log(factor)) ** 2) + 1


def _few_images(images: int, kept: int, false_reject: float) -> Finding | None:
    """Find that too few are clean; that stops only where the group itself is too small.

    A cautious strategy keeps little of a good group. What it keeps is good, and how much there is everyone can see.
    """
    few, group = too_few(kept, false_reject=false_reject), too_few(images, false_reject=false_reject)
    return few and replace(few, stops=group is not None and group.stops)


def examine(
    contamination: Contamination | None,
    exclusions: Exclusions,
    structure: Structure | None,
    *,
    kept: int,
    false_reject: float,
    min_clean_fraction: float,
) -> tuple[Finding, ...]:
    """Return all findings on a group, those that stop first; none on a group that can be trusted.

    Parameters
    ----------
    contamination
        Of the scores under the fit on the final clean set; None where that is too small for an estimate.
    exclusions
        Of the deciding pass.
    structure
        Of a sample of images.
    kept
        Size of the clean set.
    false_reject, min_clean_fraction
        The options ``trim.target_false_reject`` and ``trim.min_clean_fraction``.
    """
    few = _few_images(exclusions.images, kept, false_reject)
    if few is not None and few.stops:
        # Of so few, what positions and scores say is chance: that is one reason, not several.
        return (few,)
    candidates = (
        few,
        near_half(contamination) if contamination is not None else None,
        positions_disagree(exclusions, min_clean_fraction=min_clean_fraction),
        # Two even kinds also lie at one distance from their mean: said once, by the better name.
        several_kinds(structure) or unaligned(structure),
    )
    return _stopping_first(found for found in candidates if found)


def not_judged(reason: str) -> Finding:
    """Find that a group is too small to be judged at all.

    Parameters
    ----------
    reason
        How many images it has and how many are needed, without a full stop.
    """
    return Finding("images", f"{reason}. Add images, or put groups together that show the same view.")


def excuse_small_groups(
    findings: Mapping[str, Sequence[Finding]], images: Mapping[str, int]
) -> dict[str, tuple[Finding, ...]]:
    """Let too few images only warn, where the groups that have too few hold at most a tenth of all images.

    Every other condition says that something is wrong with a group, and that what is kept of it can not be used. That
    a group is small says nothing bad of its images, and where nearly all that is kept comes from groups that are large
    enough, a model trained on it hardly notices. Where it does not, or the only group is small, there is no result to
    speak of.

    Parameters
    ----------
    findings
        Group to all that was found of it.
    images
        Group to how many images take part.
    """
    small = {
        group for group, found in findings.items() if any(one.condition == "images" and one.stops for one in found)
    }
    held, total = sum(images[group] for group in small), sum(images.values())
    is_excused = total > 0 and held <= SMALL_GROUPS * total
    return {
        group: _stopping_first(_excuse(one) if is_excused else one for one in found)
        for group, found in findings.items()
    }


def _excuse(finding: Finding) -> Finding:
    return replace(finding, stops=finding.stops and finding.condition != "images")


def _stopping_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: not finding.stops))

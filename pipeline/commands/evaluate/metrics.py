"""How well scores and clean sets agree with true labels and masks.

Ranking metrics come from scikit-learn. AUPRO is implemented here, because no well-kept package has it. An undefined
figure, such as an AUROC with one class only, is None and never a number.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from schemas.arrays import Floats, Mask

# Integration limit of the per-region overlap (Bergmann et al., "Uninformed Students", CVPR 2020).
AUPRO_LIMIT = 0.3

# Pixel metrics use this many quantiles of the scores as thresholds, which bounds memory for any number of pixels.
# If normal pixels spread evenly over them, the error of an AUROC is at most 1 / (2 PIXEL_THRESHOLDS).
PIXEL_THRESHOLDS = 10_000

# Pixels that touch at an edge or a corner are one region.
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Curve:
    """A curve, point by point.

    Attributes
    ----------
    x, y
        (points,) float64.
    """

    x: Floats
    y: Floats

    def thinned(self, points: int) -> "Curve":
        """Return the curve with at most ``points`` points, spread evenly along its length, both ends included."""
        if len(self.x) <= points:
            return self
        length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(self.x)) + np.abs(np.diff(self.y)))])
        chosen = np.searchsorted(length, np.linspace(0.0, length[-1], points - 1))
        chosen = np.unique([*chosen, len(length) - 1])
        return Curve(self.x[chosen], self.y[chosen])


def image_auroc(is_anomalous: Mask, scores: Floats) -> float | None:
    """Return the area under the ROC curve; None with one class only.

    Parameters
    ----------
    is_anomalous
        (images,) bool: the truth.
    scores
        (images,) float64, higher is worse; infinite ones are the worst.
    """
    return float(roc_auc_score(is_anomalous, _ranks(scores))) if _has_both(is_anomalous) else None


def average_precision(is_anomalous: Mask, scores: Floats) -> float | None:
    """Return the average precision of finding the anomalous images; None with one class only."""
    return float(average_precision_score(is_anomalous, _ranks(scores))) if _has_both(is_anomalous) else None


def roc(is_anomalous: Mask, scores: Floats) -> Curve | None:
    """Return true-positive rate over false-positive rate; None with one class only."""
    if not _has_both(is_anomalous):
        return None
    false_positive, true_positive, _ = roc_curve(is_anomalous, _ranks(scores))
    return Curve(false_positive, true_positive)


def precision_recall(is_anomalous: Mask, scores: Floats) -> Curve | None:
    """Return precision over recall, from recall 1 down to 0; None with one class only."""
    if not _has_both(is_anomalous):
        return None
    precision, recall, _ = precision_recall_curve(is_anomalous, _ranks(scores))
    return Curve(recall, precision)


@dataclass(frozen=True)
class CleanCounts:
    """A clean set counted against the truth; counts of several groups add up.

    Attributes
    ----------
    normal, anomalous
        Images by truth.
    clean_normal, clean_anomalous
        Clean images by truth.
    """

    normal: int = 0
    anomalous: int = 0
    clean_normal: int = 0
    clean_anomalous: int = 0

    @classmethod
    def of(cls, is_anomalous: Mask, is_clean: Mask) -> "CleanCounts":
        """Count images; both arrays are (images,) bool."""
        return cls(
            normal=int((~is_anomalous).sum()),
            anomalous=int(is_anomalous.sum()),
            clean_normal=int((~is_anomalous & is_clean).sum()),
            clean_anomalous=int((is_anomalous & is_clean).sum()),
        )

    def __add__(self, other: "CleanCounts") -> "CleanCounts":
        return CleanCounts(
            self.normal + other.normal,
            self.anomalous + other.anomalous,
            self.clean_normal + other.clean_normal,
            self.clean_anomalous + other.clean_anomalous,
        )

    @property
    def purity(self) -> float | None:
        """Share of normal images among the clean ones; None if no image is clean."""
        return _share(self.clean_normal, self.clean_normal + self.clean_anomalous)

    @property
    def kept_share(self) -> float | None:
        """Share of clean images among the normal ones; None if no image is normal."""
        return _share(self.clean_normal, self.normal)

    @property
    def recall(self) -> float | None:
        """Share of images that are not clean among the anomalous ones; None if no image is anomalous."""
        return _share(self.anomalous - self.clean_anomalous, self.anomalous)


@dataclass(frozen=True)
class PixelCounts:
    """Pixels at or above each threshold: all that the pixel metrics need. Counts of several images add up.

    Attributes
    ----------
    thresholds
        (thresholds,) float32, ascending.
    normal_above, anomalous_above
        (thresholds,) int64: pixels whose score is at or above each threshold.
    overlap_above
        (thresholds,) float64: sum over the anomalous regions of the share of their pixels at or above it.
    normal, anomalous, regions, images
        Total numbers of pixels, regions and images.
    """

    thresholds: NDArray[np.float32]
    normal_above: NDArray[np.int64]
    anomalous_above: NDArray[np.int64]
    overlap_above: Floats
    normal: int
    anomalous: int
    regions: int
    images: int

    @classmethod
    def empty(cls, thresholds: NDArray[np.float32]) -> "PixelCounts":
        """Return the counts before the first image."""
        nothing = np.zeros(len(thresholds), np.int64)
        return cls(thresholds, nothing, nothing, np.zeros(len(thresholds)), 0, 0, 0, 0)


def quantile_thresholds(sample: NDArray[np.floating], count: int = PIXEL_THRESHOLDS) -> NDArray[np.float32]:
    """Return distinct ascending thresholds (thresholds,) float32 at equidistant quantiles of a sample of scores.

    Quantiles, not equal steps, because distances of fitted and unfitted images differ by orders of magnitude.
    """
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return np.empty(0, np.float32)
    return np.unique(np.quantile(finite, np.linspace(0.0, 1.0, count)).astype(np.float32))


def count_pixels(scores: NDArray[np.float32], mask: Mask, thresholds: NDArray[np.float32]) -> PixelCounts:
    """Count one image's pixels.

    Parameters
    ----------
    scores
        (height, width) float32, higher is worse.
    mask
        (height, width) bool: the anomalous pixels. Pixels that touch, also diagonally, form one region.
    thresholds
        (thresholds,) float32, ascending.
    """
    regions, count = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    anomalous_above = np.zeros(len(thresholds), np.int64)
    overlap_above = np.zeros(len(thresholds))
    for number, box in enumerate(ndimage.find_objects(regions), start=1):
        values = scores[box][regions[box] == number]
        above = _count_above(values, thresholds)
        anomalous_above += above
        overlap_above += above / values.size
    anomalous = int(mask.sum())
    return PixelCounts(
        thresholds=thresholds,
        normal_above=_count_above(scores[~mask], thresholds),
        anomalous_above=anomalous_above,
        overlap_above=overlap_above,
        normal=mask.size - anomalous,
        anomalous=anomalous,
        regions=int(count),
        images=1,
    )


def merge_pixels(first: PixelCounts, second: PixelCounts) -> PixelCounts:
    """Return the counts of two sets of images together; both must have the same thresholds."""
    return PixelCounts(
        first.thresholds,
        first.normal_above + second.normal_above,
        first.anomalous_above + second.anomalous_above,
        first.overlap_above + second.overlap_above,
        first.normal + second.normal,
        first.anomalous + second.anomalous,
        first.regions + second.regions,
        first.images + second.images,
    )


def pixel_auroc(counts: PixelCounts) -> float | None:
    """Return the area under the ROC curve over all pixels; None with one class only.

    Exact if every score is a threshold; pixels between the same two thresholds count as ties.
    """
    if not (counts.normal and counts.anomalous):
        return None
    weights = [
        -np.diff(np.concatenate([[total], above, [0]]))
        for total, above in ((counts.normal, counts.normal_above), (counts.anomalous, counts.anomalous_above))
    ]
    bins = len(counts.thresholds) + 1
    truth = np.repeat([False, True], bins)
    return float(roc_auc_score(truth, np.tile(np.arange(bins), 2), sample_weight=np.concatenate(weights)))


def pro_curve(counts: PixelCounts, limit: float = AUPRO_LIMIT) -> Curve | None:
    """Return the mean per-region overlap over the false-positive rate, from 0 up to the limit.

    At each threshold: the mean, over all anomalous regions, of the share of a region's pixels at or above it, and
    the share of all normal pixels at or above it. None without normal pixels or without regions.
    """
    if not (counts.normal and counts.regions):
        return None
    rate = np.concatenate([[0.0], counts.normal_above[::-1] / counts.normal, [1.0]])
    overlap = np.concatenate([[0.0], counts.overlap_above[::-1] / counts.regions, [1.0]])
    inside = rate <= limit
    # Between two thresholds the curve is a line; the limit cuts it.
    at_limit = max(float(np.interp(limit, rate, overlap)), float(overlap[inside][-1]))
    return Curve(np.append(rate[inside], limit), np.append(overlap[inside], at_limit))


def aupro(counts: PixelCounts, limit: float = AUPRO_LIMIT) -> float | None:
    """Return the area under the per-region overlap curve up to the limit, divided by the limit (1 is perfect)."""
    curve = pro_curve(counts, limit)
    return None if curve is None else float(auc(curve.x, curve.y)) / limit


def _count_above(values: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.int64]:
    # Sorting float32 is vectorised: several times faster than placing each value among the thresholds.
    return values.size - np.searchsorted(np.sort(values), thresholds, side="left").astype(np.int64)


def _ranks(scores: Floats) -> NDArray[np.int64]:
    """Return dense ranks: ranking metrics depend only on the order, and ranks are finite."""
    return np.unique(scores, return_inverse=True)[1]


def _has_both(is_anomalous: Mask) -> bool:
    return bool(is_anomalous.any() and not is_anomalous.all())


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

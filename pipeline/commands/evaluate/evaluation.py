"""The figures of labelled images: how well a clean set and a ranking agree with the truth.

Distances of different groups come from different Gaussians and share no scale. So metrics that rank images or pixels
are computed for each group, and the overall figure is the mean over groups, as is usual over MVTec's categories. Counts
of clean images add up over groups.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.commands.evaluate.metrics import (
    CleanCounts,
    Curve,
    PixelCounts,
    aupro,
    average_precision,
    count_pixels,
    image_auroc,
    merge_pixels,
    pixel_auroc,
    precision_recall,
    pro_curve,
    quantile_thresholds,
    roc,
)
from pipeline.commands.evaluate.truth import Comparison, Coverage, normal_mask, read_mask
from schemas.arrays import Mask
from workers.map.scorer import upsample

logger = logging.getLogger("paire")

OVERALL: Final = "overall"

# A group's pixel thresholds are quantiles of at most this many distances, drawn with this seed.
MAX_SAMPLED_DISTANCES: Final = 1_000_000
SAMPLE_SEED: Final = 0

# Points of a stored curve: finer than a screen shows.
CURVE_POINTS: Final = 200

AnomalyMaps = Callable[[int], "NDArray[np.float64] | None"]


@dataclass(frozen=True)
class Figures:
    """How well a group was cleaned and is ranked; an undefined figure is None.

    Attributes
    ----------
    group
        Product group, or ``overall``.
    n_normal, n_anomalous
        Labelled images by truth; a duplicate counts with its own label, as not clean.
    n_clean, n_clean_anomalous
        Labelled images that are clean, and the anomalous ones among them.
    purity, kept_share, recall
        Share of normal images among the clean ones; of clean images among the normal ones; of images that are not
        clean among the anomalous ones.
    image_auroc, average_precision
        Of the anomaly score; a duplicate has the score of the image that it equals.
    pixel_auroc, aupro
        Of the upsampled anomaly maps against the masks; AUPRO up to a false-positive rate of 0.3.
    n_pixel_images
        Images in the pixel metrics: anomalous ones with a mask, and normal ones.
    """

    group: str
    n_normal: int
    n_anomalous: int
    n_clean: int
    n_clean_anomalous: int
    purity: float | None
    kept_share: float | None
    recall: float | None
    image_auroc: float | None
    average_precision: float | None
    pixel_auroc: float | None
    aupro: float | None
    n_pixel_images: int


@dataclass(frozen=True)
class GroupCurves:
    """A group's curves; an undefined curve is None."""

    roc: Curve | None
    precision_recall: Curve | None
    pro: Curve | None


@dataclass(frozen=True)
class Evaluation:
    """A comparison with the truth.

    Attributes
    ----------
    groups
        One for each group with a labelled image, sorted by name.
    overall
        Counts and shares over all groups together; ranking metrics as the mean over the groups that have them.
    by_iteration
        One row per group and pass whose clean set is stored: ``group, iteration, n_clean, n_clean_anomalous,
        purity, kept_share, recall``, as in `Figures`; an undefined figure is NaN.
    curves
        The curves of each group.
    coverage
        What was compared.
    """

    groups: tuple[Figures, ...]
    overall: Figures
    by_iteration: pd.DataFrame
    curves: Mapping[str, GroupCurves]
    coverage: Coverage

    def table(self) -> pd.DataFrame:
        """Return one row per group, and one for all if there are several; an undefined figure is NaN."""
        rows = [*self.groups, self.overall] if len(self.groups) != 1 else self.groups
        frame = pd.DataFrame([dataclasses.asdict(row) for row in rows])
        return frame.astype({field.name: float for field in dataclasses.fields(Figures) if "float" in str(field.type)})

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data; an undefined figure is null."""
        passes = self.by_iteration.astype(object).where(self.by_iteration.notna(), None)
        return {
            "overall": dataclasses.asdict(self.overall),
            "groups": [dataclasses.asdict(figures) for figures in self.groups],
            "by_iteration": passes.to_dict("records"),
            "coverage": dataclasses.asdict(self.coverage),
            "curves": {
                group: {
                    field.name: {"x": curve.x.tolist(), "y": curve.y.tolist()} if curve else None
                    for field in dataclasses.fields(curves)
                    for curve in [getattr(curves, field.name)]
                }
                for group, curves in self.curves.items()
            },
        }


def evaluate_comparison(
    comparison: Comparison, maps: Callable[[str], AnomalyMaps], clean_sets: Callable[[str], Mask | None]
) -> Evaluation:
    """Compute every figure, group by group, with one mask in memory at a time.

    Parameters
    ----------
    comparison
        The labelled images, with the columns that `pipeline.commands.evaluate.truth.compare` was given.
    maps
        Takes a group; returns its anomaly maps, a function of an image's ``row``. Called only with masks, and then
        twice for each image.
    clean_sets
        Takes a group; returns the clean sets (passes, images of the group) bool, or None if none are stored.
    """
    groups: list[Figures] = []
    passes: list[dict[str, Any]] = []
    curves: dict[str, GroupCurves] = {}
    total = CleanCounts()
    for name, part in comparison.images.groupby("group", sort=True):
        group = str(name)
        is_anomalous, is_clean = part["is_anomalous"].to_numpy(bool), part["is_clean"].to_numpy(bool)
        counts = CleanCounts.of(is_anomalous, is_clean)
        pixels = _count_group(part, maps(group)) if comparison.has_masks else None
        scores = part["score"].to_numpy(np.float64)
        scored = ~np.isnan(scores)
        truth, scores = is_anomalous[scored], scores[scored]
        groups.append(
            Figures(
                group=group,
                **_clean_figures(counts),
                n_normal=counts.normal,
                n_anomalous=counts.anomalous,
                image_auroc=image_auroc(truth, scores),
                average_precision=average_precision(truth, scores),
                pixel_auroc=pixel_auroc(pixels) if pixels else None,
                aupro=aupro(pixels) if pixels else None,
                n_pixel_images=pixels.images if pixels else 0,
            )
        )
        curves[group] = GroupCurves(
            roc=_thin(roc(truth, scores)),
            precision_recall=_thin(precision_recall(truth, scores)),
            pro=_thin(pro_curve(pixels) if pixels else None),
        )
        passes += _passes(group, part, clean_sets(group))
        total += counts
    overall = _overall(groups, total)
    if comparison.has_masks and groups and not overall.n_pixel_images:
        logger.warning("there are masks but no anomaly maps of their images, so there are no pixel metrics")
    return Evaluation(tuple(groups), overall, _passes_table(passes), curves, comparison.coverage)


def _clean_figures(counts: CleanCounts) -> dict[str, Any]:
    """Return the figures of a clean set that `Figures` and a row of the passes share."""
    return {
        "n_clean": counts.clean_normal + counts.clean_anomalous,
        "n_clean_anomalous": counts.clean_anomalous,
        "purity": counts.purity,
        "kept_share": counts.kept_share,
        "recall": counts.recall,
    }


def _overall(groups: Sequence[Figures], total: CleanCounts) -> Figures:
    """Return the figures of all groups together."""
    means: dict[str, Any] = {
        name: float(np.mean(known)) if (known := [v for g in groups if (v := getattr(g, name)) is not None]) else None
        for name in ("image_auroc", "average_precision", "pixel_auroc", "aupro")
    }
    return Figures(
        group=OVERALL,
        **_clean_figures(total),
        n_normal=total.normal,
        n_anomalous=total.anomalous,
        **means,
        n_pixel_images=sum(group.n_pixel_images for group in groups),
    )


def _passes(group: str, part: pd.DataFrame, clean_sets: Mask | None) -> list[dict[str, Any]]:
    """Return one row per pass of a group; clean_sets is (passes, images of the group) bool."""
    if clean_sets is None:
        return []
    rows, is_anomalous = part["row"].to_numpy(np.int64), part["is_anomalous"].to_numpy(bool)
    takes_part = ~part["is_duplicate"].to_numpy(bool)  # a duplicate has the row of the image that it equals
    return [
        {"group": group, "iteration": number, **_clean_figures(CleanCounts.of(is_anomalous, clean[rows] & takes_part))}
        for number, clean in enumerate(clean_sets, start=1)
    ]


def _passes_table(passes: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    names = ["group", "iteration", *_clean_figures(CleanCounts())]
    table = pd.DataFrame(list(passes), columns=names)
    return table.astype(
        {"iteration": "int64", "n_clean": "int64", "n_clean_anomalous": "int64"}
        | dict.fromkeys(("purity", "kept_share", "recall"), "float64")
    )


def _count_group(part: pd.DataFrame, maps: AnomalyMaps) -> PixelCounts:
    """Count the pixels of a group's images whose mask is known, in the order of their rows."""
    known = part[~part["is_anomalous"] | part["mask"].notna()].sort_values("row", kind="stable")
    rows = known["row"].astype(int).tolist()
    thresholds = quantile_thresholds(_sample_distances(rows, maps))
    counts = PixelCounts.empty(thresholds)
    for row, image in zip(rows, known.to_dict("records"), strict=True):
        anomaly_map = maps(row)
        if anomaly_map is None:
            continue
        mask = read_mask(image["mask"]) if image["is_anomalous"] else normal_mask(image)
        height, width = mask.shape
        counts = merge_pixels(counts, count_pixels(upsample(anomaly_map, width, height), mask, thresholds))
    return counts


def _sample_distances(rows: Sequence[int], maps: AnomalyMaps) -> NDArray[np.float64]:
    """Return the distances of all images, or a seeded sample of each image if they are too many.

    Bilinear upsampling interpolates between distances, so that the scores of pixels are spread like them.
    """
    rng = np.random.default_rng(SAMPLE_SEED)
    most = max(1, MAX_SAMPLED_DISTANCES // max(len(rows), 1))
    parts = [np.empty(0)]
    for row in rows:
        anomaly_map = maps(row)
        if anomaly_map is not None:
            flat = anomaly_map.ravel()
            parts.append(flat if flat.size <= most else rng.choice(flat, most, replace=False))
    return np.concatenate(parts)


def _thin(curve: Curve | None) -> Curve | None:
    return curve.thinned(CURVE_POINTS) if curve else None

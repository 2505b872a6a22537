"""The kept images that a trust test holds out: a seeded sample of each group, never too many."""

import logging
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.run_directory.finished import FinishedRun
from schemas.arrays import Mask
from schemas.errors import SourceError
from schemas.tables.manifest import ANOMALOUS, CLEAN
from workers.trust.trial import Subject, seeded_generator

logger = logging.getLogger("paire")

# At most this share of a group's kept images is held out, so that the fit without them is nearly the run's.
MAX_HELD_OUT: Final = 0.2
# The recall of fewer images than this says nothing.
MIN_IMAGES: Final = 5


@dataclass(frozen=True)
class Sample:
    """A group to test, and its images that are held out.

    Attributes
    ----------
    measured, kept
        (images,) bool: images that took part in the run; images that it kept.
    held_out
        (sample,) int64: rows of the images to plant defects into, ascending.
    representative
        (images,) int64: for each image, the row of the image that it is a near-duplicate of, or its own row.
    subjects, names
        The held-out images and their file names, in the same order.
    """

    group: str
    measured: Mask
    kept: Mask
    held_out: NDArray[np.int64]
    representative: NDArray[np.int64]
    subjects: tuple[Subject, ...]
    names: tuple[str, ...]

    def fitted(self, *, rejected_too: bool) -> Mask:
        """Return the images (images,) bool to fit on: the run's, but not held-out ones and their near-duplicates.

        Parameters
        ----------
        rejected_too
            Fit on rejected images too, as a run does that found no clear boundary.
        """
        part = self.measured if rejected_too else self.kept
        is_distinct = self.representative == np.arange(len(part))
        is_like = np.isin(self.representative, self.representative[self.held_out])
        fitted: Mask = part & is_distinct & ~is_like
        return fitted


def draw_samples(
    finished: FinishedRun, only: str | None, images: int, seed: int
) -> tuple[list[Sample], dict[str, str]]:
    """Draw each group's sample.

    Parameters
    ----------
    only
        The group to draw from; None draws from all.
    images
        Images of each group; at most a fifth of a group's kept images are drawn.
    seed
        Seed of the draw. The sample of a group does not depend on the other groups.

    Returns
    -------
    samples : list of Sample
        The groups to test.
    not_tried : dict
        The other groups, and why they are not tested.

    Raises
    ------
    SourceError
        When the run has no such group, or no group can be tested.
    """
    rows = finished.catalog.set_index("sample_id")["row"]
    manifest = finished.manifest.assign(row=lambda table: table["sample_id"].map(rows))
    known = sorted(str(name) for name in manifest["group"].unique())
    if only is not None and only not in known:
        raise SourceError(
            f"{finished.directory.url} has no group {only!r}. Its groups: {', '.join(map(repr, known[:10]))}. Name one "
            "of them, or leave out --group."
        )
    samples, not_tried = [], {}
    for group in known if only is None else [only]:
        part = manifest[(manifest["group"] == group) & manifest["row"].notna()].sort_values("row")
        kept = int((part["decision"] == CLEAN).sum())
        most = int(MAX_HELD_OUT * kept)
        if most < MIN_IMAGES:
            not_tried[group] = (
                f"{kept} images are kept, too few to hold out {MIN_IMAGES}: at most {MAX_HELD_OUT:.0%} of them may be"
            )
            continue
        samples.append(_draw(group, part, min(images, most), seed))
    for group, reason in not_tried.items():
        logger.warning("%s: not tested: %s", group, reason)
    if not samples:
        group, reason = next(iter(not_tried.items()))
        raise SourceError(
            f"no group of {finished.directory.url} can be tested; group {group!r}: {reason}. Clean more "
            "images of a group."
        )
    return samples, not_tried


def _draw(group: str, part: pd.DataFrame, count: int, seed: int) -> Sample:
    """Draw a group's sample from its candidates, in row order."""
    measured = part["decision"].isin([CLEAN, ANOMALOUS]).to_numpy()
    kept = (part["decision"] == CLEAN).to_numpy()
    held_out = np.sort(seeded_generator(seed, group).choice(np.flatnonzero(kept), count, replace=False))
    chosen, own = part.iloc[held_out], pd.Series(np.arange(len(part)), index=part["sample_id"])
    representative = part["near_duplicate_of"].map(own).fillna(pd.Series(np.arange(len(part)), index=part.index))
    subjects = zip(chosen["sample_id"], chosen["image_path"], chosen["content_sha256"], strict=True)
    return Sample(
        group,
        measured,
        kept,
        held_out,
        representative.to_numpy(np.int64),
        tuple(Subject(*subject) for subject in subjects),
        tuple(chosen["file_name"]),
    )

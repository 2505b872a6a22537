"""The power of a run: how many defects its map sees, planted into some of the images that were kept.

A run that keeps everything is over a clean archive, or blind; no other figure tells these apart. So each image of a
small fixed sample of kept ones gets a strong defect, then a medium one of the same shape in the same place, and the map
scores it as `paire score` would. A defect is seen if the map rejects the image with it and keeps the image without it.

The map was fitted on most of these images, and without a defect they score better than new ones. The defect has to
make up for that, so what is seen is rather too low than too high. How many good new images the map
rejects is another question: `paire trust` answers it with a fit of its own.

Defects are planted into the pixels that the backbone sees, which takes one small picture. `paire trust` plants at the
original size, because its faint and small ones do not survive every resizing; strong ones do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Mask
from schemas.config import Config
from schemas.errors import PaireError, StorageError
from schemas.records.image import ImageOutcome, ImageRef
from workers.features.block import read_image
from workers.features.extractor import shared_extractor
from workers.map.reader import GaussianMap
from workers.map.scorer import score_features
from workers.storage.directory import Directory
from workers.trust.planting import KINDS, Defect, Pixels, Planting, Scene, plant
from workers.trust.recall import Share
from workers.trust.trial import LeftOutError, Trials, seeded_generator

# Strong: anyone sees a spot of a twelfth of the image's side that is darker or lighter by half of the image's span.
SIZES: Final = (0.08, 0.15)
STRONG: Final = 0.5
DEFECTS: Final = tuple(Defect(kind, size, STRONG) for size, kind in product(SIZES, KINDS))

# Modest: seen at once by who looks for it.
MEDIUM: Final = 0.2

# A defect that clipping, or patches too much alike, leave fainter than this share of what it should be does not count.
LEAST_CONTRAST: Final = 0.8

# Images of one task. The number is fixed, so that no feature depends on how many workers there are.
TASK_IMAGES: Final = 8

# A size counts as seen if at least this share of its defects is.
MOSTLY: Final = 0.5

SHARE_DIGITS: Final = 4


class Plot(NamedTuple):
    """A kept image, and the defect to plant into it."""

    image: ImageRef
    content_sha256: str
    defect: Defect


@dataclass(frozen=True)
class Power:
    """What the map of a group sees of planted defects.

    ``counts`` has a tuple for each kind and size of strong defects: the kind, the size, how many were planted, how many
    were seen. ``medium`` has the last two of the medium ones.
    """

    counts: tuple[tuple[str, float, int, int], ...] = ()
    medium: tuple[int, int] = (0, 0)
    rejected: int = 0  # images that the map rejects without a defect, so that they do not count
    faint: int = 0  # images that had no room for a strong defect
    left_out: int = 0  # images that could not be read as the run had read them
    note: str = ""  # why nothing was planted, or why the first image was left out

    @classmethod
    def of(cls, plots: Sequence[Plot], trials: Trials) -> "Power":
        """Count trials of a strong and a medium defect in each image, in the order of the plots."""
        took_part = np.array([not reason for reason in trials.reasons], dtype=bool)
        is_strong, is_medium = (trials.contrast >= LEAST_CONTRAST * np.array([STRONG, MEDIUM])).T
        is_kept = trials.untouched < 1.0
        medium = trials.planted[took_part & is_medium & is_kept, 1] >= 1.0
        outcomes: dict[Defect, list[bool]] = {}
        for index in np.flatnonzero(took_part & is_strong & is_kept).tolist():
            outcomes.setdefault(plots[index].defect, []).append(bool(trials.planted[index, 0] >= 1.0))
        return cls(
            counts=tuple(
                (defect.kind, defect.size, len(outcomes[defect]), sum(outcomes[defect]))
                for defect in DEFECTS
                if defect in outcomes
            ),
            medium=(len(medium), int(medium.sum())),
            rejected=int((took_part & is_strong & ~is_kept).sum()),
            faint=int((took_part & ~is_strong).sum()),
            left_out=int((~took_part).sum()),
            note=next((f"an image of the sample {reason}" for reason in trials.reasons if reason), ""),
        )

    @property
    def seen(self) -> Share:
        """How many of the strong defects the map sees."""
        return Share.counted(sum(seen for *_, seen in self.counts), sum(planted for _, _, planted, _ in self.counts))

    @property
    def medium_seen(self) -> Share:
        """How many of the medium defects the map sees."""
        return Share.counted(self.medium[1], self.medium[0])

    @property
    def smallest_seen(self) -> float | None:
        """The smallest size of which at least half are seen; None if there is none."""
        sizes = self._by(1)
        return min((size for size, each in sizes.items() if each["seen"] >= MOSTLY * each["planted"]), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the entry ``power`` of a group in the ledger, JSON-ready."""
        seen = self.seen
        return {
            "planted": seen.of,
            "seen": seen.count,
            "low": round(seen.low, SHARE_DIGITS),
            "high": round(seen.high, SHARE_DIGITS),
            "medium": {"planted": self.medium[0], "seen": self.medium[1]},
            "by_kind": self._by(0),
            "by_size": {f"{size:g}": each for size, each in self._by(1).items()},
            "smallest_seen": self.smallest_seen,
            "rejected_untouched": self.rejected,
            "too_faint": self.faint,
            "left_out": self.left_out,
            "note": self.note,
        }

    def _by(self, place: int) -> dict[Any, dict[str, int]]:
        """Return the counts of each kind (0) or size (1)."""
        found: dict[Any, dict[str, int]] = {}
        for count in self.counts:
            each = found.setdefault(count[place], {"planted": 0, "seen": 0})
            each["planted"] += count[2]
            each["seen"] += count[3]
        return found


# A group that is too small to judge has no map.
NOT_JUDGED: Final = Power(note="the group is not judged")


def add_up(powers: Iterable[Power]) -> Share:
    """Return how many of all strong defects are seen."""
    shares = [power.seen for power in powers]
    return Share.counted(sum(share.count for share in shares), sum(share.of for share in shares))


def choose_plots(clean: Mask, outcomes: Sequence[ImageOutcome], paths: Sequence[str], count: int) -> list[Plot]:
    """Choose kept images of a group and a defect for each, by the digests of their content alone.

    Parameters
    ----------
    clean
        (images,) bool: the images that were kept.
    outcomes, paths
        Of all images, in row order.
    count
        How many images to choose, if so many were kept.
    """
    rows = sorted(np.flatnonzero(clean).tolist(), key=lambda row: outcomes[row].content_sha256)
    return [
        Plot(ImageRef(row, paths[row]), outcomes[row].content_sha256, DEFECTS[number % len(DEFECTS)])
        for number, row in enumerate(rows[:count])
    ]


def try_plots(plots: Sequence[Plot], group: str, model: Directory, config: Config, weights_digest: str) -> Trials:
    """Score some kept images of a group without a defect, with a strong and with a medium one: one task.

    Whatever is wrong with an image, or with the backbone on this machine, becomes a reason.

    Parameters
    ----------
    model
        The map of the run, complete for this group.
    weights_digest
        Of the weights that the map was fitted with.

    Raises
    ------
    GaussianMapError
        When the map is not as the run wrote it.
    """
    margin, contrast = np.full((len(plots), 3), np.nan), np.full((len(plots), 2), np.nan)
    reasons, views = [""] * len(plots), []
    for index, plot in enumerate(plots):
        try:
            view = _read_view(plot, config)
        except LeftOutError as error:
            reasons[index] = str(error)
            continue
        plantings = plant_both(view, plot.content_sha256, plot.defect)
        contrast[index] = [planting.contrast for planting in plantings]
        views += [view, *(planting.on(view) for planting in plantings)]
    took_part = np.array([not reason for reason in reasons], dtype=bool)
    try:
        features = _extract(views, config, weights_digest)
    except PaireError as error:
        reasons = [reason or f"cannot be extracted again: {error}" for reason in reasons]
    else:
        if len(features):
            scores = score_features(GaussianMap.of_group(model, group), group, features)
            margin[took_part] = scores.margin.reshape(-1, 3)
    return Trials(margin[:, 0], margin[:, 1:], contrast, tuple(reasons))


def plant_both(view: Pixels, content_sha256: str, strong: Defect) -> tuple[Planting, Planting]:
    """Plant a strong defect, and a medium one of its shape in its place, into what the backbone sees of an image."""
    scene, defects = Scene.of(view), (strong, strong._replace(contrast=MEDIUM))
    first, second = (
        plant(scene, defect, seeded_generator("power", content_sha256, defect.kind, defect.size)) for defect in defects
    )
    return first, second


def _read_view(plot: Plot, config: Config) -> Pixels:
    """Return the pixels that the backbone sees, if the image is still the one that the run read."""
    try:
        outcome, decoded = read_image(plot.image, config.input, config.features)
    except StorageError as error:
        raise LeftOutError(f"can no longer be read: {error}") from error
    if outcome.content_sha256 != plot.content_sha256 and outcome.content_sha256:
        raise LeftOutError("has changed since the run read it (content_sha256 differs)")
    if decoded is None:
        raise LeftOutError(f"can no longer be read: {outcome.reason}")
    return decoded.pixels


def _extract(views: Sequence[Pixels], config: Config, weights_digest: str) -> NDArray[Any]:
    """Return the features (views, rows, columns, channels); without views, without a backbone."""
    if not views:
        return np.empty((0, 0, 0, 0), np.float32)
    extractor, size = shared_extractor(config.features, weights_digest), config.features.batch_size
    parts = [extractor.extract(np.stack(views[start : start + size])) for start in range(0, len(views), size)]
    return np.concatenate(parts)

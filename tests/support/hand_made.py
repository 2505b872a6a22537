"""Scores, anomaly maps, labels and masks made by hand, shared by the tests of evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from schemas.tables import scores as scores_table
from tests.support.archives import png

Mask = NDArray[np.bool_]


def scored(folder: Path, names: Mapping[str, float | None], **columns: Sequence[Any]) -> pd.DataFrame:
    """Return a table of scores of images in a folder, which need not be there; None is an image without a score."""
    frame = pd.DataFrame({column.name: None for column in scores_table.COLUMNS}, index=range(len(names))).astype(object)
    frame["image_path"] = [str(folder / name) for name in names]
    frame["group"] = "all"
    frame["anomaly_score"] = list(names.values())
    frame["is_anomalous"] = [None if score is None else score >= 10 for score in names.values()]
    frame["reason"] = ["" if score is not None else "torn" for score in names.values()]
    return frame.assign(**columns)


def labelled(folder: Path, rows: Mapping[str, int], **columns: Sequence[Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"image_path": list(rows), "label_index": list(rows.values()), **columns})
    frame.to_csv(folder / "labels.csv", index=False)
    return str(folder / "labels.csv")


def no_maps(position: int) -> None:
    return None


def corner_map(*, hot: bool) -> NDArray[np.float64]:
    """Return distances (4, 4), 1 everywhere but in the first corner where it is hot."""
    distances = np.ones((4, 4))
    distances[0, 0] = 50.0 if hot else 1.0
    distances.flags.writeable = False
    return distances


def corner_mask(size: int = 16) -> Mask:
    mask = np.zeros((size, size), dtype=bool)
    mask[: size // 4, : size // 4] = True
    return mask


def write_grey(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels.astype(np.uint8)))

"""The scores of new images under a published Gaussian map, and the maps beside them.

The directory of scores holds ``scores.parquet``, written last. On request it also holds

- ``anomaly_maps/``: a Zarr v3 group with one array (images, rows, columns) float64 for each product group: the
  distances of each image, NaN if it could not be read. The map of an image is in row ``row`` of its group's array.
  The array is named as in ``features/`` of a run; its attribute ``group`` holds the full name of the group.
- ``maps/``: heat maps over the images, for people.
"""

from typing import Final

import pyarrow as pa

from schemas.tables.columns import Column

SCORES: Final = "scores.parquet"
ANOMALY_MAPS: Final = "anomaly_maps"
HEAT_MAPS: Final = "maps"

COLUMNS = (
    Column("image_path", pa.string(), "absolute path or URL of the image"),
    Column("group", pa.string(), "product group whose map gave the score"),
    Column("anomaly_score", pa.float64(), "largest distance over all positions, as in the manifest; higher is worse"),
    Column(
        "worst_row", pa.int16(), "row of the position with the largest margin (largest distance if all margins are 0)"
    ),
    Column("worst_col", pa.int16(), "column of that position"),
    Column("is_anomalous", pa.bool_(), "true if the margin is 1 or more"),
    Column("margin", pa.float64(), "largest distance / threshold over all positions"),
    Column("width", pa.int32(), "pixels, after EXIF orientation"),
    Column("height", pa.int32(), "pixels, after EXIF orientation"),
    Column("row", pa.int64(), "row of its map in the group's array of `anomaly_maps/`; null if no map is stored"),
    Column("reason", pa.string(), "why there is no score; empty if there is one"),
)

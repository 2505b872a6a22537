"""The passes of a run: how each group arrived at its clean set."""

import pyarrow as pa

from schemas.tables.columns import Column

COLUMNS = (
    Column("group", pa.string(), "product group"),
    Column("iteration", pa.int16(), "pass, from 1"),
    Column("n_fitted", pa.int64(), "images that the Gaussians of this pass were fitted on"),
    Column("n_clean", pa.int64(), "images that are clean after the pass"),
    Column("n_added", pa.int64(), "images that became clean"),
    Column("n_removed", pa.int64(), "images that are no longer clean"),
    Column("n_positions_trimmed", pa.int32(), "positions with a finite threshold"),
    Column(
        "floor_applied", pa.bool_(), "true if fewer images passed than `trim.min_clean_fraction`, so the floor decided"
    ),
    Column("seconds", pa.float64(), "wall time of the pass"),
)

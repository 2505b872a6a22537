"""The scores of new images under a published Gaussian map."""

import pyarrow as pa

from schemas.tables import Column

COLUMNS = (
    Column("image_path", pa.string(), "absolute path or URL of the image"),
    Column("group", pa.string(), "product group whose map scored it"),
    Column("anomaly_score", pa.float64(), "largest Mahalanobis distance over all positions; higher is worse"),
    Column("worst_row", pa.int16(), "row of the position with the largest margin (largest distance where all are 0)"),
    Column("worst_col", pa.int16(), "column of that position"),
    Column("is_anomalous", pa.bool_(), "the margin is 1 or more"),
    Column("margin", pa.float64(), "largest distance / threshold over all positions"),
    Column("reason", pa.string(), "why there is no score; empty when there is one"),
)

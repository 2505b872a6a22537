"""The manifest: one row per input with the decision whether it is safe to train on, and the evidence."""

from typing import Final

import pyarrow as pa

from schemas.tables.columns import Column

CLEAN: Final = "clean"
ANOMALOUS: Final = "anomalous"
DUPLICATE: Final = "duplicate"
UNREADABLE: Final = "unreadable"
SKIPPED: Final = "skipped"
DECISIONS: Final = (CLEAN, ANOMALOUS, DUPLICATE, UNREADABLE, SKIPPED)

COLUMNS = (
    Column("sample_id", pa.string(), "stable hash of `file_name`"),
    Column("image_path", pa.string(), "absolute path or URL of the input"),
    Column("file_name", pa.string(), "path relative to the source, or as written in the index"),
    Column("group", pa.string(), "product group"),
    Column("content_sha256", pa.string(), "sha256 of the file's bytes; null if they could not be read"),
    Column("bytes", pa.int64(), "size of the file"),
    Column("width", pa.int32(), "pixels, after EXIF orientation"),
    Column("height", pa.int32(), "pixels, after EXIF orientation"),
    Column("decision", pa.string(), "`clean`, `anomalous`, `duplicate`, `unreadable` or `skipped`"),
    Column("reason", pa.string(), "the decision in words"),
    Column("anomaly_score", pa.float64(), "largest distance over all positions, see `distance`; **higher is worse**"),
    Column("margin", pa.float64(), "largest distance / threshold over all positions; 1 or more is beyond a threshold"),
    Column(
        "worst_row", pa.int16(), "row of the position with the largest margin (largest distance if all margins are 0)"
    ),
    Column("worst_col", pa.int16(), "column of that position"),
    Column(
        "distance",
        pa.float64(),
        "Mahalanobis distance at that position; with strategy `grow`, times the neighbour distance there",
    ),
    Column("threshold", pa.float64(), "threshold at that position; infinite if no image was trimmed there"),
    Column("bbox_x", pa.int32(), "left edge of that patch in pixels of the original image"),
    Column("bbox_y", pa.int32(), "top edge of that patch"),
    Column("bbox_width", pa.int32(), "width of that patch"),
    Column("bbox_height", pa.int32(), "height of that patch"),
    Column("iteration", pa.int16(), "last pass that changed the verdict; 0 if the image was clean from the start"),
    Column("duplicate_of", pa.string(), "`sample_id` of the byte-identical image that was judged instead"),
    Column(
        "near_duplicate_of",
        pa.string(),
        "`sample_id` of a similar image that was fitted instead of this one; the margin is the larger of the two",
    ),
    Column("label", pa.string(), "`normal` or `abnormal`; a duplicate has the label of the image in `duplicate_of`"),
    Column("label_index", pa.int8(), "0 normal, 1 abnormal; a pseudo-label, so never use it as test truth"),
    Column("split", pa.string(), "`train` for clean images, empty for others"),
    Column("outlier_score", pa.float64(), "1 / (1 + margin), from 0 to 1; **lower is worse**, as in cleanlab"),
    Column("is_outlier_issue", pa.bool_(), "the label as a flag, as in cleanlab"),
    Column("run_id", pa.string(), "the run that made the decision"),
    Column("config_digest", pa.string(), "sha256 of the options that the result depends on"),
    Column("weights_digest", pa.string(), "sha256 of the backbone's weights"),
)

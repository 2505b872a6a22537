"""Index and labels files to which anything may have happened: every row accounted for, or an error that says why."""

from io import BytesIO
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.intake.catalog import build_catalog
from schemas.config import InputConfig
from schemas.errors import ConfigError, SourceError
from tests.fuzz.mutations import attempt, fuzzing, mutated, tried
from tests.support.archives import part_pixels, png
from workers.sources.index_file import IndexFormat, read_index
from workers.sources.labelled import read_labelled

TABLE = pd.DataFrame(
    {
        "image_path": ["a.png", "line 1/b.png", "s3://bucket/c.png", "/abs/d.png", 'Ü,\n"e".png', "a.png"],
        "group": ["one", "two", "one", "", "007", "NA"],
        "label_index": [0, 1, 0, 1, 0, 0],
        "mask_path": ["", "m.png", "", "", "", ""],
        "split": ["train", "test", "test", "test", "train", "test"],
    }
)


def _parquet(table: pd.DataFrame, compression: str = "snappy") -> bytes:
    buffer = BytesIO()
    pq.write_table(pa.Table.from_pandas(table), buffer, compression=compression)
    return buffer.getvalue()


LABELS = TABLE.iloc[:5]
CSV_FILES = [
    TABLE.to_csv(index=False).encode(),
    LABELS.to_csv(index=False).encode(),
    b"\xef\xbb\xbfimage_path,group\r\na.png,x\r\nb.png,\r\n",
    b"image_path\na.png\n",
    b"image_path,label_index\na.png,0\nb.png,1\n",
]
PARQUET_FILES = [
    _parquet(TABLE),
    _parquet(TABLE[["image_path"]], compression="none"),
    _parquet(TABLE.astype({"group": "category"}), compression="zstd"),
    _parquet(pd.DataFrame({"image_path": ["a", None, "b"], "group": [1.5, None, 2]})),
]
_EVERYTHING = IndexFormat("index", ("image_path",), ("group",), "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


def check_catalog(path: Path, content: bytes, group_by: str | None) -> None:
    path.write_bytes(content)
    inputs = InputConfig(group_by=group_by)
    catalog = attempt(lambda: build_catalog(str(path), inputs), SourceError, ConfigError)
    if catalog is None:
        return
    assert len(catalog) == len(read_index(str(path), _EVERYTHING))
    assert catalog["sample_id"].is_unique
    for _, part in catalog.groupby("group"):
        assert sorted(part["row"].dropna()) == list(range(part["row"].notna().sum()))
    assert (catalog["row"].isna() == (catalog["reason"] != "")).all()


TEMPLATES = st.sampled_from([None, "{line}/*", "**/{name}.png"])


@fuzzing(100)
@given(content=mutated(CSV_FILES), group_by=TEMPLATES)
def test_harmed_csv_indexes(folder: Path, content: bytes, group_by: str | None) -> None:
    tried["CSV indexes"] += 1
    check_catalog(folder / "index.csv", content, group_by)


@fuzzing(100)
@given(content=mutated(PARQUET_FILES), group_by=TEMPLATES)
def test_harmed_parquet_indexes(folder: Path, content: bytes, group_by: str | None) -> None:
    tried["parquet indexes"] += 1
    check_catalog(folder / "index.parquet", content, group_by)


@fuzzing(50)
@given(template=st.text(st.sampled_from("{}*/a\\[(|.é"), max_size=12) | st.text(max_size=8))
def test_path_templates(folder: Path, template: str) -> None:
    tried["path templates"] += 1
    check_catalog(folder / "template.csv", CSV_FILES[0], template)


@fuzzing(100)
@given(content=mutated(CSV_FILES))
def test_harmed_labels(folder: Path, content: bytes) -> None:
    tried["labels files"] += 1
    path = folder / "labels.csv"
    path.write_bytes(content)
    labels = attempt(lambda: read_labelled(str(path)), SourceError)
    if labels is None:
        return
    assert len(labels) == len(read_index(str(path), _EVERYTHING))
    assert labels["label_index"].isin([0, 1]).all()
    assert labels["image_path"].is_unique
    assert (labels["image_path"] != "").all()


@fuzzing(50)
@given(content=mutated([png(part_pixels(1, size=8))]))
def test_harmed_masks_that_say_the_label(folder: Path, content: bytes) -> None:
    tried["masks"] += 1
    tree = folder / "tree"
    (tree / "train").mkdir(parents=True, exist_ok=True)
    (tree / "train" / "1.png").write_bytes(b"")
    (tree / "train" / "1_GT.png").write_bytes(content)
    labels = attempt(lambda: read_labelled(str(tree)), SourceError)
    assert labels is None or len(labels) == 1

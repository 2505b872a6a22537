"""Index files: text stays text, torn rows are errors, paths are relative to the file that names them."""

import posixpath
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SourceError
from workers.sources.index_file import IndexFormat, folder_of, read_index, resolve

FORMAT = IndexFormat("list", ("path",), ("group",), "Write a column 'path'.")

# Surrogates are no text, and no CSV holds a NUL.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


def write(folder: Path, content: str | bytes, name: str = "list.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def rows(location: str) -> list[list[str]]:
    found: list[list[str]] = read_index(location, FORMAT).to_numpy().tolist()
    return found


def test_only_the_columns_that_are_asked_for_are_returned_in_order(tmp_path: Path) -> None:
    table = read_index(write(tmp_path, "extra,group,path,extra\n1,x,a.png,2\n"), FORMAT)
    assert list(table.columns) == ["path", "group"]
    assert table.to_numpy().tolist() == [["a.png", "x"]]


def test_an_optional_column_may_be_missing(tmp_path: Path) -> None:
    assert list(read_index(write(tmp_path, "path\na.png\n"), FORMAT).columns) == ["path"]


@pytest.mark.parametrize("value", ["NA", "007", "null", "1e5", "True", "nan", "-1", " spaced "])
def test_values_are_text_whatever_they_look_like(tmp_path: Path, value: str) -> None:
    assert rows(write(tmp_path, f"path,group\n{value},{value}\n")) == [[value, value]]


def test_a_parquet_file_is_read_as_it_is(tmp_path: Path) -> None:
    frame = pd.DataFrame({"group": [7, 8], "path": ["a", None]})
    frame.to_parquet(tmp_path / "list.parquet")
    table = read_index(str(tmp_path / "list.parquet"), FORMAT)
    assert table["group"].tolist() == [7, 8]
    assert table["path"].isna().tolist() == [False, True]


def test_a_byte_order_mark_line_ends_of_any_kind_and_empty_lines_are_no_content(tmp_path: Path) -> None:
    assert rows(write(tmp_path, b"\xef\xbb\xbfpath,group\r\na,x\r\n\r\nb,y\r\n")) == [["a", "x"], ["b", "y"]]


def test_fields_missing_at_the_end_of_a_row_are_empty(tmp_path: Path) -> None:
    assert rows(write(tmp_path, "path,group\na\n")) == [["a", ""]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "it is empty", id="empty"),
        pytest.param("path\na\nb,c,d\n", "line 3 has more fields than its header, 3 against 1", id="a longer row"),
        pytest.param("path\na,\n", "line 2 has more fields than its header", id="a comma at the end"),
        pytest.param('path\n"a\n', "unexpected end of data", id="an open quote"),
        pytest.param(b"path\ncaf\xe9\n", "utf-8", id="not UTF-8"),
    ],
)
def test_a_torn_table_is_an_error_of_one_line_that_says_where_and_what_to_write(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read_index(write(tmp_path, content), FORMAT)
    assert str(caught.value).startswith(f"the list '{tmp_path}/list.csv' is not a readable table")
    assert str(caught.value).endswith("Write a column 'path'.")
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has columns 'file', 'group' but no 'path'\. Write a column 'path'\."):
        read_index(write(tmp_path, "file,group\na,x\n"), FORMAT)


def test_a_column_that_is_there_twice_is_an_error_where_it_is_used(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="more than one column 'path'"):
        read_index(write(tmp_path, "path,path\na,b\n"), FORMAT)


@pytest.mark.parametrize("name", ["missing.csv", "missing.parquet", ""])
def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"the list .* cannot be read \(\w+Error\)"):
        read_index(str(tmp_path / name), FORMAT)


def test_an_index_at_a_url_is_read() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/index/list.csv", b"path\na\n")
    try:
        assert rows("memory://index/list.csv") == [["a"]]
    finally:
        fs.rm("/index", recursive=True)


@pytest.mark.parametrize(
    ("location", "folder"),
    [("/data/list.csv", "/data"), ("s3://bucket/data/list.csv", "s3://bucket/data")],
)
def test_paths_are_relative_to_the_folder_of_their_index(location: str, folder: str) -> None:
    assert folder_of(location) == folder
    assert resolve(folder, "./x/../a.png") == f"{folder}/a.png"
    assert resolve(folder, "s3://other/a.png") == "s3://other/a.png"
    assert resolve(folder, "") == ""


def test_an_absolute_path_stays_itself_and_a_relative_index_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_of("lists/list.csv") == str(tmp_path / "lists")
    assert resolve(folder_of("list.csv"), "/elsewhere/a.png") == "/elsewhere/a.png"
    assert resolve(folder_of("lists/list.csv"), "../a.png") == str(tmp_path / "a.png")


@given(path=st.from_regex(r"(\.\./|\./|[ab]/){0,4}[cd]", fullmatch=True))
@settings(max_examples=50)
def test_a_resolved_path_is_absolute_and_resolving_it_again_changes_nothing(path: str) -> None:
    resolved = resolve("/one/two", path)
    assert resolved == posixpath.normpath(f"/one/two/{path}")
    assert resolve("/one/two", resolved) == resolved


@given(values=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back_from_a_csv_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, str]]
) -> None:
    frame = pd.DataFrame(values, columns=["path", "group"], dtype="str")
    location = str(tmp_path_factory.mktemp("index") / "list.csv")
    frame.to_csv(location, index=False, quoting=1, lineterminator="\n")
    assert rows(location) == [list(pair) for pair in values]

"""The catalog: every input of a folder, an index or a URL, once, with a stable id, a group and a row."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.intake.catalog import build_catalog
from schemas.config import InputConfig, parse_config
from schemas.errors import ConfigError, PaireError, SourceError
from schemas.names import DEFAULT_GROUP, sample_id
from schemas.tables.catalog import COLUMNS, catalog_digest
from schemas.tables.columns import to_arrow
from workers.sources.roots import LINK_OUTSIDE, OUTSIDE
from workers.storage.directory import read_bytes

PNG = b"\x89PNG not really"

STRANGE_NAMES = [
    pytest.param("with space.png", id="space"),
    pytest.param(" leading and trailing .png", id="outer spaces"),
    pytest.param("größe-写真-🙂.png", id="unicode"),
    pytest.param("e\u0301 decomposed.png", id="combining accent"),
    pytest.param("\u202egnp.png", id="right-to-left mark"),
    pytest.param('it\'s "quoted".png', id="quotes"),
    pytest.param("two\nlines.png", id="newline"),
    pytest.param("carriage\rreturn\ttab.png", id="carriage return and tab"),
    pytest.param("\x1b[31mred.png", id="terminal escape"),
    pytest.param("~home.png", id="tilde"),
    pytest.param("#1.png", id="hash"),
    pytest.param("100%20.png", id="percent"),
    pytest.param("a::b.png", id="two colons"),
    pytest.param("memory::b.png", id="a chained protocol"),
    pytest.param("-rf.png", id="dash"),
    pytest.param("*?[x].png", id="wildcards"),
    pytest.param("back\\slash.png", id="backslash"),
    pytest.param("comma,semi;colon.png", id="comma"),
    pytest.param("{line}.png", id="braces"),
    pytest.param("[red]markup[-].png", id="brackets"),
]


def write(folder: Path, *names: str, content: bytes = PNG) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def catalog_of(source: Path | str, **inputs: object) -> pd.DataFrame:
    return build_catalog(str(source), InputConfig.model_validate(inputs))


def names(catalog: pd.DataFrame, *, candidates: bool = True) -> list[str]:
    """Return the file names of the candidates, or of the skipped inputs."""
    chosen: list[str] = catalog.loc[catalog["row"].notna() == candidates, "file_name"].tolist()
    return chosen


def index(folder: Path, text: str | bytes, name: str = "index.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --- folders


def test_a_folder_is_listed_recursively_and_sorted(tmp_path: Path) -> None:
    write(tmp_path, "b.png", "a.png", "deep/er/c.png", "deep/A.png")
    catalog = catalog_of(tmp_path)
    assert catalog["file_name"].tolist() == ["a.png", "b.png", "deep/A.png", "deep/er/c.png"]
    assert catalog["image_path"].tolist() == [str(tmp_path / name) for name in catalog["file_name"]]
    assert catalog["group"].tolist() == [DEFAULT_GROUP] * 4
    assert catalog["row"].tolist() == [0, 1, 2, 3]
    assert (catalog["reason"] == "").all()


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp", "PNG", "JpEg"])
def test_image_extensions_are_inputs_in_any_case(tmp_path: Path, extension: str) -> None:
    write(tmp_path, f"image.{extension}")
    assert names(catalog_of(tmp_path)) == [f"image.{extension}"]


@pytest.mark.parametrize("name", ["notes.txt", "Thumbs.db", ".DS_Store", "png", "image.png.bak", "image", ".png"])
def test_other_files_are_skipped_rows_with_a_reason(tmp_path: Path, name: str) -> None:
    write(tmp_path, "image.png", name)
    catalog = catalog_of(tmp_path)
    assert names(catalog) == ["image.png"]
    skipped = catalog[catalog["row"].isna()]
    assert skipped["file_name"].tolist() == [name]
    assert "extension" in skipped["reason"].item()


def test_the_extensions_are_an_option(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.dat")
    assert names(catalog_of(tmp_path, extensions="dat")) == ["b.dat"]
    assert names(catalog_of(tmp_path, extensions=".DAT")) == ["b.dat"]


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_strange_name_is_kept_as_it_is_and_can_be_read(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    catalog = catalog_of(tmp_path)
    assert names(catalog) == [name]
    assert read_bytes(catalog["image_path"].item()) == PNG
    table = to_arrow(catalog, COLUMNS)
    assert table.column("file_name").to_pylist() == [name]


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_strange_folder_name_is_kept_as_it_is(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, f"{name}/a.png")
    catalog = catalog_of(source, group_by="{part}/**")
    assert names(catalog) == [f"{name}/a.png"]
    assert catalog["group"].tolist() == [name]
    assert read_bytes(catalog["image_path"].item()) == PNG


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"caf\xe9.png", b"folder\x80/a.png"])
def test_a_name_that_is_not_utf_8_is_a_skipped_row(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - pathlib takes no bytes
    Path(os.fsdecode(path)).parent.mkdir(exist_ok=True)
    Path(os.fsdecode(path)).write_bytes(PNG)
    write(tmp_path, "a.png")
    catalog = catalog_of(tmp_path)
    assert names(catalog) == ["a.png"]
    skipped = catalog[catalog["row"].isna()]
    assert "UTF-8" in skipped["reason"].item()
    assert to_arrow(catalog, COLUMNS).num_rows == 2
    assert len(catalog_digest(catalog)) == 64


def test_two_names_that_are_not_utf_8_are_two_rows(tmp_path: Path) -> None:
    for name in (b"\xff.png", b"\xfe.png", rb"\xff.png"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(PNG)  # noqa: PTH118
    catalog = catalog_of(tmp_path)
    assert len(catalog) == 3
    assert catalog["sample_id"].is_unique
    assert names(catalog) == [r"\xff.png"]


@pytest.mark.parametrize("protocol", ["", "file://"])
def test_a_link_to_an_image_is_an_input_where_it_leads_to_none_outside(tmp_path: Path, protocol: str) -> None:
    write(tmp_path, "elsewhere/a.png", "source/a.png")
    (tmp_path / "source" / "inside.png").symlink_to(tmp_path / "source" / "a.png")
    (tmp_path / "source" / "outside.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    source = f"{protocol}{tmp_path / 'source'}"
    catalog = catalog_of(source)
    assert names(catalog) == ["a.png", "inside.png"]
    assert names(catalog, candidates=False) == ["outside.png"]
    assert catalog.loc[catalog["row"].isna(), "reason"].item() == LINK_OUTSIDE
    catalog = catalog_of(source, roots=[str(tmp_path / "elsewhere")])
    assert names(catalog) == ["a.png", "inside.png", "outside.png"]
    assert [read_bytes(path) for path in catalog["image_path"]] == [PNG] * 3


def test_a_broken_link_is_a_row(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert catalog_of(tmp_path)["file_name"].tolist() == ["a.png", "broken.png"]


@pytest.mark.parametrize("target", ["..", ".", "../other"])
def test_a_link_to_a_folder_ends_and_says_that_it_is_one(tmp_path: Path, target: str) -> None:
    source = write(tmp_path / "source", "a.png")
    write(tmp_path / "other", "b.png")
    (source / "linked").symlink_to(target, target_is_directory=True)
    catalog = catalog_of(source)
    assert names(catalog) == ["a.png"]
    skipped = catalog[catalog["row"].isna()]
    assert skipped["file_name"].tolist() == ["linked"]
    assert "link" in skipped["reason"].item()


def test_a_named_pipe_is_a_skipped_row_because_reading_it_would_wait_forever(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    catalog = catalog_of(tmp_path)
    assert names(catalog) == ["a.png"]
    assert names(catalog, candidates=False) == ["pipe.png"]


def test_a_source_that_is_itself_a_link_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "real", "a.png")
    (tmp_path / "source").symlink_to(tmp_path / "real")
    assert names(catalog_of(tmp_path / "source")) == ["a.png"]


@pytest.mark.parametrize("locked", ["source", "source/locked", "source/deep/locked"])
def test_a_folder_that_cannot_be_listed_is_an_error_not_a_smaller_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    write(tmp_path, "source/a.png", "source/locked/b.png", "source/deep/locked/c.png")
    scandir, refused = os.scandir, str(tmp_path / locked)

    def guarded(path: str) -> Iterator[os.DirEntry[str]]:
        # Rights do not bind a superuser, who often runs the tests.
        if os.fspath(path) == refused:
            raise PermissionError(13, "Permission denied", refused)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(SourceError, match=r"cannot be listed"):
        catalog_of(tmp_path / "source")


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no files"):
        catalog_of(tmp_path)


def test_a_folder_of_empty_folders_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with pytest.raises(SourceError, match="holds no files"):
        catalog_of(tmp_path)


def test_a_folder_without_any_image_is_an_error_that_names_the_first_file(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt")
    with pytest.raises(SourceError, match=r"none of the 2 files .*'a\.txt'.*extension"):
        catalog_of(tmp_path)


def test_a_missing_source_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"archiv.*does not exist"):
        catalog_of(tmp_path / "archiv")


def test_an_image_as_source_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    with pytest.raises(SourceError, match=r"is a file\. Give a folder"):
        catalog_of(tmp_path / "a.png")


def test_an_unknown_protocol_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="s4://bucket"):
        catalog_of("s4://bucket/archive")


def test_every_source_error_is_one_line_and_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="does not exist") as caught:
        catalog_of(tmp_path / "two\nlines")
    assert isinstance(caught.value, PaireError)
    assert "\n" not in str(caught.value)


# --- ids and rows


def test_an_id_depends_on_the_relative_name_alone(tmp_path: Path) -> None:
    first = catalog_of(write(tmp_path / "first", "line/a.png", "line/b.png"))
    moved = catalog_of(write(tmp_path / "second", "line/a.png", "line/b.png", "line/aa.png", content=b"other"))
    assert first["sample_id"].tolist() == [sample_id("line/a.png"), sample_id("line/b.png")]
    assert set(first["sample_id"]) <= set(moved["sample_id"])


def test_rows_count_the_candidates_of_each_group(tmp_path: Path) -> None:
    write(tmp_path, "x/1.png", "x/2.txt", "x/3.png", "y/1.png", "y/0.txt", "y/2.png")
    catalog = catalog_of(tmp_path, group_by="{line}/**")
    rows = {
        name: None if pd.isna(row) else int(row) for name, row in zip(catalog["file_name"], catalog["row"], strict=True)
    }
    assert rows == {"x/1.png": 0, "x/2.txt": None, "x/3.png": 1, "y/0.txt": None, "y/1.png": 0, "y/2.png": 1}


def test_the_columns_are_those_of_the_schema(tmp_path: Path) -> None:
    catalog = catalog_of(write(tmp_path, "a.png", "b.txt"))
    assert list(catalog.columns) == [column.name for column in COLUMNS]
    table = to_arrow(catalog, COLUMNS)
    assert table.schema.names == [column.name for column in COLUMNS]
    assert table.column("row").to_pylist() == [0, None]


@pytest.mark.parametrize("change", ["name", "group", "reason"])
def test_the_digest_changes_with_ids_groups_and_reasons(tmp_path: Path, change: str) -> None:
    catalog = catalog_of(write(tmp_path / "a", "x/a.png", "x/b.png"))
    other = {
        "name": catalog_of(write(tmp_path / "b", "x/a.png", "x/c.png")),
        "group": catalog_of(tmp_path / "a", group_by="{line}/*"),
        "reason": catalog_of(tmp_path / "a").assign(reason=["", "skipped"]),
    }[change]
    assert catalog_digest(other) != catalog_digest(catalog)
    assert catalog_digest(catalog) == catalog_digest(catalog_of(tmp_path / "a"))


# --- indexes


@pytest.mark.parametrize("extension", ["csv", "parquet", "CSV"])
@pytest.mark.parametrize("groups", [None, ["x", "y"]])
def test_an_index_lists_its_images(tmp_path: Path, extension: str, groups: list[str] | None) -> None:
    frame = pd.DataFrame({"image_path": ["b.png", "a.png"], "extra": [1, 2]})
    if groups:
        frame["group"] = groups
    path = tmp_path / f"index.{extension}"
    if extension == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    catalog = catalog_of(path)
    found = dict(zip(catalog["file_name"], catalog["group"], strict=True))
    assert found == ({"b.png": "x", "a.png": "y"} if groups else {"a.png": DEFAULT_GROUP, "b.png": DEFAULT_GROUP})
    assert set(catalog["image_path"]) == {str(tmp_path / "a.png"), str(tmp_path / "b.png")}


def test_paths_of_an_index_are_relative_to_it_absolute_or_urls(tmp_path: Path) -> None:
    path = index(tmp_path / "", f"image_path\nsub/a.png\n../b.png\n{tmp_path}/c.png\ns3://bucket/d.png\n")
    catalog = catalog_of(path, roots="any").set_index("file_name")
    assert catalog["row"].notna().all()
    assert catalog["image_path"].to_dict() == {
        "sub/a.png": f"{tmp_path}/sub/a.png",
        "../b.png": f"{tmp_path.parent}/b.png",
        f"{tmp_path}/c.png": f"{tmp_path}/c.png",
        "s3://bucket/d.png": "s3://bucket/d.png",
    }


def test_rows_of_an_index_that_leave_its_folder_are_skipped_unless_they_are_allowed(tmp_path: Path) -> None:
    write(tmp_path, "lists/a.png", "images/b.png", "images2/c.png")
    away = ["../images/b.png", f"{tmp_path}/images2/c.png", "https://10.0.0.1/d.png"]
    path = index(tmp_path / "lists", "\n".join(["image_path", "a.png", *away]))
    catalog = catalog_of(path)
    assert names(catalog) == ["a.png"]
    assert set(names(catalog, candidates=False)) == set(away)
    assert set(catalog["reason"]) == {"", OUTSIDE}
    catalog = catalog_of(path, roots=f"{tmp_path}/images/")
    assert names(catalog) == ["../images/b.png", "a.png"]
    assert names(catalog_of(path, roots="any")) == sorted(["a.png", *away])


def test_an_index_whose_rows_all_leave_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    path = index(tmp_path, "image_path\n/images/b.png\n")
    with pytest.raises(SourceError, match=r"none of the 1 files .* set input\.roots to a folder that holds it"):
        catalog_of(path)


def test_an_index_of_a_pipe_is_a_skipped_row(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    catalog = catalog_of(index(tmp_path, "image_path\na.png\npipe.png\n"))
    assert names(catalog, candidates=False) == ["pipe.png"]


def test_where_images_may_lie_decides_over_rows_alone(tmp_path: Path) -> None:
    # Another limit that lets the same rows in is the same run; one that does not changes the catalog's digest.
    path = index(write(tmp_path, "a.png", "../a.png"), "image_path\na.png\n../a.png\n")
    allowed = [parse_config(None, [f"input.roots={roots}"]) for roots in ("any", "/")]
    assert len({config.digest() for config in (*allowed, parse_config(None))}) == 1
    digests = [catalog_digest(build_catalog(str(path), config.input)) for config in (*allowed, parse_config(None))]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_strange_name_in_an_index_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    path = tmp_path / "index.parquet"
    pd.DataFrame({"image_path": [name]}).to_parquet(path)
    catalog = catalog_of(path)
    assert names(catalog) == [name]
    assert read_bytes(catalog["image_path"].item()) == PNG


def test_a_relative_source_means_the_same_as_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "source/a.png")
    index(tmp_path / "source", "image_path\na.png\n")
    monkeypatch.chdir(tmp_path)
    pd.testing.assert_frame_equal(catalog_of("source"), catalog_of(tmp_path / "source"))
    pd.testing.assert_frame_equal(catalog_of("source/index.csv"), catalog_of(tmp_path / "source" / "index.csv"))


def test_an_index_is_not_filtered_by_extension(tmp_path: Path) -> None:
    assert names(catalog_of(index(tmp_path, "image_path\nframe.0001\n"))) == ["frame.0001"]


@pytest.mark.parametrize("name", ["NA", "007", "null", "1e5", "True", "nan", "-1"])
def test_names_and_groups_are_text_whatever_they_look_like(tmp_path: Path, name: str) -> None:
    catalog = catalog_of(index(tmp_path, f"image_path,group\n{name},{name}\n"))
    assert catalog[["file_name", "group"]].to_numpy().tolist() == [[name, name]]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    assert names(catalog_of(index(tmp_path, b"\xef\xbb\xbfimage_path\r\na.png\r\n"))) == ["a.png"]


def test_quoted_fields_may_hold_commas_quotes_and_newlines(tmp_path: Path) -> None:
    path = index(tmp_path, 'image_path,group\n"a,""b""\nc.png","x\ny"\n')
    catalog = catalog_of(path)
    assert catalog[["file_name", "group"]].to_numpy().tolist() == [['a,"b"\nc.png', "x\ny"]]


@pytest.mark.parametrize("group", ["", None])
def test_an_empty_group_is_the_default_one(tmp_path: Path, group: str | None) -> None:
    path = tmp_path / "index.parquet"
    pd.DataFrame({"image_path": ["a.png", "b.png"], "group": [group, "x"]}).to_parquet(path)
    assert catalog_of(path).set_index("file_name")["group"].to_dict() == {"a.png": DEFAULT_GROUP, "b.png": "x"}


def test_groups_that_are_numbers_become_text(tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    pd.DataFrame({"image_path": ["a.png", "b.png"], "group": [7, 8]}).to_parquet(path)
    assert sorted(catalog_of(path)["group"]) == ["7", "8"]


def test_categories_of_a_parquet_index_are_text(tmp_path: Path) -> None:
    path = tmp_path / "index.parquet"
    pd.DataFrame({"image_path": ["a.png", "b.png"], "group": ["x", "y"]}, dtype="category").to_parquet(path)
    assert catalog_of(path)[["file_name", "group"]].to_numpy().tolist() == [["a.png", "x"], ["b.png", "y"]]


@pytest.mark.parametrize("again", ["a.png", "./a.png", "sub/../a.png"])
def test_an_image_listed_twice_is_one_candidate_and_one_skipped_row(tmp_path: Path, again: str) -> None:
    catalog = catalog_of(index(tmp_path, f"image_path\na.png\nb.png\n{again}\n{again}\n"))
    assert names(catalog) == ["a.png", "b.png"]
    skipped = catalog[catalog["row"].isna()]
    assert skipped["file_name"].tolist() == ["a.png", "a.png"]
    assert skipped["reason"].str.contains("more than once").all()
    assert catalog["sample_id"].is_unique
    assert catalog.loc[0, "sample_id"] == sample_id("a.png")


@pytest.mark.parametrize("listed", [["a.png", "a.png", "a.png#again"], ["b.png", "", "(index row 1)"]])
def test_a_made_up_name_never_displaces_a_real_one(tmp_path: Path, listed: list[str]) -> None:
    path = tmp_path / "index.parquet"
    pd.DataFrame({"image_path": listed}).to_parquet(path)
    assert set(names(catalog_of(path))) == set(listed) - {""}


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_path_is_a_skipped_row(tmp_path: Path, empty: str | None) -> None:
    path = tmp_path / "index.parquet"
    pd.DataFrame({"image_path": ["a.png", empty, empty]}).to_parquet(path)
    catalog = catalog_of(path)
    assert names(catalog) == ["a.png"]
    assert catalog.loc[catalog["row"].isna(), "reason"].tolist() == ["image_path is empty"] * 2
    assert catalog["sample_id"].is_unique


def test_a_missing_column_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'path', 'group'.*no 'image_path'"):
        catalog_of(index(tmp_path, "path,group\na.png,x\n"))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        pytest.param("", "index.csv", id="empty CSV"),
        pytest.param("image_path\na.png\nb.png,too,many\n", "index.csv", id="one row with more fields"),
        pytest.param("image_path,group\na.png,x,1\nb.png,y,2\n", "index.csv", id="every row with more fields"),
        pytest.param("image_path\na.png,\nb.png,\n", "index.csv", id="a comma at the end of every row"),
        pytest.param('image_path\n"a.png\n', "index.csv", id="an open quote"),
        pytest.param(b"image_path\ncaf\xe9.png\n", "index.csv", id="not UTF-8"),
        pytest.param("\x00\x01\x02", "index.csv", id="binary CSV"),
        pytest.param("image_path\na.png\n", "index.parquet", id="CSV called parquet"),
        pytest.param(b"", "index.parquet", id="empty parquet"),
        pytest.param(b"PAR1 torn PAR1", "index.parquet", id="torn parquet"),
    ],
)
def test_a_malformed_index_is_a_one_line_error(tmp_path: Path, content: str | bytes, name: str) -> None:
    with pytest.raises(SourceError, match=r"index\.") as caught:
        catalog_of(index(tmp_path, content, name))
    assert "\n" not in str(caught.value)


def test_an_index_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no files"):
        catalog_of(index(tmp_path, "image_path,group\n"))


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "a folder"])
def test_an_index_that_cannot_be_read_is_an_error(tmp_path: Path, make: object) -> None:
    path = tmp_path / "index.csv"
    assert callable(make)
    make(path)
    with pytest.raises(SourceError, match=r"cannot be read"):
        catalog_of(path)


# --- groups by path


@pytest.mark.parametrize(
    ("template", "groups"),
    [
        pytest.param("{line}/{camera}/**", ["l1/c1", "l1/c2", "l2/c1"], id="two levels"),
        pytest.param("{line}/**", ["l1", "l1", "l2"], id="one level"),
        pytest.param("*/{camera}/**", ["c1", "c2", "c1"], id="a level left out"),
        pytest.param("**/{part}_*.png", ["p", "p", "q"], id="a part of the name"),
        pytest.param("{line}/{camera}/{part}_*.png", ["l1/c1/p", "l1/c2/p", "l2/c1/q"], id="three parts"),
        pytest.param("l{line}/**", ["1", "1", "2"], id="literal text around"),
    ],
)
def test_the_template_names_the_group(tmp_path: Path, template: str, groups: list[str]) -> None:
    listed = ["l1/c1/p_0.png", "l1/c2/p_0.png", "l2/c1/q_0.png"]
    catalog = catalog_of(write(tmp_path, *listed), group_by=template).set_index("file_name")
    assert catalog["group"].loc[listed].tolist() == groups


def test_deeper_paths_match_the_stars_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, "l1/c1/a.png", "l1/c1/2026/11/b.png")
    assert catalog_of(tmp_path, group_by="{line}/{camera}/**")["group"].tolist() == ["l1/c1", "l1/c1"]


def test_the_catalog_is_sorted_by_group_first(tmp_path: Path) -> None:
    write(tmp_path, "a/2.png", "b/1.png", "a/1.png", "b/2.png")
    catalog = catalog_of(tmp_path, group_by="*/{number}.png")
    assert catalog["file_name"].tolist() == ["a/1.png", "b/1.png", "a/2.png", "b/2.png"]
    assert catalog["row"].tolist() == [0, 1, 0, 1]


def test_a_path_that_does_not_match_is_a_skipped_row(tmp_path: Path) -> None:
    catalog = catalog_of(write(tmp_path, "l1/c1/a.png", "stray.png"), group_by="{line}/{camera}/**")
    assert names(catalog) == ["l1/c1/a.png"]
    assert "input.group_by" in catalog.loc[catalog["row"].isna(), "reason"].item()


def test_a_template_that_nothing_matches_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none of the 1 files.*group_by"):
        catalog_of(write(tmp_path, "a.png"), group_by="{line}/{camera}/**")


def test_a_template_wins_over_the_column_of_an_index(tmp_path: Path) -> None:
    path = index(tmp_path, "image_path,group\nl1/a.png,x\nl2/b.png,x\n")
    assert catalog_of(path, group_by="{line}/*")["group"].tolist() == ["l1", "l2"]


@pytest.mark.parametrize(
    "template", ["**", "line/*", "{}", "{line}/{line}/**", "{1}/**", "{a b}/**", "{line}/{camera/**", "{line}}/**"]
)
def test_a_malformed_template_is_an_error(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError, match=r"input\.group_by"):
        catalog_of(write(tmp_path, "line/a.png", "l/c/a.png"), group_by=template)


# --- URLs


@pytest.fixture
def memory() -> Iterator[str]:
    """Return the URL of an empty folder on fsspec's file system in memory."""
    fs = fsspec.filesystem("memory")
    yield "memory://archive"
    if fs.exists("/archive"):
        fs.rm("/archive", recursive=True)


def upload(url: str, files: Sequence[str], content: bytes = PNG) -> None:
    for name in files:
        fsspec.filesystem("memory").pipe_file(f"{url.removeprefix('memory:/')}/{name}", content)


def test_a_url_is_listed_like_a_folder(memory: str) -> None:
    upload(memory, ["b/2.png", "a.png", "notes.txt"])
    catalog = catalog_of(memory)
    assert catalog["file_name"].tolist() == ["a.png", "b/2.png", "notes.txt"]
    assert names(catalog) == ["a.png", "b/2.png"]
    assert [read_bytes(path) for path in catalog["image_path"]] == [PNG] * 3


def test_an_archive_has_the_same_ids_at_a_url(memory: str, tmp_path: Path) -> None:
    upload(memory, ["b/2.png", "a.png"])
    write(tmp_path, "b/2.png", "a.png")
    assert catalog_of(memory)["sample_id"].tolist() == catalog_of(tmp_path)["sample_id"].tolist()


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_strange_name_at_a_url_can_be_read(memory: str, name: str) -> None:
    upload(memory, [name])
    catalog = catalog_of(memory)
    assert names(catalog) == [name]
    assert read_bytes(catalog["image_path"].item()) == PNG


def test_an_index_at_a_url_is_relative_to_it(memory: str) -> None:
    upload(memory, ["sub/a.png"])
    upload(memory, ["index.csv"], b"image_path\nsub/a.png\n./sub/../sub/b.png\n")
    catalog = catalog_of(f"{memory}/index.csv")
    assert names(catalog) == ["sub/a.png", "sub/b.png"]
    assert read_bytes(catalog["image_path"][0]) == PNG


@pytest.mark.parametrize("url", ["memory://nowhere", "memory://archive/missing.csv"])
def test_a_url_where_nothing_is_is_an_error(memory: str, url: str) -> None:
    with pytest.raises(SourceError, match="memory://"):
        catalog_of(url)


# --- laws


@given(
    listed=st.lists(
        st.sampled_from(["a.png", "./a.png", "b.png", "x/../b.png", "x/c.png", "", "x//c.png", "d"]), min_size=1
    ).filter(any),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_no_listed_row_is_lost_and_none_is_a_candidate_twice(
    tmp_path_factory: pytest.TempPathFactory, listed: list[str], order: object
) -> None:
    folder = tmp_path_factory.mktemp("index")
    shuffled = list(listed)
    getattr(order, "shuffle")(shuffled)  # noqa: B009 - Hypothesis types its generator as object
    catalogs = []
    for name, paths in (("one", listed), ("other", shuffled)):
        pd.DataFrame({"image_path": paths}).to_parquet(folder / f"{name}.parquet")
        catalogs.append(catalog_of(folder / f"{name}.parquet"))
    one, other = catalogs
    assert len(one) == len(other) == len(listed)
    assert one["sample_id"].is_unique
    assert names(one) == names(other) == sorted({os.path.normpath(path) for path in listed if path})

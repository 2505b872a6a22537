"""Labelled sets: what each layout says of its images, and what is refused."""

import os
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SourceError
from schemas.names import DEFAULT_GROUP
from tests.support.archives import png
from tests.support.folders import lock
from workers.sources.labelled import COLUMNS, UNNAMED_DEFECT, find_labelled, read_labelled

BLACK = png(np.zeros((4, 5), np.uint8))
WHITE_SPOT = png(np.eye(4, 5, dtype=np.uint8))  # the least value that is not zero


def write(root: Path, *names: str, content: bytes = BLACK) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def csv(folder: Path, text: str | bytes, name: str = "labels.csv") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def facts(source: Path | str, root: Path) -> dict[str, tuple[int, str, str, str]]:
    """Return label, defect, mask and split of each image, paths relative to a root."""
    table = read_labelled(str(source))
    assert tuple(table.columns) == COLUMNS
    rows = zip(*(table[name] for name in COLUMNS[:5]), strict=True)
    return {
        os.path.relpath(image, root): (label, defect, os.path.relpath(mask, root) if mask else "", split)
        for image, label, defect, mask, split in rows
    }


# --- trees


def test_an_mvtec_category_is_read_with_its_defects_and_masks(tmp_path: Path) -> None:
    write(tmp_path, "license.txt", "readme.txt", "train/good/000.png", "train/good/001.png", "test/good/000.png")
    write(tmp_path, "test/cut/000.png", "test/hole/000.png")
    write(tmp_path, "ground_truth/cut/000_mask.png", "ground_truth/hole/000_mask.png")
    assert find_labelled(str(tmp_path)).kind == "mvtec"
    assert facts(tmp_path, tmp_path) == {
        "train/good/000.png": (0, "", "", "train"),
        "train/good/001.png": (0, "", "", "train"),
        "test/good/000.png": (0, "", "", "test"),
        "test/cut/000.png": (1, "cut", "ground_truth/cut/000_mask.png", "test"),
        "test/hole/000.png": (1, "hole", "ground_truth/hole/000_mask.png", "test"),
    }


def test_a_btad_product_is_read_whatever_its_image_formats(tmp_path: Path) -> None:
    write(tmp_path, "train/ok/0000.bmp", "test/ok/0001.bmp", "test/ko/0000.bmp", "test/ko/0001.BMP")
    write(tmp_path, "ground_truth/ko/0000.png", "ground_truth/ko/0001.bmp")
    assert find_labelled(str(tmp_path)).kind == "btad"
    assert facts(tmp_path, tmp_path) == {
        "train/ok/0000.bmp": (0, "", "", "train"),
        "test/ok/0001.bmp": (0, "", "", "test"),
        "test/ko/0000.bmp": (1, "ko", "ground_truth/ko/0000.png", "test"),
        "test/ko/0001.BMP": (1, "ko", "ground_truth/ko/0001.bmp", "test"),
    }


def test_an_anomaly_without_a_mask_is_still_one(tmp_path: Path) -> None:
    write(tmp_path, "train/good/0.png", "test/cut/0.png")
    assert facts(tmp_path, tmp_path)["test/cut/0.png"] == (1, "cut", "", "test")


def test_a_mask_belongs_to_the_test_image_and_not_to_a_training_image_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, "train/good/0.png", "train/cut/0.png", "test/cut/0.png", "ground_truth/cut/0_mask.png")
    read = facts(tmp_path, tmp_path)
    assert read["train/cut/0.png"] == (1, "cut", "", "train")
    assert read["test/cut/0.png"] == (1, "cut", "ground_truth/cut/0_mask.png", "test")


def test_kolektor_masks_say_which_images_are_anomalous(tmp_path: Path) -> None:
    write(tmp_path, "train/1.png", "train/1_GT.png", "train/2.png", "test/3.png", "test/3_GT.png", "test/4.png")
    write(tmp_path, "train/2_GT.png", "test/4_GT.png", content=WHITE_SPOT)
    assert find_labelled(str(tmp_path)).kind == "ksdd2"
    assert facts(tmp_path, tmp_path) == {
        "train/1.png": (0, "", "", "train"),
        "train/2.png": (1, UNNAMED_DEFECT, "train/2_GT.png", "train"),
        "test/3.png": (0, "", "", "test"),
        "test/4.png": (1, UNNAMED_DEFECT, "test/4_GT.png", "test"),
    }


def test_the_stray_copies_in_the_published_kolektor_archive_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "train/10301.png", "train/10301_GT.png", "train/10301 (copy).png", "train/10301_GT (copy).png")
    assert list(facts(tmp_path, tmp_path)) == ["train/10301.png"]


def test_a_kolektor_image_without_a_mask_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "train/1.png", "train/1_GT.png", "test/2.png")
    with pytest.raises(SourceError, match=r"'test/2\.png' .* no mask 2_GT\.png"):
        read_labelled(str(tmp_path))


def test_a_kolektor_mask_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "train/1.png")
    write(tmp_path, "train/1_GT.png", content=BLACK[:40])
    with pytest.raises(SourceError, match=r"mask .*1_GT\.png.* cannot be read"):
        read_labelled(str(tmp_path))


def test_trees_are_one_group_and_sorted_by_path(tmp_path: Path) -> None:
    write(tmp_path, "train/good/1.png", "test/cut/0.png", "train/good/0.png")
    table = read_labelled(str(tmp_path))
    assert set(table["group"]) == {DEFAULT_GROUP}
    assert table["image_path"].is_monotonic_increasing
    assert table["label_index"].dtype == np.int64


def test_a_relative_source_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "bottle/train/good/0.png")
    monkeypatch.chdir(tmp_path)
    assert read_labelled("bottle/")["image_path"].tolist() == [str(tmp_path / "bottle/train/good/0.png")]


def test_a_tree_at_a_url_is_read_like_one_on_disk() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("train/1.png", "train/1_GT.png"):
        fs.pipe_file(f"/labelled/{name}", WHITE_SPOT)
    try:
        table = read_labelled("memory://labelled")
    finally:
        fs.rm("/labelled", recursive=True)
    assert table[["image_path", "label_index", "mask_path"]].to_numpy().tolist() == [
        ["memory://labelled/train/1.png", 1, "memory://labelled/train/1_GT.png"]
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(("a.png", "b/c.png"), r"is unknown\. Looked for train/good .*found a\.png, b\.", id="other"),
        pytest.param((), "is unknown.*found nothing", id="empty"),
        pytest.param(("bottle/train/good/0.png",), "is unknown.*found bottle.*folder of one category", id="parent"),
        pytest.param(("train/good/0.txt",), "is unknown", id="no images"),
        pytest.param(("train/good/0.png", "train/ok/0.png"), "matches mvtec and btad", id="two at once"),
    ],
)
def test_an_unknown_layout_is_an_error_that_says_what_was_looked_for(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        find_labelled(str(write(tmp_path, *names)))


@pytest.mark.parametrize("name", ["missing", "missing.csv", "labels.parquet", "nowhere://bucket"])
def test_a_source_that_is_missing_or_of_another_kind_is_an_error(tmp_path: Path, name: str) -> None:
    write(tmp_path, "labels.parquet")
    with pytest.raises(SourceError, match=name):
        find_labelled(name if "://" in name else str(tmp_path / name))


@pytest.mark.parametrize("locked", [".", "train/good", "test"])
def test_a_folder_that_may_not_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    write(tmp_path, "train/good/0.png", "test/cut/0.png")
    lock(monkeypatch, tmp_path / locked)
    with pytest.raises(SourceError, match=r"cannot be listed \(PermissionError\)"):
        find_labelled(str(tmp_path))


def test_a_linked_folder_is_an_error_and_not_a_smaller_set(tmp_path: Path) -> None:
    write(tmp_path, "set/train/good/0.png", "elsewhere/0.png")
    (tmp_path / "set" / "test").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"'test' in .* a link to a folder, which is not followed"):
        find_labelled(str(tmp_path / "set"))


def test_a_name_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "train/good/0.png")
    with open(os.path.join(os.fsencode(tmp_path), b"train/good/caf\xe9.png"), "wb"):  # noqa: PTH118, PTH123
        pass
    with pytest.raises(SourceError, match="not valid UTF-8"):
        find_labelled(str(tmp_path))


# --- labels in a CSV


def test_a_csv_needs_only_paths_and_labels(tmp_path: Path) -> None:
    source = csv(tmp_path, "image_path,label_index\nb.png,1\n./sub/../a.png,0\n")
    assert find_labelled(source).kind == "csv"
    assert facts(source, tmp_path) == {"a.png": (0, "", "", ""), "b.png": (1, UNNAMED_DEFECT, "", "")}


def test_a_csv_may_say_more(tmp_path: Path) -> None:
    source = csv(
        tmp_path / "lists",
        "group,split,image_path,label_index,mask_path,defect\n"
        "NA,train,../x/a.png,0,../x/ignored.png,ignored\n"
        "007,test,/abs/b.png,1,../x/b_mask.png,cut\n"
        ",test,s3://bucket/c.png,1,,\n",
    )
    table = read_labelled(source)
    assert table.to_numpy().tolist() == [
        ["/abs/b.png", 1, "cut", str(tmp_path / "x/b_mask.png"), "test", "007"],
        [str(tmp_path / "x/a.png"), 0, "", "", "train", "NA"],
        ["s3://bucket/c.png", 1, UNNAMED_DEFECT, "", "test", DEFAULT_GROUP],
    ]


@pytest.mark.parametrize("one", ["1", "1.0", " 1"])
def test_a_label_may_be_written_as_any_number(tmp_path: Path, one: str) -> None:
    assert facts(csv(tmp_path, f"image_path,label_index\na.png,{one}\n"), tmp_path)["a.png"][0] == 1


@pytest.mark.parametrize("label", ["", "2", "-1", "0.5", "inf", "nan", "good", "True"])
def test_anything_else_is_no_label(tmp_path: Path, label: str) -> None:
    source = csv(tmp_path, f"image_path,label_index\na.png,0\nb.png,{label}\n")
    with pytest.raises(SourceError, match=rf"row 1 .*label_index '{label}' is not a label \(1 such rows\)"):
        read_labelled(source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("path,label\na.png,0\n", "'path', 'label' but no 'image_path' and no 'label_index'", id="columns"),
        pytest.param("image_path,label_index\n,0\n", "row 0 .*image_path '' is empty", id="empty path"),
        pytest.param("image_path,label_index\na,0\n./a,1\n", "row 1 .*'./a' is listed more than once", id="twice"),
        pytest.param("image_path,label_index,split\na,0,val\n", "split 'val' is not a split", id="split"),
        pytest.param("image_path,label_index,split\na,0,train\nb,1,\n", "row 1 .*split '' is not a split", id="none"),
        pytest.param("image_path,label_index\n", "have no rows", id="no rows"),
        pytest.param("", "not a readable table", id="empty file"),
        pytest.param(b"image_path,label_index\ncaf\xe9,0\n", "not a readable table", id="not UTF-8"),
        pytest.param("image_path,label_index\na,0,1\nb,1,1\n", "more fields than its header", id="every row longer"),
        pytest.param("image_path,label_index\na,0\nb,1,1\n", "not a readable table", id="one row longer"),
        pytest.param("image_path,label_index\na\n", "label_index '' is not a label", id="one row shorter"),
        pytest.param('image_path,label_index\n"a,0\n', "not a readable table", id="an open quote"),
        pytest.param("image_path,label_index,image_path\na,0,b\n", "more than one column 'image_path'", id="twice"),
    ],
)
def test_a_malformed_csv_is_a_one_line_error(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        read_labelled(csv(tmp_path, text))
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_csv_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    source = csv(tmp_path, b"\xef\xbb\xbfimage_path,label_index\r\na.png,1\r\n")
    assert list(facts(source, tmp_path)) == ["a.png"]


def test_a_csv_at_a_url_is_relative_to_it() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/labelled/labels.csv", b"image_path,label_index\nsub/a.png,0\n")
    try:
        table = read_labelled("memory://labelled/labels.csv")
    finally:
        fs.rm("/labelled", recursive=True)
    assert table["image_path"].tolist() == ["memory://labelled/sub/a.png"]


@given(
    labels=st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([0, 1]), min_size=1),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_the_order_of_a_csv_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, labels: dict[str, int], order: object
) -> None:
    rows = list(labels.items())
    getattr(order, "shuffle")(rows)  # noqa: B009 - Hypothesis types its generator as object
    folder = tmp_path_factory.mktemp("labels")
    source = csv(folder, pd.DataFrame(rows, columns=["image_path", "label_index"]).to_csv(index=False))
    read = facts(source, folder)
    assert {name: fact[0] for name, fact in read.items()} == labels
    assert list(read) == sorted(labels)

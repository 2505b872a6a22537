"""Directories on disk and in other stores: awkward names, create-only files, Zarr groups."""

import errno
import os
import pickle
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr

from schemas.errors import StorageError
from workers.storage.directory import Directory, is_url, read_bytes, split_location

AWKWARD = [
    "plain",
    "with space",
    "Ünï图",
    "a::b",
    "~",
    "~user",
    "per%20cent",
    "hash#?query",
    "[brackets]*",
    "quote'\"",
    "new\nline",
    "-rf",
    "$HOME",
    "{braces}",
]


@pytest.fixture(params=["disk", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Directory]:
    """Yield an empty directory that is not there yet, on disk and in an object store's stand-in."""
    if request.param == "disk":
        yield Directory.at(tmp_path / "run")
        return
    memory, root = fsspec.filesystem("memory"), uuid.uuid4().hex
    yield Directory.at(f"memory://{root}/run")
    if memory.exists(root):
        memory.rm(root, recursive=True)


@pytest.fixture
def existing(directory: Directory) -> Directory:
    directory.write("something", b"")
    return directory


def test_what_was_written_is_read(directory: Directory) -> None:
    directory.write("run.json", b"{}\n")
    assert directory.read("run.json") == b"{}\n"
    assert read_bytes(f"{directory.url}/run.json") == b"{}\n"


def test_writing_replaces(directory: Directory) -> None:
    directory.write("a", b"a longer text")
    directory.write("a", b"short")
    assert directory.read("a") == b"short"


def test_writing_makes_the_folders_it_needs(directory: Directory) -> None:
    directory.write("maps/line 1/a.png", b"png")
    assert (directory / "maps" / "line 1").read("a.png") == b"png"
    assert directory.exists("maps")


def test_nothing_is_there_before_it_is_written(directory: Directory) -> None:
    assert not directory.exists()
    assert not directory.exists("run.json")
    assert directory.is_empty()
    with pytest.raises(FileNotFoundError):
        directory.read("run.json")


def test_a_directory_with_a_file_is_there_and_not_empty(existing: Directory) -> None:
    assert existing.exists()
    assert existing.exists("something")
    assert not existing.exists("something else")
    assert not existing.is_empty()


def test_creating_never_replaces(directory: Directory) -> None:
    directory.create("run.json", b"mine")
    with pytest.raises(FileExistsError):
        directory.create("run.json", b"theirs")
    assert directory.read("run.json") == b"mine"


def test_a_file_can_be_created_again_after_it_was_removed(directory: Directory) -> None:
    directory.create("run.json", b"first")
    directory.remove("run.json")
    directory.create("run.json", b"second")
    assert directory.read("run.json") == b"second"


def test_removing_takes_a_tree_and_nothing_beside_it(existing: Directory) -> None:
    existing.write("features/a/0", b"0")
    existing.write("features2", b"2")
    existing.remove("features")
    assert not existing.exists("features")
    assert not existing.exists("features/a/0")
    assert existing.read("features2") == b"2"


def test_removing_what_is_not_there_is_not_an_error(existing: Directory) -> None:
    existing.remove("nothing")
    assert existing.exists("something")


def test_zarr_groups_hold_arrays(directory: Directory) -> None:
    values = np.arange(6.0).reshape(2, 3)
    group = directory.zarr_group("features", "a")
    group.create_array("bottle", data=values, chunks=(1, 3))
    group.attrs["form"] = "dual"
    read = directory.zarr_group("features")
    array = read["bottle"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(np.asarray(array[:]), values)
    assert read.attrs["form"] == "dual"
    assert read.metadata.zarr_format == 3


def test_a_zarr_group_without_a_name_is_the_directory_itself(directory: Directory) -> None:
    directory.zarr_group("", "w").create_group("inner")
    assert (directory / "inner").zarr_group("").attrs.asdict() == {}
    assert [name for name, _ in directory.zarr_group("").groups()] == ["inner"]


def test_mode_w_empties_a_zarr_group_and_mode_a_keeps_it(directory: Directory) -> None:
    directory.zarr_group("g", "a").create_group("kept")
    assert "kept" in directory.zarr_group("g", "a")
    assert "kept" not in directory.zarr_group("g", "w")


def test_a_zarr_group_opened_for_reading_cannot_be_changed(directory: Directory) -> None:
    directory.zarr_group("g", "w")
    with pytest.raises(ValueError, match="read-only"):
        directory.zarr_group("g", "r").create_group("new")


def test_a_zarr_group_that_is_not_there_cannot_be_changed(existing: Directory) -> None:
    with pytest.raises(FileNotFoundError):
        existing.zarr_group("missing", "r+")


def test_reading_a_zarr_group_that_is_not_there_is_an_error_and_creates_nothing(existing: Directory) -> None:
    with pytest.raises(FileNotFoundError):
        existing.zarr_group("missing")
    assert not existing.exists("missing")


def test_a_directory_pickles_as_its_url(existing: Directory) -> None:
    copy = pickle.loads(pickle.dumps(existing))
    assert copy == existing
    assert copy.read("something") == b""


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_are_names_of_files_on_disk(tmp_path: Path, name: str) -> None:
    directory = Directory.at(tmp_path)
    directory.create(name, b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert directory.read(name) == read_bytes(str(tmp_path / name)) == b"1"
    directory.remove(name)
    assert directory.is_empty()


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_are_names_of_directories_on_disk(tmp_path: Path, name: str) -> None:
    directory = Directory.at(tmp_path / name)
    directory.write("file", b"1")
    directory.zarr_group("group", "w").create_array("a", data=np.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert np.asarray(directory.zarr_group("group")["a"]).tolist() == [1, 1]
    directory.remove("group")
    assert [path.name for path in (tmp_path / name).iterdir()] == ["file"]


def test_a_local_path_becomes_absolute_and_is_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert Directory.at("link/../link/run").url == str(tmp_path / "link" / "run")
    assert Directory.at(Path("run")) == Directory.at("./run/") == Directory.at(tmp_path / "run")


def test_a_url_loses_its_trailing_slash_only() -> None:
    assert Directory.at("s3://bucket/runs/a/").url == "s3://bucket/runs/a"


def test_joining_goes_one_level_down(tmp_path: Path) -> None:
    assert (Directory.at(tmp_path) / "a" / "b").url == f"{tmp_path}/a/b"


@pytest.mark.parametrize(
    ("location", "expected"),
    [("s3://bucket/a", True), ("memory://a", True), ("a/b", False), ("/a::b", False), ("c:\\a", False), ("", False)],
)
def test_a_url_names_a_protocol(location: str, expected: bool) -> None:
    assert is_url(location) is expected


def test_an_unknown_protocol_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nosuchprotocol"):
        split_location("nosuchprotocol://bucket/a")


@pytest.fixture
def uninstalled() -> str:
    """Return a protocol that fsspec knows and whose package is not installed."""
    fsspec.register_implementation("uninstalled", "no_such_package.FS", clobber=True, errtxt="Install no_such_package")
    return "uninstalled"


def test_a_protocol_whose_package_is_missing_is_a_value_error_that_names_it(uninstalled: str) -> None:
    with pytest.raises(ValueError, match="Install no_such_package"):
        read_bytes(f"{uninstalled}://bucket/a")
    with pytest.raises(ValueError, match="Install no_such_package"):
        Directory.at(f"{uninstalled}://bucket").zarr_group("model")


def test_what_cannot_be_written_is_named_with_the_reason_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory.at(tmp_path)
    array: Any = directory.zarr_group("a", "w").create_array("values", shape=(4,), chunks=(2,), dtype="float32")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("workers.storage.local_files.Path.write_bytes", full)
    monkeypatch.setattr("zarr.storage.LocalStore.set", full)
    attempts: list[tuple[str, Callable[[], object]]] = [
        ("name", lambda: directory.write("name", b"x")),
        ("name", lambda: directory.create("name", b"x")),
        (r"a/values/c/\d", lambda: array.__setitem__(slice(None), 1.0)),
    ]
    for name, attempt in attempts:
        with pytest.raises(StorageError, match=f"^{tmp_path}/{name} cannot be written: No space left on device"):
            attempt()
    assert not directory.exists("name")

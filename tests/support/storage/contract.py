"""What every storage must do, as one class of tests: each backend inherits it and names its directory."""

import pickle
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import zarr

from tests.support.storage.names import AWKWARD
from workers.sources.listing import list_files
from workers.storage.directory import Directory, read_bytes

# Beyond what an object store takes or gives in one piece.
LARGE = 40 * 2**20


class StorageContract:
    """Inherited by a test class for each backend, which has a fixture ``directory``: empty, and not there yet."""

    def test_what_was_written_is_read(self, directory: Directory) -> None:
        directory.write("run.json", b"{}\n")
        assert directory.read("run.json") == b"{}\n"
        assert read_bytes(f"{directory.url}/run.json") == b"{}\n"

    def test_writing_replaces(self, directory: Directory) -> None:
        directory.write("a", b"a longer text")
        directory.write("a", b"short")
        assert directory.read("a") == b"short"

    def test_files_may_be_empty(self, directory: Directory) -> None:
        directory.write("_SUCCESS", b"")
        directory.create("scratch/_UNDER_WAY", b"")
        assert directory.read("_SUCCESS") == directory.read("scratch/_UNDER_WAY") == b""
        assert directory.exists("_SUCCESS")

    def test_nothing_is_there_before_it_is_written(self, directory: Directory) -> None:
        assert not directory.exists()
        assert not directory.exists("run.json")
        assert directory.is_empty()

    @pytest.mark.parametrize("name", ["missing", "missing/deeper"])
    def test_reading_what_is_missing_is_an_error_that_says_so(self, directory: Directory, name: str) -> None:
        directory.write("something", b"1")
        with pytest.raises(FileNotFoundError):
            directory.read(name)
        with pytest.raises(FileNotFoundError):
            read_bytes(f"{directory.url}/{name}")

    def test_what_is_written_is_there_at_once(self, directory: Directory) -> None:
        assert not directory.exists("a")
        assert directory.is_empty()
        directory.write("a", b"1")
        assert directory.exists("a")
        assert directory.exists()
        assert not directory.is_empty()
        directory.remove("a")
        assert not directory.exists("a")

    def test_a_name_is_not_there_because_another_begins_with_it(self, directory: Directory) -> None:
        directory.write("features2/a", b"1")
        assert not directory.exists("features")

    def test_creating_never_replaces(self, directory: Directory) -> None:
        directory.create("run.json", b"mine")
        for content in (b"theirs", b"mine"):
            with pytest.raises(FileExistsError):
                directory.create("run.json", content)
        assert directory.read("run.json") == b"mine"

    def test_a_file_can_be_created_again_after_it_was_removed(self, directory: Directory) -> None:
        directory.create("run.json", b"first")
        directory.remove("run.json")
        directory.create("run.json", b"second")
        assert directory.read("run.json") == b"second"

    def test_removing_takes_a_tree_and_nothing_beside_it(self, directory: Directory) -> None:
        for name in ("features/a/0", "features/b", "features2", "other"):
            directory.write(name, name.encode())
        directory.remove("features")
        assert not directory.exists("features")
        assert [file.name for file in list_files(directory.url)] == ["features2", "other"]

    def test_removing_what_is_not_there_is_not_an_error(self, directory: Directory) -> None:
        directory.write("something", b"1")
        directory.remove("nothing")
        assert directory.exists("something")

    def test_listing_sees_what_was_written_and_not_what_was_removed(self, directory: Directory) -> None:
        for name in ("b", "sub/deep/a", "B", "sub/z"):
            directory.write(name, name.encode())
        listed = list_files(directory.url)
        assert [file.name for file in listed] == ["B", "b", "sub/deep/a", "sub/z"]
        assert [read_bytes(file.location) for file in listed] == [b"B", b"b", b"sub/deep/a", b"sub/z"]
        directory.remove("sub")
        directory.write("c", b"")
        assert [file.name for file in list_files(directory.url)] == ["B", "b", "c"]

    @pytest.mark.parametrize("name", AWKWARD)
    def test_names_are_names_and_no_patterns(self, directory: Directory, name: str) -> None:
        directory.write("a", b"beside")
        directory.create(name, b"1")
        directory.write(f"folder {name}/file", b"2")
        assert directory.read(name) == read_bytes(f"{directory.url}/{name}") == b"1"
        assert {file.name for file in list_files(directory.url)} == {"a", name, f"folder {name}/file"}
        directory.remove(name)
        directory.remove(f"folder {name}")
        assert {file.name for file in list_files(directory.url)} == {"a"}

    @pytest.mark.parametrize("name", ["a::b", "[a]", "per%20cent", "what?", "Ünï 图#+"])
    def test_zarr_groups_may_have_any_name(self, directory: Directory, name: str) -> None:
        (directory / name).zarr_group("group", "w").create_array("a", data=np.arange(3))
        assert np.asarray((directory / name).zarr_group("group")["a"]).tolist() == [0, 1, 2]
        (directory / name).zarr_group("group", "w")
        assert list((directory / name).zarr_group("group").array_keys()) == []

    def test_large_files_are_whole(self, directory: Directory) -> None:
        content = np.random.default_rng(0).bytes(LARGE)
        directory.write("large", content)
        assert directory.read("large") == content
        directory.write("large", content[: LARGE // 2])
        assert directory.read("large") == content[: LARGE // 2]

    def test_zarr_arrays_are_read_as_they_were_written(self, directory: Directory) -> None:
        values = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float16)
        group = directory.zarr_group("features", "w")
        group.create_array("bottle", data=values, chunks=(2, 5, 3))
        group.attrs["form"] = "dual"
        array = directory.zarr_group("features", "r+")["bottle"]
        assert isinstance(array, zarr.Array)
        array[2:4] = values[2:4] + 1
        values[2:4] += 1
        read = directory.zarr_group("features")
        np.testing.assert_array_equal(np.asarray(read["bottle"]), values)
        assert read.attrs["form"] == "dual"
        with pytest.raises(ValueError, match="read-only"):
            read.create_group("new")

    def test_mode_w_empties_a_zarr_group_and_mode_a_keeps_it(self, directory: Directory) -> None:
        directory.zarr_group("g", "a").create_group("kept")
        assert "kept" in directory.zarr_group("g", "a")
        assert "kept" not in directory.zarr_group("g", "w")

    def test_a_zarr_group_that_is_not_there_is_an_error_and_is_not_created(self, directory: Directory) -> None:
        directory.write("something", b"1")
        with pytest.raises(FileNotFoundError):
            directory.zarr_group("missing")
        assert not directory.exists("missing")
        with pytest.raises(FileNotFoundError):
            directory.zarr_group("missing", "r+")

    def test_tables_are_read_as_they_were_written(self, directory: Directory) -> None:
        table = pd.DataFrame({"file_name": ["ü 1.png", "a#b"], "margin": [0.5, np.inf], "row": [1, 2]})
        buffer = BytesIO()
        table.to_parquet(buffer)
        directory.write("manifest.parquet", buffer.getvalue())
        pd.testing.assert_frame_equal(pd.read_parquet(BytesIO(directory.read("manifest.parquet"))), table)

    def test_a_directory_pickles_as_a_recipe(self, directory: Directory) -> None:
        directory.write("something", b"1")
        copy = pickle.loads(pickle.dumps(directory))
        assert copy == directory
        assert copy.read("something") == b"1"

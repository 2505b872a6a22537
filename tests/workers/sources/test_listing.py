"""Listing folders: everything once, what is no file with a reason, and nothing at all where a part cannot be seen."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import PaireError, SourceError
from tests.support.folders import lock
from workers.sources.listing import list_files, list_sound_files
from workers.storage.directory import read_bytes


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def faults(folder: Path) -> dict[str, str]:
    return {file.name: file.fault for file in list_files(str(folder))}


@pytest.fixture
def memory() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    for name in ("b.png", "sub/a.png"):
        fs.pipe_file(f"/listing/{name}", f"content of {name}".encode())
    yield "memory://listing"
    fs.rm("/listing", recursive=True)


def test_files_are_listed_recursively_and_sorted_with_where_they_are(tmp_path: Path) -> None:
    write(tmp_path, "b.png", "sub/deep/a.png", "sub/z", "B.png")
    listed = list_files(str(tmp_path))
    assert [file.name for file in listed] == ["B.png", "b.png", "sub/deep/a.png", "sub/z"]
    assert [file.location for file in listed] == [str(tmp_path / file.name) for file in listed]
    assert all(file.fault == "" for file in listed)


def test_a_url_is_listed_like_a_folder(memory: str) -> None:
    listed = list_files(memory)
    assert [(file.name, file.fault) for file in listed] == [("b.png", ""), ("sub/a.png", "")]
    assert [read_bytes(file.location) for file in listed] == [b"content of b.png", b"content of sub/a.png"]


def test_a_relative_folder_gives_absolute_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "archive/a.png")
    monkeypatch.chdir(tmp_path)
    assert list_files("archive/") == [("a.png", str(tmp_path / "archive/a.png"), "", False)]


def test_what_is_no_file_has_a_reason_and_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "elsewhere/b.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = faults(tmp_path)
    assert {name for name, fault in found.items() if not fault} == {
        "a.png",
        "elsewhere/b.png",
        "link.png",
        "broken.png",
    }
    assert "link to a folder" in found["loop"]
    assert "pipe" in found["pipe.png"]
    assert len(found) == 6


def test_a_name_that_is_not_text_is_listed_escaped_with_a_reason(tmp_path: Path) -> None:
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"))).write_bytes(b"")  # noqa: PTH118
    (file,) = list_files(str(tmp_path))
    assert (file.name, file.location) == ("caf\\xe9.png", f"{tmp_path}/caf\\xe9.png")
    assert "not valid UTF-8" in file.fault


@pytest.mark.parametrize("locked", [".", "sub", "sub/deep"])
def test_a_folder_that_cannot_be_listed_is_an_error_and_not_a_shorter_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    write(tmp_path, "a.png", "sub/b.png", "sub/deep/c.png")
    lock(monkeypatch, tmp_path / locked)
    for read in (list_files, list_sound_files):
        with pytest.raises(SourceError, match=r"cannot be listed \(PermissionError\)") as caught:
            read(str(tmp_path))
        assert repr(str(tmp_path / locked)) in str(caught.value)


def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere' cannot be listed \(FileNotFoundError\)"):
        list_files(str(tmp_path / "nowhere"))


def test_a_store_that_refuses_is_an_error_of_ours(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.find", refuse)
    with pytest.raises(SourceError, match=r"memory:///?listing' cannot be listed \(PermissionError\)"):
        list_files(memory)


def test_an_unknown_protocol_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        list_files("nowhere://bucket")


@pytest.mark.parametrize("spoiler", ["link", "pipe", "name"])
def test_a_list_of_sound_files_is_refused_where_something_is_none(tmp_path: Path, spoiler: str) -> None:
    write(tmp_path, "a.png")
    assert [file.name for file in list_sound_files(str(tmp_path))] == ["a.png"]
    if spoiler == "link":
        (tmp_path / "link").symlink_to(tmp_path)
    elif spoiler == "pipe":
        os.mkfifo(tmp_path / "pipe")
    else:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"name\xff"))).write_bytes(b"")  # noqa: PTH118
    with pytest.raises(SourceError, match=rf"'{spoiler}.*' in .* cannot be used") as caught:
        list_sound_files(str(tmp_path))
    assert isinstance(caught.value, PaireError)


@given(names=st.sets(st.from_regex(r"[a-c]{1,2}(/[d-f]{1,2}){0,2}\.png", fullmatch=True), max_size=8))
@settings(max_examples=25, deadline=None)
def test_what_was_written_is_what_is_listed(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    folder = write(tmp_path_factory.mktemp("listing"), *names)
    listed = [file.name for file in list_files(str(folder))]
    assert set(listed) == names
    assert listed == sorted(names)
    assert all(PurePosixPath(name).suffix == ".png" for name in listed)

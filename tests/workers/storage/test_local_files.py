"""Files that are there whole or not at all."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workers.storage.local_files import create_file, replace_file

# Writes a file over and over until it is killed.
WRITE_FOREVER = """
import itertools, sys
from workers.storage.local_files import replace_file
for number in itertools.count():
    replace_file(sys.argv[1], bytes([number % 251]) * 1_000_000)
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
        )
        assert process.stdout
        with process, process.stdout:
            process.stdout.readline()
            process.kill()
        content = path.read_bytes()
        assert len(content) == 1_000_000
        assert len(set(content)) == 1


def test_of_many_creators_one_succeeds_and_its_content_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def create(number: int) -> int | None:
        try:
            create_file(str(path), bytes([number]) * 10_000)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        created = [number for number in pool.map(create, range(32)) if number is not None]
    assert len(created) == 1
    assert path.read_bytes() == bytes(created) * 10_000
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    replace_file(str(path), b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_hard_links_creating_never_replaces_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    create_file(str(tmp_path / "file"), b"mine")
    with pytest.raises(FileExistsError):
        create_file(str(tmp_path / "file"), b"theirs")
    assert (tmp_path / "file").read_bytes() == b"mine"

"""A disk that is full or read-only: one line, exit code 2, nothing published, and the same command goes on."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import EXIT_USAGE
from schemas.records.run import RUN_RECORD, SUCCESS
from tests.support.archives import write_parts
from tests.support.commands import Here, paire
from tests.support.torture import make_archive, published, write_config
from workers.storage.directory import Directory

DISK_BYTES = 32 * 2**20

# Shares of the space that a whole run takes: it fails while it extracts, then while it writes the map, then succeeds.
SPACES = (0.05, 0.4, 2.0)


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small disk: {' '.join(done.stderr.split())}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return an empty disk of ``DISK_BYTES``."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=60)


def size_of(folder: Path) -> int:
    """Return the space that files take, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_ends_a_run_that_the_same_command_goes_on_with(disk: Path, tmp_path: Path, here: Here) -> None:
    # Of 8 x 8 positions, so that arrays take more space than tables.
    config = write_config(tmp_path / "run.yaml", "features.pool_kernel=2", "features.pool_stride=2")
    archive, out = tmp_path / "archive", disk / "run"
    # One group, so one block: Dask closes a worker only after 30 s when another task of it is ending at that moment.
    write_parts(archive / "a", 9, 1)
    assert here("clean", archive, "--out", tmp_path / "whole", "--config", config, "--quiet").code == 0
    ballast, codes = disk / "ballast", []
    for space in SPACES:
        ballast.unlink(missing_ok=True)
        ballast.write_bytes(bytes(DISK_BYTES - int(space * size_of(tmp_path / "whole"))))
        # A process of its own: a full disk has no room to give the lease back, so its owner has to be seen to be dead.
        ended = paire("clean", archive, "--out", out, "--config", config, "--quiet")
        codes.append(ended.code)
        if ended.code:
            assert "cannot be written: No space left on device" in ended.error
            assert "run the same command again" in ended.error
            assert not (out / SUCCESS).exists()
    assert codes == [EXIT_USAGE] * (len(SPACES) - 1) + [0]
    assert published(Directory.at(out)) == published(Directory.at(tmp_path / "whole"))


def test_a_disk_that_became_read_only_ends_a_run_before_anything_is_spent(
    disk: Path, tmp_path: Path, here: Here
) -> None:
    config, archive = write_config(tmp_path / "run.yaml"), make_archive(tmp_path / "archive")
    begun, out = disk / "begun", disk / "run"
    broken = here("clean", archive, "--out", begun, "--config", config, "--set", "input.max_unreadable_fraction=0")
    assert broken.code == 3
    mount("-o", "remount,ro", str(disk))
    for place in (begun, out):
        ended = here("clean", archive, "--out", place, "--config", config, "--quiet")
        assert ended.code == EXIT_USAGE
        assert f"{place}/" in ended.error
        assert "cannot be written: Read-only file system" in ended.error
    mount("-o", "remount,rw", str(disk))
    assert (begun / RUN_RECORD).exists()
    assert not out.exists()
    assert here("clean", archive, "--out", begun, "--config", config, "--quiet").code == 0

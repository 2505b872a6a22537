"""Images that kill or block the process that decodes them are found, with the reason, and no others are."""

from pathlib import Path

import pytest

import workers.images.quarantine
from schemas.config import FeaturesConfig, InputConfig
from schemas.errors import StorageError
from schemas.records.image import ImageRef
from tests.support.archives import part_pixels, png
from tests.support.poison import CRASH, write_poison, write_sitecustomize
from workers.images.decoder_process import DecoderDiedError, DecoderProcess
from workers.images.quarantine import find_poison

INPUTS, FEATURES = InputConfig(decode_timeout_s=5, max_pixels=10_000), FeaturesConfig(image_size=64)
KILLED = "decoding it killed the process (SIGSEGV)"


@pytest.fixture
def block(tmp_path: Path) -> list[ImageRef]:
    """Return a block, from row 10, of good and broken images, one that is not there, and a poisonous one."""
    contents = {"a": png(part_pixels(0)), "b": b"no image", "c": png(part_pixels(1)), "d": png(part_pixels(2))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    write_poison(tmp_path / "poison", CRASH, 3)
    names = ["a", "poison", "b", "missing", "c", "d"]
    return [ImageRef(10 + place, str(tmp_path / name)) for place, name in enumerate(names)]


@pytest.mark.parametrize("processes", [1, 2, 50])
def test_poison_is_found_by_its_row_however_many_processes_look_for_it(
    block: list[ImageRef], processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(write_sitecustomize(tmp_path / "suffering")))
    found = find_poison(block[:4] if processes > 2 else block, INPUTS, FEATURES, processes=processes)
    # A broken image has a reason too; a missing one is left to the task that reads it.
    assert found.keys() == {11, 12}
    assert found[11] == KILLED
    assert found[12]


def test_images_that_harm_nobody_are_not_poison(block: list[ImageRef]) -> None:
    assert find_poison([block[0], block[4], block[5]], INPUTS, FEATURES, processes=2) == {}


def dying(monkeypatch: pytest.MonkeyPatch, times: int) -> list[bytes]:
    """Let the process die of the first attempts, whatever the image; returns what was tried."""
    tried: list[bytes] = []

    def try_image(self: DecoderProcess, content: bytes) -> str:
        tried.append(content)
        if len(tried) <= times:
            raise DecoderDiedError(KILLED)
        return ""

    monkeypatch.setattr(DecoderProcess, "try_image", try_image)
    return tried


@pytest.mark.parametrize(("times", "found"), [(1, {}), (2, {10: KILLED})])
def test_an_image_is_to_blame_only_if_the_process_dies_of_it_twice(
    block: list[ImageRef], times: int, found: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = dying(monkeypatch, times)
    assert find_poison([block[0], block[4]], INPUTS, FEATURES, processes=1) == found
    assert tried[0] == tried[1] != tried[2]


def test_a_store_that_cannot_be_used_is_not_the_fault_of_an_image(
    block: list[ImageRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(location: str) -> bytes:
        raise StorageError(location)

    monkeypatch.setattr(workers.images.quarantine, "read_bytes", fail)
    with pytest.raises(StorageError):
        find_poison(block, INPUTS, FEATURES, processes=2)

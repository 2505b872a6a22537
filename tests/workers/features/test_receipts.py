"""Finished blocks are recognised, and no others: torn, missing and altered chunks, files that come back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from schemas.records.image import ImageOutcome, ImageRef
from workers.features.receipts import begin, find_finished, write_receipt
from workers.storage.directory import Directory

FEATURES = np.random.default_rng(0).normal(size=(4, 3, 2, 8)).astype(np.float16)


class Block:
    """A finished block of four images from row 4 on, of which the last could not be read."""

    def __init__(self, folder: Path, compressors: ZstdCodec | None) -> None:
        self.missing = folder / "3.png"
        self.images = [ImageRef(4 + number, str(folder / f"{number}.png")) for number in range(4)]
        self.outcomes = [ImageOutcome(4 + number, "ab" * 32, 10, 64, 64) for number in range(3)]
        self.outcomes.append(ImageOutcome(7, reason="cannot be read: no such file"))
        self.store, self.receipts = Directory.at(folder / "features"), Directory.at(folder / "receipts")
        self.array: Any = self.store.zarr_group("", "w").create_array(
            "all", shape=(8, 3, 2, 8), chunks=(4, 1, 2, 8), dtype="float16", compressors=compressors
        )
        self.array[4:] = FEATURES
        write_receipt(self.receipts, self.outcomes, FEATURES)
        self.chunk = folder / "features" / "all" / "c" / "1" / "2" / "0" / "0"
        self.receipt = folder / "receipts" / "000000004.json"
        assert self.chunk.is_file()
        assert self.receipt.is_file()

    def finished(self) -> list[ImageOutcome] | None:
        array: Any = self.store.zarr_group("")["all"]
        return find_finished(self.receipts, self.images, array)


@pytest.fixture(params=[None, ZstdCodec(level=1)], ids=["as it is", "compressed"])
def block(request: pytest.FixtureRequest, tmp_path: Path) -> Block:
    return Block(tmp_path, request.param)


def test_a_finished_block_gives_its_outcomes(block: Block) -> None:
    assert block.finished() == block.outcomes


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda block: block.chunk.unlink(), id="no chunk"),
        pytest.param(lambda block: block.chunk.write_bytes(b""), id="empty chunk"),
        pytest.param(lambda block: block.chunk.write_bytes(block.chunk.read_bytes()[:-5]), id="torn chunk"),
        pytest.param(lambda block: block.chunk.write_bytes(flip(block.chunk.read_bytes())), id="flipped bit"),
        pytest.param(lambda block: block.receipt.unlink(), id="no receipt"),
        pytest.param(lambda block: block.receipt.write_bytes(b""), id="empty receipt"),
        pytest.param(lambda block: block.receipt.write_bytes(block.receipt.read_bytes()[:99]), id="torn receipt"),
    ],
)
def test_what_is_damaged_is_not_finished(block: Block, damage: Callable[[Block], object]) -> None:
    damage(block)
    assert block.finished() is None


def test_a_receipt_of_other_rows_is_not_believed(block: Block) -> None:
    block.images.pop()
    assert block.finished() is None


def test_a_block_whose_unread_image_can_be_read_by_now_is_not_finished(block: Block) -> None:
    block.missing.write_bytes(b"there again")
    assert block.finished() is None


def test_a_block_of_nothing_but_unreadable_images_has_no_chunks_and_is_finished(tmp_path: Path) -> None:
    array: Any = zarr.create_array(tmp_path / "a", shape=(2, 1, 2, 8), chunks=(2, 1, 2, 8), dtype="float16")
    outcomes = [ImageOutcome(row, "cd" * 32, 0, reason="it is empty") for row in range(2)]
    nothing = np.zeros((2, 1, 2, 8), np.float16)
    array[:] = nothing
    write_receipt(Directory.at(tmp_path / "receipts"), outcomes, nothing)
    images = [ImageRef(row, str(tmp_path / "x.png")) for row in range(2)]
    assert find_finished(Directory.at(tmp_path / "receipts"), images, array) == outcomes


def test_a_block_that_was_begun_and_not_finished_is_known_as_such_and_no_other_is(block: Block) -> None:
    block.receipt.unlink()
    assert not begin(block.receipts, block.images)
    assert block.finished() is None
    assert begin(block.receipts, block.images)
    write_receipt(block.receipts, block.outcomes, FEATURES)
    assert block.finished() == block.outcomes
    # Gone stale, as when a file came back: extracted again, and not for a death.
    assert not begin(block.receipts, block.images)
    assert block.finished() is None
    assert begin(block.receipts, block.images)

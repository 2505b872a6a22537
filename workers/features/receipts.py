"""Receipts of extracted blocks: written last, and valid only if they match what is stored.

Until then, a note in the receipt's place says that the block was begun, which tells the next attempt how this one
ended.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from schemas.errors import DamagedArrayError
from schemas.records.image import ImageOutcome, ImageRef
from schemas.records.receipt import BEGUN, BlockReceipt, receipt_name
from workers.storage.directory import Directory, damage_as, read_bytes


def begin(receipts: Directory, block: Sequence[ImageRef]) -> bool:
    """Note that a block is begun; tell whether an earlier attempt at it did not finish.

    ``receipts`` is the directory of the block's group; the images are in row order.
    """
    name = receipt_name(block[0].row)
    try:
        was_begun = receipts.read(name) == BEGUN
    except FileNotFoundError:
        was_begun = False
    if not was_begun:
        receipts.write(name, BEGUN)
    return was_begun


def write_receipt(receipts: Directory, outcomes: Sequence[ImageOutcome], features: NDArray[Any]) -> None:
    """Declare a block finished after all its features are stored.

    ``receipts`` is the directory of its group; the features (images, rows, columns, channels) are as stored.
    """
    receipts.write(receipt_name(outcomes[0].row), BlockReceipt.of(outcomes, features).to_bytes())


def find_finished(receipts: Directory, block: Sequence[ImageRef], array: zarr.Array[Any]) -> list[ImageOutcome] | None:
    """Return the outcomes of a finished block; None if it must be extracted.

    A block is finished if its receipt matches its features in the group's ``array``, and none of its images that could
    not be read before can be read now: the file or its store may have been away for a while.
    """
    try:
        receipt = BlockReceipt.from_bytes(receipts.read(receipt_name(block[0].row)))
    except (FileNotFoundError, ValueError):
        return None
    if [outcome.row for outcome in receipt.outcomes] != [image.row for image in block]:
        return None
    try:
        with damage_as(DamagedArrayError):
            features = np.ascontiguousarray(array[block[0].row : block[-1].row + 1])
    except DamagedArrayError:
        return None
    if not receipt.agrees_with(features):
        return None
    unread = [image for image, outcome in zip(block, receipt.outcomes, strict=True) if not outcome.content_sha256]
    return None if any(map(_can_be_read, unread)) else list(receipt.outcomes)


def _can_be_read(image: ImageRef) -> bool:
    try:
        read_bytes(image.path)
    except (OSError, ValueError):
        return False
    return True

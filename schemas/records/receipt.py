"""The receipt of a block of extracted images: what became of each image, and the checksum of the stored features.

It is written after the features. A block is finished if its receipt matches its features; then it is never extracted
again. Nothing else in the feature store counts as finished. Before the first image of a block is decoded, a note takes
the receipt's place: an attempt that is killed leaves it behind.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from schemas.records.image import ImageOutcome

# The note in place of the receipt while a block is not finished.
BEGUN = b'{"begun": true}\n'


@dataclass(frozen=True)
class BlockReceipt:
    """The outcomes of a finished block, one per image in row order, with the checksum from `block_checksum`."""

    outcomes: tuple[ImageOutcome, ...]
    checksum: int

    @classmethod
    def of(cls, outcomes: Sequence[ImageOutcome], features: NDArray[Any]) -> "BlockReceipt":
        """Return the receipt of a block; see `block_checksum` for the features."""
        return cls(tuple(outcomes), block_checksum(outcomes, features))

    def to_bytes(self) -> bytes:
        """Return the receipt as JSON."""
        return f'{{"checksum": {self.checksum}, "outcomes": {_outcomes_json(self.outcomes)}}}\n'.encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "BlockReceipt":
        """Read a receipt back; raises `ValueError` if the bytes are not a receipt."""
        try:
            stored = json.loads(content)
            outcomes = tuple(ImageOutcome(**outcome) for outcome in stored["outcomes"])
            return cls(outcomes, int(stored["checksum"]))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"not a receipt of a block ({type(error).__name__}: {error})") from error

    def agrees_with(self, features: NDArray[Any]) -> bool:
        """Tell whether the receipt was written for these features."""
        return self.checksum == block_checksum(self.outcomes, features)


def block_checksum(outcomes: Sequence[ImageOutcome], features: NDArray[Any]) -> int:
    """Return the CRC-32 of a block's features and outcomes, which detects torn and missing chunks.

    The features (images, rows, columns, channels) are contiguous and in the dtype of the store.
    """
    return zlib.crc32(_outcomes_json(outcomes).encode(), zlib.crc32(features.data))


def receipt_name(first_row: int) -> str:
    """Return the file name of the receipt of the block that starts at a row."""
    return f"{first_row:09d}.json"


def _outcomes_json(outcomes: Sequence[ImageOutcome]) -> str:
    return json.dumps([asdict(outcome) for outcome in outcomes])

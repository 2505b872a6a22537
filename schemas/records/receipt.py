"""The receipt of a block of extracted images: what became of each, and the checksum of what was stored.

It is written after the block's features. A block with a receipt that its features agree with is finished, and never
extracted again; whatever else lies in the feature store is not. In its place stands that the block was begun, from
before its first image is decoded: an attempt that was killed leaves that behind.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from schemas.records.image import ImageOutcome

# What stands in the place of the receipt of a block that was begun and is not finished.
BEGUN = b'{"begun": true}\n'


@dataclass(frozen=True)
class BlockReceipt:
    """What is known of a finished block.

    Attributes
    ----------
    outcomes
        One for each image of the block, in row order.
    checksum
        Of the stored features and these outcomes, see `block_checksum`.
    """

    outcomes: tuple[ImageOutcome, ...]
    checksum: int

    @classmethod
    def of(cls, outcomes: Sequence[ImageOutcome], features: NDArray[Any]) -> "BlockReceipt":
        """Return the receipt of a block.

        Parameters
        ----------
        outcomes
            One for each image, in row order.
        features
            (images, rows, columns, channels), contiguous, in the dtype of the store.
        """
        return cls(tuple(outcomes), block_checksum(outcomes, features))

    def to_bytes(self) -> bytes:
        """Return the receipt as JSON."""
        return f'{{"checksum": {self.checksum}, "outcomes": {_outcomes_json(self.outcomes)}}}\n'.encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "BlockReceipt":
        """Read a receipt back.

        Raises
        ------
        ValueError
            When it is none.
        """
        try:
            stored = json.loads(content)
            outcomes = tuple(ImageOutcome(**outcome) for outcome in stored["outcomes"])
            return cls(outcomes, int(stored["checksum"]))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"no receipt of a block ({type(error).__name__}: {error})") from error

    def agrees_with(self, features: NDArray[Any]) -> bool:
        """Tell whether outcomes and features are those that the receipt was written for."""
        return self.checksum == block_checksum(self.outcomes, features)


def block_checksum(outcomes: Sequence[ImageOutcome], features: NDArray[Any]) -> int:
    """Return the CRC-32 of a block's features and outcomes: torn and missing chunks do not pass it."""
    return zlib.crc32(_outcomes_json(outcomes).encode(), zlib.crc32(features.data))


def receipt_name(first_row: int) -> str:
    """Return the name of the receipt of the block that begins at a row."""
    return f"{first_row:09d}.json"


def _outcomes_json(outcomes: Sequence[ImageOutcome]) -> str:
    return json.dumps([asdict(outcome) for outcome in outcomes])

"""What reading one image established, whether it could be decoded or not."""

from dataclasses import dataclass
from typing import NamedTuple


class ImageRef(NamedTuple):
    """Where one image is, and which row of its group's array it fills."""

    row: int
    path: str


@dataclass(frozen=True)
class ImageOutcome:
    """The facts about one image that extraction reports to the manifest.

    Attributes
    ----------
    row
        Row in the group's feature array.
    content_sha256
        Hash of the file's bytes; empty when they could not be read.
    byte_count
        Size of the file in bytes; None when it could not be read.
    width, height
        Pixels, after the EXIF orientation; None when the image could not be decoded.
    reason
        Why the image is unreadable; empty when it was decoded.
    """

    row: int
    content_sha256: str = ""
    byte_count: int | None = None
    width: int | None = None
    height: int | None = None
    reason: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether features were extracted."""
        return not self.reason

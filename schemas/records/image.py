"""Where an image is, and the facts that reading it established."""

from dataclasses import dataclass
from typing import NamedTuple


class ImageRef(NamedTuple):
    """The path or URL of an image, and its row in the arrays of its group."""

    row: int
    path: str


@dataclass(frozen=True)
class ImageOutcome:
    """The facts about one image that extraction reports to the manifest."""

    row: int  # in the group's feature array
    content_sha256: str = ""  # empty if the file could not be read
    byte_count: int | None = None  # None if the file could not be read
    width: int | None = None  # after EXIF orientation; None if it could not be decoded
    height: int | None = None  # like the width
    reason: str = ""  # why the image is unreadable; empty if it was decoded

    @property
    def is_readable(self) -> bool:
        """Whether features were extracted."""
        return not self.reason

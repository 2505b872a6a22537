"""Stable names derived from user input: sample ids, and array names for product groups."""

import hashlib
import re

DEFAULT_GROUP = "all"
"""The group of every image when the archive is not divided into groups."""

_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def sample_id(file_name: str) -> str:
    """Return the stable id of an input: 20 hex digits (80 bits) of its source-relative path's blake2b.

    It depends on nothing else, so it survives moving the archive and adding files to it. Among ten million
    inputs two share an id with probability 4e-11.
    """
    return hashlib.blake2b(file_name.encode(), digest_size=10).hexdigest()


def storage_name(name: str) -> str:
    """Return a Zarr node or file name for any text.

    Plain lower-case names stay as they are; all others become a readable part, ``~`` and 16 hex digits of their
    sha256, which no plain name can contain, so that different names stay different.
    """
    if _PLAIN.fullmatch(name):
        return name
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{readable}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"

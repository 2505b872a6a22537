"""Stable names made from user input: sample ids, and array names of product groups."""

import hashlib
import re

DEFAULT_GROUP = "all"
"""The group of every image in an archive without groups."""

_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def sample_id(file_name: str) -> str:
    """Return the stable id of an input: 20 hex digits (80 bits) of the blake2b of its source-relative path.

    It depends on nothing else, so it survives moving the archive and adding files. Among ten million inputs, two share
    an id with probability 4e-11.
    """
    return hashlib.blake2b(file_name.encode(), digest_size=10).hexdigest()


def storage_name(name: str) -> str:
    """Return a Zarr node or file name for any text; different texts have different names.

    A plain lower-case text stays as it is. Any other becomes a readable part, ``~`` and 16 hex digits of its sha256; a
    plain name cannot contain ``~``.
    """
    if _PLAIN.fullmatch(name):
        return name
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{readable}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"

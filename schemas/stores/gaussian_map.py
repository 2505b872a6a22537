"""The published Gaussian map's layout: one Zarr group per product group, with all that scoring needs.

Arrays of a product group, all float64, in chunks of positions of one row so that a scorer can stream them, or of as
many rows as the attribute ``chunk_rows`` says:

- ``mean`` (rows, columns, channels): mu (Eq. 4).
- ``factor`` (rows, columns, rank, channels): in the dual form the orthonormal directions V of the fitted
  samples' span, one per row; in the primal form the lower Cholesky factor of Sigma (rank = channels).
- ``variance`` (rows, columns, rank): variances along those directions, without the ridge; dual form only.
- ``ridge`` (rows, columns): the variance in all other directions; dual form only.
- ``thresholds`` (rows, columns): the threshold at each position, +inf where none was found.

The attribute ``smoothing`` of a product group says over how large squares of positions log distances are averaged
before they meet the thresholds; ``nearest``, on what share of its images each position was fitted: those nearest there.

Nothing that scores follow from is believed without its CRC-32: ``checksums`` of a product group has one for each row of
positions and one for the thresholds, ``groups`` of the root one for the attributes of each product group, and
``checksum`` one for the attributes of the root. So a file that was damaged, lost, or taken from another map is noticed.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

FORMAT: Final = "paire-gaussian-map"
FORMAT_VERSION: Final = 2

MEAN: Final = "mean"
FACTOR: Final = "factor"
VARIANCE: Final = "variance"
RIDGE: Final = "ridge"
THRESHOLDS: Final = "thresholds"
SMOOTHING: Final = "smoothing"
NEAREST: Final = "nearest"
CHUNK_ROWS: Final = "chunk_rows"

# Attributes that only a complete map has.
CHECKSUM: Final = "checksum"
CHECKSUMS: Final = "checksums"
GROUPS: Final = "groups"
ROWS: Final = "rows"

DUAL: Final = "dual"
PRIMAL: Final = "primal"


def checksum(parts: Iterable[Any]) -> int:
    """Return the CRC-32 of arrays, contiguous, one after another."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def attributes_checksum(attributes: Mapping[str, Any]) -> int:
    """Return the CRC-32 of attributes, but for their own checksum, as canonical JSON."""
    others = {name: value for name, value in attributes.items() if name != CHECKSUM}
    return checksum([json.dumps(others, sort_keys=True, separators=(",", ":")).encode()])

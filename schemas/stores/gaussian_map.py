"""The published Gaussian map's layout: one Zarr group per product group, with all that scoring needs.

The arrays of a product group are float64. A chunk holds positions of one row, so that a scorer can stream the map, or
of as many rows as the attribute ``chunk_rows`` says:

- ``mean`` (rows, columns, channels): mu (Eq. 4).
- ``factor`` (rows, columns, rank, channels): in the dual form, the orthonormal directions V of the span of the fitted
  samples, one per row; in the primal form, the lower Cholesky factor of Sigma (rank = channels).
- ``variance`` (rows, columns, rank): dual form only; the variances along those directions, without the ridge.
- ``ridge`` (rows, columns): dual form only; the variance in all other directions.
- ``thresholds`` (rows, columns): the threshold at each position, +inf if none was found.

Attributes of a product group: ``smoothing`` is the side of the square of positions that log distances are averaged over
before they are compared with the thresholds. ``nearest`` is the share of the images, those nearest to a position, that
its Gaussian was fitted on.

Readers check the CRC-32 of everything that scores follow from, so they notice a file that is damaged, lost or from
another map. ``checksums`` of a product group has one for each row of positions and one for the thresholds, ``groups``
of the root one for the attributes of each product group, and ``checksum`` one for the attributes of the root.
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
    """Return the CRC-32 of contiguous arrays, one after another."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def attributes_checksum(attributes: Mapping[str, Any]) -> int:
    """Return the CRC-32 of attributes as canonical JSON, without their own checksum."""
    others = {name: value for name, value in attributes.items() if name != CHECKSUM}
    return checksum([json.dumps(others, sort_keys=True, separators=(",", ":")).encode()])

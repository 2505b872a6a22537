"""The published Gaussian map's layout: one Zarr group per product group, with all that scoring needs.

Unless another type is named, the arrays of a product group are float64. A chunk holds positions of one row, so that a
scorer can stream the map, or of as many rows as the attribute ``chunk_rows`` says:

- ``mean`` (rows, columns, channels): mu (Eq. 4).
- ``factor`` (rows, columns, rank, channels): in the dual form, the orthonormal directions V of the span of the fitted
  samples, one per row; in the primal form, the lower Cholesky factor of Sigma (rank = channels).
- ``variance`` (rows, columns, rank): dual form only; the variances along those directions, without the ridge.
- ``ridge`` (rows, columns): dual form only; the variance in all other directions.
- ``reference`` (rows, columns, references, channels) float32: features of some fitted images. Only maps of strategies
  that measure neighbours have it: a distance is then the Mahalanobis distance times the distance to the second nearest
  reference (`workers.gaussian.neighbours`).
- ``thresholds`` (rows, columns): the threshold at each position, +inf if none was found.

Attributes of a product group: ``fitted`` and ``references`` count images, 0 references means none. ``smoothing`` is the
side of the square of positions that log distances are averaged over before they are compared with the thresholds.

Readers check the CRC-32 of everything that scores follow from, so they notice a file that is damaged, lost or from
another map. ``checksums`` of a product group has one for each row of positions and one for the thresholds, ``groups``
of the root one for the attributes of each product group, and ``checksum`` one for the attributes of the root.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

FORMAT: Final = "paire-gaussian-map"
FORMAT_VERSION: Final = 3

MEAN: Final = "mean"
FACTOR: Final = "factor"
VARIANCE: Final = "variance"
RIDGE: Final = "ridge"
REFERENCE: Final = "reference"
THRESHOLDS: Final = "thresholds"
SMOOTHING: Final = "smoothing"
REFERENCES: Final = "references"
CHUNK_ROWS: Final = "chunk_rows"

# Attributes that only a complete map has.
CHECKSUM: Final = "checksum"
CHECKSUMS: Final = "checksums"
GROUPS: Final = "groups"
ROWS: Final = "rows"

# The type of each array; those not named are float64.
DTYPES: Final[Mapping[str, str]] = {REFERENCE: "float32"}

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

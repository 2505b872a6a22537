"""The published Gaussian map's layout: one Zarr group per product group, with all that scoring needs.

Arrays of a product group, all float64, in chunks of positions of one row so that a scorer can stream them:

- ``mean`` (rows, columns, channels): mu (Eq. 4).
- ``factor`` (rows, columns, rank, channels): in the dual form the orthonormal directions V of the fitted
  samples' span, one per row; in the primal form the lower Cholesky factor of Sigma (rank = channels).
- ``variance`` (rows, columns, rank): variances along those directions, without the ridge; dual form only.
- ``ridge`` (rows, columns): the variance in all other directions; dual form only.
- ``thresholds`` (rows, columns): the threshold at each position, +inf where none was found.

The attribute ``smoothing`` of a product group says over how large squares of positions log distances are averaged
before they meet the thresholds; ``nearest``, on what share of its images each position was fitted: those nearest there.
"""

from typing import Final

FORMAT: Final = "paire-gaussian-map"
FORMAT_VERSION: Final = 1

MEAN: Final = "mean"
FACTOR: Final = "factor"
VARIANCE: Final = "variance"
RIDGE: Final = "ridge"
THRESHOLDS: Final = "thresholds"
SMOOTHING: Final = "smoothing"
NEAREST: Final = "nearest"

DUAL: Final = "dual"
PRIMAL: Final = "primal"

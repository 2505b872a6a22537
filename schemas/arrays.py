"""The names of NumPy arrays in annotations: one name for one type, whatever the array holds."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

"""An anomaly map as a heat map over its image, for people."""

from io import BytesIO

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.map.scorer import upsample

COLOUR_MAP = "inferno"
# Largest opacity of the heat map, so that the image stays visible below it.
OPACITY = 0.55


def heat_map_png(pixels: NDArray[np.float32], anomaly_map: NDArray[np.float64], *, reference: float) -> bytes:
    """Draw an anomaly map over its image, as a PNG.

    Parameters
    ----------
    pixels
        (height, width, 3) float32 RGB in 0..1: the original image.
    anomaly_map
        (rows, columns) float64 distances.
    reference
        The distance drawn at half strength, such as a typical threshold; twice this distance is drawn at full strength.
    """
    height, width, _ = pixels.shape
    strength = np.clip(upsample(anomaly_map, width, height) / (2 * reference), 0.0, 1.0)
    colours = mpl.colormaps[COLOUR_MAP](strength)[..., :3]
    opacity = (OPACITY * strength)[..., np.newaxis]
    blended = (1 - opacity) * pixels + opacity * colours
    buffer = BytesIO()
    Image.fromarray(np.round(blended * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()

"""Synthetic archives with files as large as those of cameras, and their catalogs."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

# Sensor noise in grey levels, which makes a PNG as hard to decompress as a photograph.
NOISE_LEVELS = 2.0


def write_images(folder: Path, count: int, size: int, image_format: str) -> list[Path]:
    """Write images of ``size`` x ``size`` pixels: soft coloured shapes under sensor noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    small = rng.integers(40, 215, (size // 16, size // 16, 3), dtype=np.uint8)
    scene = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).filter(ImageFilter.BoxBlur(2))
    paths = []
    for number in range(count):
        noisy = np.asarray(scene, np.float32) + rng.normal(0, NOISE_LEVELS, (size, size, 3))
        buffer = BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, image_format, quality=92)
        paths.append(folder / f"{number:05d}.{image_format.lower()}")
        paths[-1].write_bytes(buffer.getvalue())
    return paths


def catalog_of(paths: Sequence[Path], images: int) -> pd.DataFrame:
    """Return a catalog of images in one group, which repeats the files as often as needed."""
    rows = [{"group": "all", "row": row, "image_path": str(paths[row % len(paths)])} for row in range(images)]
    return pd.DataFrame(rows)

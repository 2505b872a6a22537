"""Small archives and configurations that tests share."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.config import Config, parse_config

# A backbone that builds in moments and gives an 8 x 8 grid of 128 channels from 64 x 64 pixels.
TINY_SETTINGS = (
    "features.backbone=resnet18",
    "features.nodes=relu,layer1",
    "features.weights=random",
    "features.image_size=64",
    "features.pool_kernel=4",
    "features.pool_stride=4",
    "features.batch_size=8",
    "cluster.workers=1",
    "cluster.threads_per_worker=1",
    "cluster.processes=false",
    # The paper's rule takes the fewest passes; tests of the default name it.
    "trim.strategy=paire",
    # Tiny groups cannot be trusted.
    "guard.accept_untrustworthy=true",
)


def tiny_config(*settings: str) -> Config:
    """Return a configuration that runs in seconds, in this process."""
    return parse_config(None, (*TINY_SETTINGS, *settings))


def part_pixels(seed: int, *, defect: bool = False, size: int = 64) -> NDArray[np.uint8]:
    """Return (size, size, 3) uint8: a disc on a plate with some noise, and a bright bar where there is a defect."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size - 0.5
    grey = np.where(rows**2 + columns**2 < 0.12, 170.0, 90.0) + rng.normal(0, 4, (size, size)) + rng.normal(0, 2)
    if defect:
        place = rng.integers(size // 4, size // 2)
        grey[place : place + size // 10, size // 4 : 3 * size // 4] = 250
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def other_pixels(seed: int, *, size: int = 64) -> NDArray[np.uint8]:
    """Return (size, size, 3) uint8: another product, a dark square on a bright plate."""
    rng = np.random.default_rng(seed)
    rows, columns = np.abs(np.mgrid[0:size, 0:size] / size - 0.5)
    grey = np.where(np.maximum(rows, columns) < 0.3, 60.0, 200.0) + rng.normal(0, 4, (size, size)) + rng.normal(0, 2)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def png(pixels: NDArray[np.uint8] | NDArray[np.uint16], image_format: str = "PNG") -> bytes:
    """Return pixels as an image file's bytes."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def write_parts(folder: Path, good: int, defective: int = 0, *, first_seed: int = 0) -> list[str]:
    """Write ``good_000.png`` ... and ``bad_000.png`` ...; returns the names of the defective ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(good):
        (folder / f"good_{number:03d}.png").write_bytes(png(part_pixels(first_seed + number)))
    names = [f"bad_{number:03d}.png" for number in range(defective)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(png(part_pixels(first_seed + 10_000 + number, defect=True)))
    return names

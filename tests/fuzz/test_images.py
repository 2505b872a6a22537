"""Image files to which anything may have happened: pixels, or a reason; never more memory than the bound allows."""

import resource
import warnings
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.mutations import attempt, fuzzing, mutated, tried
from tests.support.archives import part_pixels
from workers.images.decode import UndecodableError, decode_image

WIDTH, HEIGHT = 24, 16
MAX_PIXELS = 100_000
# A hundred times what the largest image takes that may be decoded, and what libraries load late.
MEMORY_BYTES = 400 * 2**20


def _saved(mode: str, image_format: str, **options: Any) -> bytes:
    image = Image.fromarray(part_pixels(1)[:HEIGHT, :WIDTH])
    if mode == "I;16":
        image = Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 100)
    elif mode == "LA":
        image = image.convert("L").convert("LA")
    else:
        image = image.convert(mode)
    if options.pop("turned", False):
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    if options.pop("frames", False):
        options |= {"save_all": True, "append_images": [image, image]}
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


FILES = [
    *(_saved(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    _saved("P", "PNG", transparency=3),
    _saved("RGB", "PNG", turned=True, dpi=(72, 72)),
    *(_saved(mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
    _saved("RGB", "JPEG", progressive=True, turned=True),
    *(_saved(mode, "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(_saved(mode, "TIFF") for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB")),
    *(_saved("RGB", "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
    _saved("RGB", "TIFF", frames=True, turned=True),
    *(_saved(mode, "WEBP", lossless=lossless) for mode in ("RGB", "RGBA") for lossless in (False, True)),
    _saved("RGB", "WEBP", frames=True),
]


@pytest.mark.parametrize("number", range(len(FILES)))
def test_every_unharmed_file_is_read_or_refused_for_a_reason(number: int) -> None:
    image = attempt(lambda: decode_image(FILES[number], image_size=8, max_pixels=MAX_PIXELS), UndecodableError)
    assert image is None or {image.width, image.height} == {WIDTH, HEIGHT}


@fuzzing(400)
@given(content=mutated(FILES) | st.binary(max_size=100), image_size=st.sampled_from([8, None]))
def test_harmed_files_are_pixels_or_a_reason(content: bytes, image_size: int | None) -> None:
    tried["images"] += 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(record=True) as caught:
        # As where the command runs: what Pillow warns of is known not to matter.
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=r"PIL\.")
        image = attempt(lambda: decode_image(content, image_size=image_size, max_pixels=MAX_PIXELS), UndecodableError)
    assert not [str(warning.message) for warning in caught]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY_BYTES
    if image is not None:
        assert 0 < image.width * image.height <= MAX_PIXELS
        assert image.pixels.shape == ((image_size, image_size, 3) if image_size else (image.height, image.width, 3))
        assert image.pixels.dtype == np.float32
        assert 0 <= image.pixels.min() <= image.pixels.max() <= 1

"""Image files that Pillow does not write: any PNG bit depth, and headers of images too large to exist."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PNG_GREY, PNG_RGB, PNG_GREY_ALPHA, PNG_RGB_ALPHA = 0, 2, 4, 6


def encode(image: Image.Image | NDArray[Any], image_format: str = "PNG", **options: Any) -> bytes:
    """Return an image file's bytes."""
    buffer = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, image_format, **options)
    return buffer.getvalue()


def png_of_depth(samples: NDArray[np.integer[Any]], bit_depth: int, colour_type: int) -> bytes:
    """Return a PNG of samples (height, width[, channels]) with 1, 2, 4, 8 or 16 bits each."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if bit_depth == 16:
        rows = [row.astype(">u2").tobytes() for row in flat]
    else:
        bits = np.unpackbits(flat.astype(np.uint8)[..., np.newaxis], axis=2)[..., -bit_depth:]
        rows = [np.packbits(row.ravel()).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _png_chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    )


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs(side: int) -> dict[str, bytes]:
    """Return a few hundred bytes each that claim to be an image of side x side pixels."""
    small = np.zeros((8, 8, 3), np.uint8)
    png = png_of_depth(small, 8, PNG_RGB)
    png = png.replace(_png_chunk(b"IHDR", png[16:29]), _png_chunk(b"IHDR", struct.pack(">II", side, side) + png[24:29]))
    bmp = encode(small, "BMP")
    bmp = bmp[:18] + struct.pack("<ii", side, side) + bmp[26:]
    jpeg = encode(small, "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    jpeg = jpeg[: frame + 5] + struct.pack(">HH", side, side) + jpeg[frame + 9 :]
    tiff = encode(small, "TIFF")
    for tag in (256, 257):  # width and height, which Pillow writes as 32-bit numbers
        entry = tiff.index(struct.pack("<HH", tag, 4))
        tiff = tiff[: entry + 2] + struct.pack("<HII", 4, 1, side) + tiff[entry + 12 :]
    webp = encode(Image.new("RGB", (16, 16)), "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")])
    canvas = webp.index(b"VP8X") + 12  # two numbers of 24 bits, one less than width and height
    webp = webp[:canvas] + 2 * struct.pack("<I", side - 1)[:3] + webp[canvas + 6 :]
    return {"PNG": png, "BMP": bmp, "JPEG": jpeg, "TIFF": tiff, "WEBP": webp}


def png_with(kind: bytes, data: bytes) -> bytes:
    """Return a PNG of 8 x 8 pixels that has one more chunk before them."""
    png = png_of_depth(np.zeros((8, 8), np.uint8), 8, PNG_GREY)
    return png[:33] + _png_chunk(kind, data) + png[33:]


def tiled_tiff(tile: int) -> bytes:
    """Return a TIFF of 8 x 8 grey pixels, deflated, in one tile of tile x tile."""
    data = zlib.compress(b"\0" * tile * tile, 9)
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory

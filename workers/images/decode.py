"""From the bytes of a file to the square of pixels that the backbone sees."""

import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# Tags of TIFF.
TILEWIDTH, TILELENGTH = 322, 323

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

# Pillow's own guard is one number for the whole process and only warns up to twice its value; decode_image compares
# each image with the configured bound before it decodes a pixel.
Image.MAX_IMAGE_PIXELS = None

# Pillow's warnings about odd files name no file, and would be errors if warnings are errors.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UndecodableError(ValueError):
    """An image cannot be used; the message becomes the reason in the manifest."""


@dataclass(frozen=True)
class DecodedImage:
    """One image, ready for the backbone."""

    pixels: NDArray[np.float32]  # (image_size, image_size, 3) or (height, width, 3), RGB in 0..1
    width: int  # of the original in pixels, after EXIF orientation
    height: int  # of the original


def decode_image(
    content: bytes, *, image_size: int | None, max_pixels: int, sixteen_bit_white: int = 65535
) -> DecodedImage:
    """Decode, orient, convert to RGB and resize one image.

    Grey, palette and CMYK images become RGB, transparency is dropped, and only the first of several frames is used.
    The resize is bilinear with anti-aliasing to exactly (image_size, image_size), like torchvision's on Pillow images.

    Parameters
    ----------
    content
        The bytes of a PNG, JPEG, BMP, TIFF or WebP file.
    image_size
        Side of the result in pixels; None keeps the original size.
    max_pixels
        Largest width x height to decode.
    sixteen_bit_white
        The value of a 16-bit grey image that becomes 1.0.

    Raises
    ------
    UndecodableError
        With the reason, whatever is wrong with the bytes.
    """
    if not content:
        raise UndecodableError("the file is empty (0 bytes)")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            for width, height in (image.size, _tile_size(image)):
                if width * height > max_pixels:
                    raise UndecodableError(f"{width} x {height} pixels are more than input.max_pixels = {max_pixels}")
            return prepare_pixels(image, image_size=image_size, sixteen_bit_white=sixteen_bit_white)
    except UndecodableError:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableError(f"not an image in any of {', '.join(FORMATS)}") from error
    except Exception as error:
        detail = " ".join(str(error).split()) or "no detail"
        raise UndecodableError(f"cannot be decoded: {detail} ({type(error).__name__})") from error


def prepare_pixels(image: Image.Image, *, image_size: int | None, sixteen_bit_white: int) -> DecodedImage:
    """Orient, convert to RGB and resize an opened image; see `decode_image`."""
    # Pillow opens 16-bit grey PNG as 32-bit integers in some versions.
    is_sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image.load()
    oriented = _upright(image)
    size = oriented.size if image_size is None else (image_size, image_size)
    pixels = _sixteen_bit_rgb(oriented, size, sixteen_bit_white) if is_sixteen_bit else _rgb(oriented, size)
    return DecodedImage(pixels, oriented.width, oriented.height)


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Return the size of a TIFF's tiles, which are decoded whole even if the image is small."""
    tags = getattr(image, "tag_v2", {})
    sides = [tags.get(tag, 0) for tag in (TILEWIDTH, TILELENGTH)]
    width, height = (side if isinstance(side, int) else 0 for side in sides)
    return width, height


def _upright(image: Image.Image) -> Image.Image:
    """Return the image turned by its EXIF orientation; damaged metadata is ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - metadata parsers raise anything on bad bytes
        return image


def _sixteen_bit_rgb(image: Image.Image, size: tuple[int, int], white: int) -> NDArray[np.float32]:
    """Return (height, width, 3) float32 in 0..1; Pillow's own conversion to RGB would clip at 255."""
    grey = Image.fromarray(np.asarray(image, dtype=np.float32)).resize(size, Image.Resampling.BILINEAR)
    scaled = np.clip(np.asarray(grey) / np.float32(white), 0.0, 1.0)
    return np.repeat(scaled[:, :, np.newaxis], 3, axis=2)


def _rgb(image: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return (height, width, 3) float32 RGB in 0..1."""
    if image.mode in {"I", "F"}:
        raise UndecodableError(f"32-bit pixels (mode {image.mode}) have no defined white; convert to 8 or 16 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    rgb = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return np.asarray(rgb, dtype=np.float32) / np.float32(255)

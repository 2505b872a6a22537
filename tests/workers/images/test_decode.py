"""Decoding: every format and pixel layout to upright RGB in 0..1, and a reason for everything else."""

import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, resize

from tests.support.image_files import (
    PNG_GREY,
    PNG_GREY_ALPHA,
    PNG_RGB,
    PNG_RGB_ALPHA,
    bombs,
    encode,
    png_of_depth,
    png_with,
    tiled_tiff,
)
from workers.images.decode import FORMATS, DecodedImage, UndecodableError, decode_image

MAX_PIXELS = 1_000_000
ORIENTATION = 0x0112  # the EXIF tag
LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}
JPEG = {"quality": 95, "subsampling": 0}

rng = np.random.default_rng(0)
# Blocks of 8 x 8 equal pixels, which JPEG keeps to a few levels; no two blocks alike, wider than high.
RGB = np.kron(rng.integers(0, 256, (3, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
GREY = RGB[..., 0]
ALPHA = np.kron([[0, 255, 128, 0]], np.ones((24, 8))).astype(np.uint8)
SIXTEEN_BIT = (np.arange(24 * 32).reshape(24, 32) * 85).astype(np.uint16)  # 0 to 65 195, low bytes of all values
RGB.flags.writeable = GREY.flags.writeable = SIXTEEN_BIT.flags.writeable = False


def decode(content: bytes, *, image_size: int | None = None, **options: Any) -> DecodedImage:
    return decode_image(content, **{"image_size": image_size, "max_pixels": MAX_PIXELS, **options})


def refusal(content: bytes, **options: Any) -> str:
    with pytest.raises(UndecodableError) as caught:
        decode(content, **options)
    return str(caught.value)


def assert_pixels(decoded: DecodedImage, expected: NDArray[Any], *, levels: float = 0.0) -> None:
    """Check pixels against (height, width[, 3]) of 0..255, to a number of levels."""
    rgb = np.repeat(expected[..., np.newaxis], 3, axis=2) if expected.ndim == 2 else expected
    assert decoded.pixels.dtype == np.float32
    assert (decoded.height, decoded.width) == rgb.shape[:2]
    np.testing.assert_allclose(decoded.pixels * 255, rgb, rtol=0, atol=levels + 1e-4)
    assert 0 <= decoded.pixels.min() <= decoded.pixels.max() <= 1


@pytest.mark.parametrize("image_format", LOSSLESS)
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["RGB", "grey"])
def test_lossless_files_give_their_pixels(image_format: str, pixels: NDArray[np.uint8]) -> None:
    assert_pixels(decode(encode(pixels, image_format, **LOSSLESS[image_format])), pixels)


@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["RGB", "grey"])
def test_jpeg_gives_its_pixels_but_for_compression(pixels: NDArray[np.uint8]) -> None:
    assert_pixels(decode(encode(pixels, "JPEG", **JPEG)), pixels, levels=8)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_dropped_and_colours_kept(image_format: str) -> None:
    rgba = np.dstack([RGB, ALPHA])
    assert_pixels(decode(encode(rgba, image_format, **LOSSLESS[image_format])), RGB)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_grey_with_transparency_is_grey(image_format: str) -> None:
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    assert_pixels(decode(encode(grey_alpha, image_format)), GREY)


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255] * 4)], ids=["none", "one colour", "table"])
def test_a_palette_png_gives_its_colours(transparency: object) -> None:
    palette = Image.fromarray(RGB).quantize(12)
    options = {} if transparency is None else {"transparency": transparency}
    assert_pixels(decode(encode(palette, "PNG", **options)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("image_format", ["BMP", "TIFF"])
def test_a_palette_image_gives_its_colours(image_format: str) -> None:
    palette = Image.fromarray(RGB).quantize(12)
    assert_pixels(decode(encode(palette, image_format)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("pixels", "transparency"), [(RGB, tuple(int(value) for value in RGB[0, 0])), (GREY, int(GREY[0, 0]))]
)
def test_a_transparent_colour_is_kept(pixels: NDArray[np.uint8], transparency: object) -> None:
    assert_pixels(decode(encode(pixels, "PNG", transparency=transparency)), pixels)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_black_and_white_is_0_and_1(image_format: str) -> None:
    assert_pixels(decode(encode(GREY > 128, image_format)), (GREY > 128) * 255)


@pytest.mark.parametrize("bit_depth", [1, 2, 4, 8])
def test_white_of_a_grey_png_of_any_depth_is_1(bit_depth: int) -> None:
    white = 2**bit_depth - 1
    levels = np.arange(24 * 32).reshape(24, 32) % (white + 1)
    assert_pixels(decode(png_of_depth(levels, bit_depth, PNG_GREY)), levels * 255 / white)


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(image_format: str) -> None:
    cmyk = Image.fromarray(RGB).convert("CMYK")
    options = JPEG if image_format == "JPEG" else {}
    assert_pixels(decode(encode(cmyk, image_format, **options)), RGB, levels=10)


@pytest.mark.parametrize(
    "content",
    [
        encode(SIXTEEN_BIT, "PNG"),
        png_of_depth(SIXTEEN_BIT, 16, PNG_GREY),
        encode(SIXTEEN_BIT, "TIFF"),
        encode(SIXTEEN_BIT, "TIFF", compression="tiff_lzw"),
        encode(Image.frombytes("I;16B", (32, 24), SIXTEEN_BIT.astype(">u2").tobytes()), "TIFF"),
    ],
    ids=["PNG", "PNG literal", "TIFF", "TIFF LZW", "TIFF big-endian"],
)
class TestSixteenBitGrey:
    def test_white_is_65535_and_no_level_is_lost(self, content: bytes) -> None:
        assert_pixels(decode(content), SIXTEEN_BIT / 65535 * 255)
        assert len(np.unique(decode(content).pixels)) == len(np.unique(SIXTEEN_BIT))

    def test_another_white_brightens_and_clips(self, content: bytes) -> None:
        expected = np.minimum(SIXTEEN_BIT / 4095, 1) * 255
        assert_pixels(decode(content, sixteen_bit_white=4095), expected)

    def test_resizing_is_that_of_eight_bits_but_for_rounding(self, content: bytes) -> None:
        eight_bit = Image.fromarray(np.round(SIXTEEN_BIT / 257).astype(np.uint8))
        np.testing.assert_allclose(
            decode(content, image_size=10).pixels, decode(encode(eight_bit), image_size=10).pixels, atol=2 / 255
        )


def test_sixteen_bit_grey_with_a_transparent_level_is_grey() -> None:
    assert_pixels(decode(encode(SIXTEEN_BIT, "PNG", transparency=0)), SIXTEEN_BIT / 65535 * 255)


@pytest.mark.parametrize(
    ("channels", "colour_type"), [(2, PNG_GREY_ALPHA), (3, PNG_RGB), (4, PNG_RGB_ALPHA)], ids=["LA", "RGB", "RGBA"]
)
def test_sixteen_bit_colour_keeps_its_upper_eight_bits(channels: int, colour_type: int) -> None:
    samples = np.stack([np.roll(SIXTEEN_BIT, channel, axis=1) for channel in range(channels)], axis=2)
    expected = samples[..., :3] if channels > 2 else samples[..., 0]
    assert_pixels(decode(png_of_depth(samples, 16, colour_type)), expected / 257, levels=1)


# What a camera that is held so stores of an upright image: the inverse of what EXIF asks the viewer to do.
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: np.swapaxes(upright, 0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.swapaxes(np.rot90(upright, 2), 0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_every_exif_orientation_gives_the_same_upright_image(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](RGB))
    options = JPEG if image_format == "JPEG" else LOSSLESS[image_format]
    decoded = decode(encode(stored, image_format, exif=exif, **options))
    assert (decoded.width, decoded.height) == (32, 24)
    assert_pixels(decoded, RGB, levels=8 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_images_are_turned_upright_too(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](SIXTEEN_BIT))
    assert_pixels(decode(encode(stored, image_format, exif=exif)), SIXTEEN_BIT / 65535 * 255)


@pytest.mark.parametrize("size", [1, 8, 24, 40])
def test_resizing_is_torchvisions_on_pillow_images(size: int) -> None:
    decoded = decode(encode(RGB), image_size=size)
    resized = resize(Image.fromarray(RGB), [size, size], InterpolationMode.BILINEAR)
    np.testing.assert_array_equal(
        decoded.pixels, pil_to_tensor(resized).permute(1, 2, 0).numpy().astype(np.float32) / np.float32(255)
    )
    assert (decoded.width, decoded.height) == (32, 24)  # of the original


def test_of_several_frames_the_first_is_used() -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    assert_pixels(decode(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])), RGB)


def test_decoding_twice_gives_the_same_pixels() -> None:
    content = encode(RGB, "JPEG")
    np.testing.assert_array_equal(decode(content, image_size=16).pixels, decode(content, image_size=16).pixels)


# Noise, so that nearly all of each file is pixels.
NOISE = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
FILES = {
    **{f"{name} RGB": encode(NOISE, name) for name in ("PNG", "BMP", "TIFF", "JPEG", "WEBP")},
    "PNG palette": encode(Image.fromarray(NOISE).quantize(64)),
    "PNG 16-bit": encode(rng.integers(0, 65536, (48, 64)).astype(np.uint16)),
    "TIFF 16-bit": encode(rng.integers(0, 65536, (48, 64)).astype(np.uint16), "TIFF", compression="tiff_adobe_deflate"),
    "JPEG CMYK": encode(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_has_a_reason(name: str, share: float) -> None:
    content = FILES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert refusal(content[: int(share * len(content))])


def test_an_empty_file_has_a_reason() -> None:
    assert refusal(b"") == "the file is empty (0 bytes)"


@pytest.mark.parametrize(
    "content",
    [b"\x00", b"hello", "Ünïcode\n".encode(), b"%PDF-1.7\n", b"image_path\na.png\n", encode(RGB, "GIF"), b"\xff" * 999],
    ids=["NUL", "text", "unicode", "PDF", "CSV", "GIF", "noise"],
)
def test_other_content_has_a_reason_that_lists_the_formats(content: bytes) -> None:
    assert refusal(content) == "not an image in any of PNG, JPEG, BMP, TIFF, WEBP"


@pytest.mark.parametrize("image_format", bombs(16_000))
def test_a_decompression_bomb_is_refused_by_its_header(image_format: str) -> None:
    assert refusal(bombs(16_000)[image_format]) == "16000 x 16000 pixels are more than input.max_pixels = 1000000"


def test_the_bombs_are_of_every_format() -> None:
    assert set(bombs(16_000)) == set(FORMATS)


def test_tiles_larger_than_their_image_are_a_bomb_too() -> None:
    assert_pixels(decode(tiled_tiff(512)), np.zeros((8, 8)))
    assert refusal(tiled_tiff(2048)) == "2048 x 2048 pixels are more than input.max_pixels = 1000000"


@pytest.mark.parametrize("image_format", ["TIFF", "WEBP"])
def test_frames_behind_the_first_are_not_decoded(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("black", "red", "blue")]
    content = encode(frames[0], image_format, save_all=True, append_images=frames[1:])

    def fail(*_: object) -> None:
        pytest.fail("another frame was asked for")

    for plugin in (TiffImageFile, WebPImageFile):
        monkeypatch.setattr(plugin, "seek", fail)
    assert_pixels(decode(content), np.zeros((24, 32)), levels=2)


BOMB = zlib.compress(bytes(64 * 2**20), 9)


@pytest.mark.parametrize(
    ("kind", "data"),
    [(b"zTXt", b"key\0\0" + BOMB), (b"iTXt", b"key\0\1\0\0\0" + BOMB), (b"iCCP", b"profile\0\0" + BOMB)],
    ids=["text", "international text", "colour profile"],
)
def test_metadata_that_unpacks_to_more_than_a_megabyte_is_refused(kind: bytes, data: bytes) -> None:
    tracemalloc.start()
    try:
        assert "too large" in refusal(png_with(kind, data))
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_pixels_that_unpack_to_more_than_the_header_says_are_left_packed() -> None:
    assert_pixels(decode(png_with(b"IDAT", BOMB)), np.zeros((8, 8)))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_long_metadata_is_no_reason_against_an_image(image_format: str) -> None:
    exif = Image.Exif()
    exif[0x9286] = b"x" * 60_000
    content = encode(GREY, image_format, exif=exif, icc_profile=bytes(1_000_000))
    assert (decode(content).width, decode(content).height) == (32, 24)


def test_the_bound_on_pixels_is_inclusive() -> None:
    content = encode(RGB)
    assert decode(content, max_pixels=24 * 32).width == 32
    assert "input.max_pixels = 767" in refusal(content, max_pixels=24 * 32 - 1)


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_32_bit_pixels_are_refused_with_what_to_do(dtype: Any, mode: str) -> None:
    reason = refusal(encode(SIXTEEN_BIT.astype(dtype), "TIFF"))
    assert reason == f"32-bit pixels (mode {mode}) have no defined white; convert to 8 or 16 bits"


@pytest.mark.parametrize("name", FILES)
def test_a_reason_is_one_short_line(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = refusal(FILES[name][: len(FILES[name]) // 2])
    assert "\n" not in reason
    assert len(reason) < 200


def assert_decoded_or_refused(content: bytes) -> None:
    """Check that bytes give an image or `UndecodableError`; whatever else is raised comes out."""
    try:
        decoded = decode(content, image_size=16)
    except UndecodableError:
        return
    assert decoded.pixels.shape == (16, 16, 3)
    assert np.isfinite(decoded.pixels).all()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a real file with some bytes changed, and perhaps its end cut off."""
    content = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))])
    for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(1, len(content)))] if draw(st.booleans()) else content)


@given(st.binary(max_size=200) | damaged())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_raise_anything_but_undecodable(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_decoded_or_refused(content)


def damaged_files(folder: Path) -> None:
    """Write files with whole pixels but damaged metadata, and 200 with a few bytes changed."""
    (folder / "exif.jpg").write_bytes(encode(RGB, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"))
    random = np.random.default_rng(1)
    for number in range(200):
        name = sorted(FILES)[number % len(FILES)]
        content = bytearray(FILES[name])
        for place in random.integers(0, 300, 4):
            content[place] = random.integers(256)
        (folder / f"{number:03d} {name}").write_bytes(content)


DECODE_ALL = """
import sys
from pathlib import Path
from workers.images.decode import UndecodableError, decode_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decoded = decode_image(path.read_bytes(), image_size=8, max_pixels=1_000_000)
        print(path.name, decoded.width, decoded.height, decoded.pixels.sum())
    except UndecodableError as error:
        print(path.name, error)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Return how damaged files decode in an interpreter of its own, by what it is told to do with warnings."""
    folder = tmp_path_factory.mktemp("damaged")
    damaged_files(folder)
    return {
        action: subprocess.run(
            [sys.executable, "-W", action, "-c", DECODE_ALL, str(folder)],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        for action in ("ignore", "default", "error")
    }


def test_no_warning_about_an_image_escapes(outcomes: dict[str, subprocess.CompletedProcess[str]]) -> None:
    # libtiff writes its own words there, which name no file either, but are no warnings.
    assert [line for line in outcomes["default"].stderr.splitlines() if "Warning" in line] == []


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("exif", [b"garbage", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff\x01\x12"])
def test_damaged_metadata_does_not_cost_an_image(image_format: str, exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoded = decode(encode(RGB, image_format, exif=b"Exif\0\0" + exif))
    assert (decoded.width, decoded.height) == (32, 24)


def test_what_becomes_of_an_image_does_not_depend_on_what_the_interpreter_does_with_warnings(
    outcomes: dict[str, subprocess.CompletedProcess[str]],
) -> None:
    assert outcomes["error"].stdout.splitlines() == outcomes["ignore"].stdout.splitlines()

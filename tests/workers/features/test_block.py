"""One extraction task: rows never shift, outcomes keep their order, and nothing but the block decides its features."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from schemas.config import Config
from schemas.records.image import ImageOutcome, ImageRef
from tests.support.archives import part_pixels, png, tiny_config
from tests.support.web import serving
from workers.features.block import extract_block, read_image
from workers.features.extractor import PatchExtractor, shared_extractor
from workers.images.decode import decode_image

CONFIG = tiny_config("features.dtype=float32")
UNREADABLE = {3: b"", 4: b"no image", 9: png(part_pixels(9))[:200], 10: None}  # None: no such file
IMAGES = 20


@pytest.fixture(scope="module")
def extractor() -> PatchExtractor:
    return shared_extractor(CONFIG.features)


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRef]:
    """Return twenty images, some of them unreadable in the middle, which fill rows 100 to 119."""
    folder = tmp_path_factory.mktemp("block")
    refs = []
    for number in range(IMAGES):
        path = folder / f"part {number}.png"
        content = UNREADABLE.get(number, png(part_pixels(number)))
        if content is not None:
            path.write_bytes(content)
        refs.append(ImageRef(100 + number, str(path)))
    return refs


def extract(
    block: list[ImageRef], extractor: PatchExtractor, *, readers: int = 2, config: Config = CONFIG
) -> tuple[np.ndarray, list[ImageOutcome]]:
    return extract_block(block, extractor, inputs=config.input, features=config.features, readers=readers)


def test_rows_are_not_shifted_by_unreadable_images(block: list[ImageRef], extractor: PatchExtractor) -> None:
    features, _ = extract(block, extractor)
    assert features.shape == extractor.geometry.array_shape(IMAGES)
    for number in set(range(IMAGES)) - UNREADABLE.keys():
        pixels = part_pixels(number)[np.newaxis].astype(np.float32) / np.float32(255)
        alone = extractor.extract(pixels)[0]
        np.testing.assert_allclose(features[number], alone, rtol=1e-4, atol=1e-4 * np.abs(alone).max())


def test_rows_of_unreadable_images_are_zero(block: list[ImageRef], extractor: PatchExtractor) -> None:
    features, _ = extract(block, extractor)
    assert [int(row) for row in np.flatnonzero(~features.any(axis=(1, 2, 3)))] == sorted(UNREADABLE)


def test_outcomes_are_in_the_order_of_the_images(block: list[ImageRef], extractor: PatchExtractor) -> None:
    _, outcomes = extract(block, extractor)
    assert [outcome.row for outcome in outcomes] == [ref.row for ref in block]
    assert [number for number, outcome in enumerate(outcomes) if not outcome.is_readable] == sorted(UNREADABLE)
    for ref, outcome in zip(block, outcomes, strict=True):
        if Path(ref.path).exists():
            content = Path(ref.path).read_bytes()
            assert outcome.content_sha256 == hashlib.sha256(content).hexdigest()
            assert outcome.byte_count == len(content)


def test_outcomes_say_what_is_wrong(block: list[ImageRef], extractor: PatchExtractor) -> None:
    _, outcomes = extract(block, extractor)
    assert [outcomes[number].reason.partition(":")[0] for number in sorted(UNREADABLE)] == [
        "the file is empty (0 bytes)",
        "not an image in any of PNG, JPEG, BMP, TIFF, WEBP",
        "cannot be decoded",
        "cannot be read",
    ]
    assert outcomes[10] == ImageOutcome(110, reason="cannot be read: no such file")
    assert outcomes[0].width == outcomes[0].height == 64


@pytest.mark.parametrize("readers", [1, 3, 16])
def test_features_are_the_same_bits_however_many_readers_and_however_often(
    block: list[ImageRef], extractor: PatchExtractor, readers: int
) -> None:
    expected, outcomes = extract(block, extractor, readers=2)
    for _ in range(2):
        again, outcomes_again = extract(block, extractor, readers=readers)
        np.testing.assert_array_equal(again, expected)
        assert outcomes_again == outcomes


def test_features_of_one_image_do_not_depend_on_whether_others_are_readable(
    block: list[ImageRef], extractor: PatchExtractor, tmp_path: Path
) -> None:
    expected, _ = extract(block, extractor)
    (tmp_path / "whole.png").write_bytes(png(part_pixels(77)))
    mended = [
        ref if number != 3 else ImageRef(ref.row, str(tmp_path / "whole.png")) for number, ref in enumerate(block)
    ]
    features, _ = extract(mended, extractor)
    others = np.arange(IMAGES) != 3
    np.testing.assert_array_equal(features[others], expected[others])
    assert features[3].any()


def test_each_finished_batch_is_counted(block: list[ImageRef], extractor: PatchExtractor) -> None:
    counts: list[int] = []
    extract_block(block, extractor, inputs=CONFIG.input, features=CONFIG.features, readers=2, on_batch=counts.append)
    assert CONFIG.features.batch_size == 8
    assert counts == [8, 8, 4]


def test_no_images_give_no_features(extractor: PatchExtractor) -> None:
    features, outcomes = extract([], extractor)
    assert features.shape == extractor.geometry.array_shape(0)
    assert outcomes == []


def test_a_block_of_unreadable_images_is_a_block_of_zeros(tmp_path: Path, extractor: PatchExtractor) -> None:
    features, outcomes = extract([ImageRef(row, str(tmp_path / "none")) for row in range(9)], extractor)
    assert not features.any()
    assert {outcome.reason for outcome in outcomes} == {"cannot be read: no such file"}


def test_features_have_the_stored_dtype(block: list[ImageRef]) -> None:
    config = tiny_config()
    features, _ = extract(block[:2], shared_extractor(config.features), config=config)
    assert features.dtype == np.float16


def test_the_white_of_sixteen_bit_images_and_the_bound_on_pixels_come_from_the_configuration(tmp_path: Path) -> None:
    twelve_bit = tmp_path / "twelve_bit.png"
    twelve_bit.write_bytes(png(part_pixels(0)[..., 0].astype(np.uint16) * 16))
    config = tiny_config("input.sixteen_bit_white=4080", "input.max_pixels=4096")
    outcome, decoded = read_image(ImageRef(0, str(twelve_bit)), config.input, config.features)
    assert outcome.is_readable
    assert decoded is not None
    np.testing.assert_allclose(decoded.pixels * 255, part_pixels(0), atol=1e-4)
    refused, nothing = read_image(
        ImageRef(0, str(twelve_bit)), tiny_config("input.max_pixels=4095").input, config.features
    )
    assert "input.max_pixels = 4095" in refused.reason
    assert nothing is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.png", "cannot be read: no such file"),
        ("folder", "cannot be read: it is a directory"),
        ("nul\0byte.png", "cannot be read: "),
        ("nosuchprotocol://a/b.png", "cannot be read: "),
        ("memory://nothing/there.png", "cannot be read: no such file"),
        ("", "cannot be read: "),
    ],
)
def test_a_file_that_cannot_be_read_has_a_reason(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    location = path if "://" in path or not path else str(tmp_path / path)
    outcome, decoded = read_image(ImageRef(5, location), CONFIG.input, CONFIG.features)
    assert outcome.row == 5
    assert outcome.reason.startswith(reason)
    assert (outcome.content_sha256, outcome.byte_count, decoded) == ("", None, None)


def test_a_file_without_permission_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(location: str) -> bytes:
        raise PermissionError(13, "Permission denied", location)

    # Tests may run as a user to whom every file is open.
    monkeypatch.setattr("workers.features.block.read_bytes", refuse)
    outcome, _ = read_image(ImageRef(0, str(tmp_path / "a.png")), CONFIG.input, CONFIG.features)
    assert outcome.reason == "cannot be read: permission denied"


@pytest.mark.parametrize("status", [401, 403, 404, 410, 500, 503])
def test_an_image_that_a_web_server_refuses_has_a_reason(status: int) -> None:
    with serving({}, {"/a.png": status}) as address:
        outcome, decoded = read_image(ImageRef(0, f"{address}/a.png"), CONFIG.input, CONFIG.features)
    assert outcome.reason.startswith("cannot be read: ")
    assert decoded is None


def test_an_image_from_a_web_server_is_read() -> None:
    content = png(part_pixels(1))
    with serving({"/a.png": content}, {}) as address:
        outcome, decoded = read_image(ImageRef(0, f"{address}/a.png"), CONFIG.input, CONFIG.features)
    assert outcome.content_sha256 == hashlib.sha256(content).hexdigest()
    assert decoded is not None
    np.testing.assert_array_equal(decoded.pixels, decode_image(content, image_size=64, max_pixels=10**6).pixels)


def test_a_web_server_that_is_not_there_is_a_reason() -> None:
    with serving({}, {}) as address:
        pass
    outcome, _ = read_image(ImageRef(0, f"{address}/a.png"), CONFIG.input, CONFIG.features)
    assert outcome.reason.startswith("cannot be read: ")

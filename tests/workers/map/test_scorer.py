"""Scoring new images: the same score for the same image in whatever form it comes, and maps of the right shapes."""

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from schemas.config import Config
from schemas.errors import GaussianMapError, WeightsError
from schemas.records.image import ImageRef
from tests.support.archives import part_pixels, png, tiny_config
from tests.support.maps import describe, finish, new_map, write_group
from workers.features.block import extract_block
from workers.features.extractor import PatchExtractor, shared_extractor
from workers.images.decode import UndecodableError
from workers.map.reader import GaussianMap
from workers.map.scorer import ImageLike, ImageScorer, Scores, score_block, scoring_config, upsample
from workers.storage.directory import Directory

CONFIG = tiny_config()
FITTED, NEW = 12, 10  # more new images than one batch has


class Published(NamedTuple):
    """An open map of two groups, and the thresholds of the first."""

    gaussian_map: GaussianMap
    extractor: PatchExtractor
    thresholds: NDArray[np.float64]


def pixels_of_good(seed: int) -> NDArray[np.uint8]:
    return part_pixels(1000 + seed)


def grey_of(seed: int) -> NDArray[np.uint8]:
    return pixels_of_good(seed)[..., 0]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    extractor = shared_extractor(CONFIG.features)
    geometry = extractor.geometry
    batch = np.stack([part_pixels(seed) for seed in range(FITTED)]).astype(np.float32) / np.float32(255)
    fitted = extractor.extract(batch)
    run = Directory.at(tmp_path_factory.mktemp("run"))
    model = new_map(run, describe(geometry, CONFIG.features, extractor.weights_digest))
    # Good new images lie far from a dozen fitted ones; thresholds beyond them, and none at the first position.
    draft = write_group(model, "part", geometry, fitted, np.zeros((geometry.rows, geometry.columns)))
    new = extractor.extract(
        np.stack([part_pixels(seed) for seed in range(500, 508)]).astype(np.float32) / np.float32(255)
    )
    thresholds = np.array(
        [
            [2 * draft[r][c].mahalanobis(new[:, r, c]).max() for c in range(geometry.columns)]
            for r in range(geometry.rows)
        ]
    )
    thresholds[0, 0] = np.inf
    write_group(model, "part", geometry, fitted, thresholds)
    write_group(model, "other part", geometry, fitted[:5], thresholds)
    finish(run)
    return Published(GaussianMap.open(model.url), extractor, thresholds)


@pytest.fixture(scope="module")
def scorer(published: Published) -> ImageScorer:
    return ImageScorer(published.gaussian_map, "part", device="cpu")


def assert_same(one: Scores, other: Scores) -> None:
    for name in ("anomaly_score", "margin", "is_anomalous", "worst_row", "worst_col", "anomaly_maps"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def as_16_bit(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return the same grey levels with 65535 for white."""
    return pixels.astype(np.uint16) * 257


def with_alpha(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])


def test_scores_have_the_shapes_and_types_of_their_meaning(published: Published, scorer: ImageScorer) -> None:
    scores = scorer.score([pixels_of_good(seed) for seed in range(NEW)])
    rows, columns = published.thresholds.shape
    assert scores.anomaly_maps.shape == (NEW, rows, columns)
    for values in (scores.anomaly_score, scores.margin, scores.anomaly_maps):
        assert values.dtype == np.float64
    assert scores.worst_row.dtype == scores.worst_col.dtype == np.int16
    assert scores.is_anomalous.dtype == np.bool_
    assert scores.margin.shape == scores.worst_row.shape == scores.is_anomalous.shape == (NEW,)


def test_a_score_is_the_largest_distance_of_the_map_and_the_margin_the_largest_ratio(
    published: Published, scorer: ImageScorer
) -> None:
    scores = scorer.score([part_pixels(seed, defect=seed % 2 == 0) for seed in range(2000, 2006)])
    ratios = scores.anomaly_maps / published.thresholds
    np.testing.assert_array_equal(scores.anomaly_score, scores.anomaly_maps.max(axis=(1, 2)))
    np.testing.assert_array_equal(scores.margin, ratios.max(axis=(1, 2)))
    np.testing.assert_array_equal(ratios[np.arange(6), scores.worst_row, scores.worst_col], scores.margin)
    np.testing.assert_array_equal(scores.is_anomalous, scores.margin >= 1)


def test_defects_are_anomalous_and_good_images_are_not(scorer: ImageScorer) -> None:
    scores = scorer.score([part_pixels(seed, defect=defect) for defect in (False, True) for seed in range(700, 705)])
    assert scores.is_anomalous.tolist() == [False] * 5 + [True] * 5


def test_the_map_is_high_where_the_defect_is(scorer: ImageScorer) -> None:
    whole = pixels_of_good(0)
    spoilt = whole.copy()
    spoilt[4:14, 44:60] = 255
    before, after = scorer.score([whole, spoilt]).anomaly_maps
    rows, columns = before.shape
    row, column = np.unravel_index(np.argmax(after - before), before.shape)
    assert row < rows / 2
    assert column >= columns / 2


@pytest.mark.parametrize("grey", [False, True], ids=["RGB", "grey"])
def test_one_image_has_one_score_whatever_form_it_comes_in(tmp_path: Path, scorer: ImageScorer, grey: bool) -> None:
    arrays = [grey_of(seed) if grey else pixels_of_good(seed) for seed in range(NEW)]
    files = [png(pixels) for pixels in arrays]
    paths = []
    for number, content in enumerate(files):
        paths.append(tmp_path / f"new part {number}.png")
        paths[-1].write_bytes(content)
    expected = scorer.score(arrays)
    forms: list[list[ImageLike]] = [
        list(files),
        list(paths),
        [str(path) for path in paths],
        [f"file://{path}" for path in paths],
        [Image.fromarray(pixels) for pixels in arrays],
        [Image.open(BytesIO(content)) for content in files],
        [pixels if number % 2 else files[number] for number, pixels in enumerate(arrays)],
    ]
    for form in forms:
        assert_same(scorer.score(form), expected)


def test_grey_scores_as_rgb_of_three_equal_channels(scorer: ImageScorer) -> None:
    assert_same(scorer.score([grey_of(0)]), scorer.score([np.repeat(grey_of(0)[..., np.newaxis], 3, axis=2)]))


def test_transparency_does_not_change_a_score(scorer: ImageScorer) -> None:
    assert_same(scorer.score([with_alpha(pixels_of_good(0))]), scorer.score([pixels_of_good(0)]))


def test_sixteen_bit_images_score_alike_in_every_form_and_as_their_eight_bits(scorer: ImageScorer) -> None:
    arrays = [as_16_bit(grey_of(seed)) for seed in range(3)]
    expected = scorer.score([grey_of(seed) for seed in range(3)])
    # The images have the size that the backbone sees, so that no resize rounds.
    assert_same(scorer.score(arrays), expected)
    assert_same(scorer.score([png(pixels) for pixels in arrays]), expected)
    assert_same(scorer.score([png(pixels, "TIFF") for pixels in arrays]), expected)
    assert_same(scorer.score([Image.open(BytesIO(png(pixels))) for pixels in arrays]), expected)


def test_scoring_leaves_arrays_and_pillow_images_alone(scorer: ImageScorer) -> None:
    pixels = pixels_of_good(0)
    pixels.flags.writeable = False
    image = Image.fromarray(pixels)
    scorer.score([pixels, image])
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_images_of_any_size_are_scored(scorer: ImageScorer) -> None:
    scores = scorer.score([part_pixels(0, size=size) for size in (16, 64, 200)])
    assert np.isfinite(scores.anomaly_score).all()


def test_no_images_have_no_scores(published: Published, scorer: ImageScorer) -> None:
    scores = scorer.score([])
    assert scores.anomaly_score.shape == scores.margin.shape == scores.is_anomalous.shape == (0,)
    assert scores.anomaly_maps.shape == (0, *published.thresholds.shape)
    assert scores.pixel_maps(30, 20).shape == (0, 20, 30)


def test_pixel_maps_have_the_size_that_is_asked_for(scorer: ImageScorer) -> None:
    maps = scorer.score([pixels_of_good(0), pixels_of_good(1)]).pixel_maps(30, 20)
    assert maps.shape == (2, 20, 30)
    assert maps.dtype == np.float32


def test_pixel_maps_keep_the_range_and_the_place_of_their_map() -> None:
    anomaly_map = np.zeros((4, 5))
    anomaly_map[1, 3] = 7.0
    anomaly_map.flags.writeable = False
    pixel_map = upsample(anomaly_map, 50, 40)
    assert pixel_map.shape == (40, 50)
    assert (pixel_map.min(), pixel_map.max()) == (0.0, pytest.approx(7.0, rel=0.2))
    row, column = np.unravel_index(np.argmax(pixel_map), pixel_map.shape)
    assert (int(row) // 10, int(column) // 10) == (1, 3)


def test_a_constant_map_is_a_constant_pixel_map() -> None:
    np.testing.assert_allclose(upsample(np.full((14, 14), 3.5), 321, 123), 3.5, rtol=1e-6)


def test_upsampling_is_bilinear_between_the_centres_of_positions() -> None:
    # Two positions over four pixels: centres at 1 and 3, pixels at 0.5, 1.5, 2.5, 3.5.
    np.testing.assert_allclose(upsample(np.array([[0.0, 4.0]]), 4, 1), [[0.0, 1.0, 3.0, 4.0]], rtol=1e-6)


@pytest.mark.parametrize("content", [b"", b"no image", png(part_pixels(0))[:100]], ids=["empty", "text", "truncated"])
def test_bytes_that_are_not_an_image_are_undecodable(scorer: ImageScorer, content: bytes) -> None:
    with pytest.raises(UndecodableError):
        scorer.score([pixels_of_good(0), content])


def test_an_array_without_a_white_is_undecodable(scorer: ImageScorer) -> None:
    with pytest.raises(UndecodableError, match="32-bit pixels"):
        scorer.score([pixels_of_good(0)[..., 0].astype(np.float32)])


def test_a_file_that_is_not_there_is_an_os_error(scorer: ImageScorer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scorer.score([tmp_path / "missing.png"])


@pytest.mark.parametrize("group", [None, "third part"])
def test_a_group_must_be_named_and_there(published: Published, group: str | None) -> None:
    with pytest.raises(GaussianMapError, match="'other part', 'part'"):
        ImageScorer(published.gaussian_map, group)


def test_groups_score_differently(published: Published, scorer: ImageScorer) -> None:
    other = ImageScorer(published.gaussian_map, "other part", device="cpu")
    assert other.score([pixels_of_good(0)]).anomaly_score != scorer.score([pixels_of_good(0)]).anomaly_score


def test_other_weights_than_the_maps_are_an_error(tmp_path: Path, published: Published) -> None:
    run, geometry = Directory.at(tmp_path), published.extractor.geometry
    model = new_map(run, describe(geometry, CONFIG.features, "0" * 64))
    write_group(model, "part", geometry, np.zeros(geometry.array_shape(3)), published.thresholds)
    finish(run)
    with pytest.raises(WeightsError, match="000000000000 is needed"):
        ImageScorer(GaussianMap.open(model.url))


def test_new_images_are_extracted_as_the_map_was_but_for_device_and_place_of_weights(published: Published) -> None:
    config = scoring_config(published.gaussian_map, Config(), weights="elsewhere.pth", device="cpu").features
    assert config.model_dump(exclude={"weights", "device"}) == CONFIG.features.model_dump(exclude={"weights", "device"})
    assert (config.weights, config.device) == ("elsewhere.pth", "cpu")
    assert scoring_config(published.gaussian_map, Config()).features.weights == "random"


def write_block(folder: Path) -> list[ImageRef]:
    for seed in range(NEW):
        (folder / f"{seed}.png").write_bytes(png(pixels_of_good(seed)))
    return [ImageRef(seed, str(folder / f"{seed}.png")) for seed in range(NEW)]


def test_a_block_scores_as_the_same_list_of_images(tmp_path: Path, published: Published, scorer: ImageScorer) -> None:
    block = write_block(tmp_path)
    config = scoring_config(published.gaussian_map, Config(), device="cpu")
    scores, outcomes = score_block(block, "part", published.gaussian_map, published.extractor, config, readers=2)
    assert all(outcome.is_readable for outcome in outcomes)
    assert_same(scores, scorer.score([ref.path for ref in block]))


def test_an_unreadable_image_in_a_block_has_a_reason_and_changes_no_other_score(
    tmp_path: Path, published: Published
) -> None:
    block = write_block(tmp_path)
    config = scoring_config(published.gaussian_map, Config(), device="cpu")
    expected, _ = score_block(block, "part", published.gaussian_map, published.extractor, config, readers=2)
    Path(block[4].path).write_bytes(b"no image")
    scores, outcomes = score_block(block, "part", published.gaussian_map, published.extractor, config, readers=2)
    assert [outcome.row for outcome in outcomes if not outcome.is_readable] == [4]
    others = np.arange(NEW) != 4
    np.testing.assert_array_equal(scores.anomaly_maps[others], expected.anomaly_maps[others])


def test_scores_follow_from_the_stored_features_with_the_map_alone(tmp_path: Path, published: Published) -> None:
    block = write_block(tmp_path)
    config: Any = scoring_config(published.gaussian_map, Config(), device="cpu")
    features, _ = extract_block(block, published.extractor, inputs=config.input, features=config.features, readers=1)
    scores, _ = score_block(block, "part", published.gaussian_map, published.extractor, config, readers=1)
    np.testing.assert_array_equal(scores.anomaly_maps, published.gaussian_map.distances("part", features))

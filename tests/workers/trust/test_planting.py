"""Planted defects: of the size and contrast asked for, inside the image, and nowhere but under their mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.archives import part_pixels, png
from workers.images.decode import decode_image
from workers.trust.planting import (
    BLOB,
    CUT_PASTE,
    KINDS,
    MAX_ASPECT,
    PLACE_CELLS,
    SCRATCH,
    STAIN,
    Defect,
    Pixels,
    Scene,
    plant,
    planted_view,
)

HEIGHT, WIDTH = 200, 320
# Pillow rounds an 8-bit image after resizing each axis; the change is resized in floating point.
EIGHT_BIT_ROUNDING = 2.5 / 255


def texture(height: int = HEIGHT, width: int = WIDTH, *, seed: int = 0) -> Pixels:
    """Return a mid-grey image with colour noise, which has room for darker and for lighter."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(0.5, 0.08, (height, width, 3)), 0, 1).astype(np.float32)


def generator(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contrast", [0.1, 0.2, 0.4])
def test_a_defect_has_the_contrast_asked_for_over_its_own_pixels(kind: str, contrast: float) -> None:
    pixels = np.repeat(texture(), 1, axis=0)
    pixels[:, : WIDTH // 2] -= 0.3  # so that a patch of the other half differs enough
    pixels = np.clip(pixels, 0, 1)
    scene = Scene.of(pixels)
    planting = plant(scene, Defect(kind, 0.08, contrast), generator())
    grey = (planting.on(pixels) - pixels).mean(axis=2)[planting.full_mask(HEIGHT, WIDTH)]
    reached = float(np.sqrt(np.mean(grey.astype(np.float64) ** 2))) / scene.span
    assert planting.contrast == pytest.approx(reached, rel=1e-3)
    assert reached == pytest.approx(contrast, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    size=st.floats(0.001, 1.0),
    contrast=st.floats(0.01, 2.0),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_is_planted_lies_inside_changes_only_its_box_and_stays_in_range(
    kind: str, size: float, contrast: float, height: int, width: int, seed: int
) -> None:
    pixels = texture(height, width, seed=seed % 7)
    planting = plant(Scene.of(pixels), Defect(kind, size, contrast), generator(seed))
    rows, columns = planting.mask.shape
    assert 0 <= planting.top <= height - rows
    assert 0 <= planting.left <= width - columns
    assert planting.mask.any()
    planted = planting.on(pixels)
    outside = np.ones((height, width), dtype=bool)
    outside[planting.top : planting.top + rows, planting.left : planting.left + columns] = False
    np.testing.assert_array_equal(planted[outside], pixels[outside])
    assert planted.min() >= -1e-6
    assert planted.max() <= 1 + 1e-6
    assert np.isfinite(planting.contrast)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.04, 0.16, 0.5])
def test_the_size_is_the_length_in_shares_of_the_shorter_side(kind: str, size: float) -> None:
    for seed in range(10):
        planting = plant(Scene.of(texture()), Defect(kind, size, 0.4), generator(seed))
        assert max(planting.mask.shape) == round(size * HEIGHT)
        # The extent of the mask itself, across which a slanted scratch or a dented stain is shorter than its box.
        rows, columns = np.nonzero(planting.mask)
        diagonal = np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)
        assert 0.6 * size * HEIGHT <= diagonal <= 1.5 * size * HEIGHT


def test_the_smallest_defect_is_one_pixel() -> None:
    for kind in KINDS:
        planting = plant(Scene.of(texture()), Defect(kind, 0.0001, 0.4), generator())
        assert planting.mask.shape == (1, 1)
        assert planting.mask.all()


def test_the_same_generator_plants_the_same_defect_and_another_one_another() -> None:
    scene = Scene.of(texture())
    for kind in KINDS:
        first, again, other = (plant(scene, Defect(kind, 0.1, 0.2), generator(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first.change, again.change)
        assert (first.top, first.left) == (again.top, again.left)
        assert (first.top, first.left) != (other.top, other.left)


@pytest.mark.parametrize("kind", [SCRATCH, BLOB, STAIN])
def test_contrasts_of_one_generator_share_place_shape_and_direction(kind: str) -> None:
    scene = Scene.of(texture())
    faint, strong = (plant(scene, Defect(kind, 0.1, contrast), generator()) for contrast in (0.1, 0.4))
    assert (faint.top, faint.left) == (strong.top, strong.left)
    np.testing.assert_array_equal(faint.mask, strong.mask)
    assert np.sign(faint.change.sum()) == np.sign(strong.change.sum())
    assert np.abs(strong.change).sum() > np.abs(faint.change).sum()


def test_the_image_is_not_changed() -> None:
    pixels = texture()
    pixels.flags.writeable = False
    view = texture(64, 64)
    view.flags.writeable = False
    for kind in KINDS:
        planting = plant(Scene.of(pixels), Defect(kind, 0.1, 0.4), generator())
        assert not np.array_equal(planting.on(pixels), pixels)
        assert not np.array_equal(planted_view(view, planting, height=HEIGHT, width=WIDTH), view)


@pytest.mark.parametrize(("grey", "direction"), [(0.0, 1), (1.0, -1)])
def test_where_there_is_no_room_to_one_side_the_change_goes_to_the_other(grey: float, direction: int) -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), grey, np.float32)
    pixels[:2] = 1 - grey  # a span; rows at the rim are seldom under a defect
    pixels[-4:] = 1 - grey
    for seed in range(8):
        planting = plant(Scene.of(pixels), Defect(BLOB, 0.05, 0.2), generator(seed))
        centre = planting.change[planting.mask.shape[0] // 2, planting.mask.shape[1] // 2]
        if pixels[planting.top + planting.mask.shape[0] // 2, planting.left, 0] == grey:
            assert (np.sign(centre) == direction).all()


def test_a_patch_is_a_lying_or_standing_rectangle_cut_from_the_same_image() -> None:
    pixels = texture()
    # So much contrast that the patch is pasted without blending.
    shapes = set()
    for seed in range(12):
        planting = plant(Scene.of(pixels), Defect(CUT_PASTE, 0.1, 5.0), generator(seed))
        rows, columns = planting.mask.shape
        shapes.add(rows > columns)
        assert planting.mask.all()
        assert max(rows, columns) / min(rows, columns) <= MAX_ASPECT + 0.5
        pasted = planting.on(pixels)[planting.top, planting.left]
        assert (np.abs(pixels - pasted).max(axis=2) < 1e-6).any()
    assert shapes == {True, False}


def test_a_patch_of_an_image_of_one_colour_reaches_no_contrast() -> None:
    planting = plant(Scene.of(np.full((40, 40, 3), 0.5, np.float32)), Defect(CUT_PASTE, 0.2, 0.4), generator())
    assert planting.contrast == 0
    assert not planting.change.any()


def test_a_scratch_is_thin_a_blob_round_and_a_stain_neither() -> None:
    share = {
        kind: np.mean([plant(Scene.of(texture()), Defect(kind, 0.5, 0.4), generator(s)).mask.mean() for s in range(8)])
        for kind in (SCRATCH, BLOB, STAIN)
    }
    assert share[SCRATCH] < 0.15
    assert share[BLOB] == pytest.approx(np.pi / 4 * 0.9, rel=0.03)  # opacity of a tenth at 0.9 of the squared radius
    assert 0.3 < share[STAIN] < 0.8


def test_defects_lie_where_the_image_has_detail() -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)
    pixels[:, WIDTH // 2 :] = texture(HEIGHT, WIDTH - WIDTH // 2)
    scene = Scene.of(pixels)
    for seed in range(40):
        planting = plant(scene, Defect(BLOB, 0.02, 0.4), generator(seed))
        assert planting.left + planting.mask.shape[1] / 2 >= WIDTH // 2 - WIDTH / PLACE_CELLS


def test_on_an_image_without_any_detail_defects_lie_anywhere() -> None:
    scene = Scene.of(np.full((HEIGHT, WIDTH, 3), 0.5, np.float32))
    assert len(scene.places) == PLACE_CELLS**2


def test_the_span_is_that_of_nearly_all_pixels_and_never_nothing() -> None:
    ramp = np.repeat(np.linspace(0.2, 0.6, 1000, dtype=np.float32), 10).reshape(100, 100, 1).repeat(3, axis=2)
    assert Scene.of(ramp).span == pytest.approx(0.98 * 0.4, rel=0.01)
    ramp[0, 0] = 1.0  # a hot pixel
    assert Scene.of(ramp).span == pytest.approx(0.98 * 0.4, rel=0.01)
    assert Scene.of(np.zeros((9, 9, 3), np.float32)).span == pytest.approx(1 / 255)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    size=st.floats(0.01, 0.6),
    height=st.integers(20, 300),
    width=st.integers(20, 300),
    view_size=st.sampled_from([32, 64, 128]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_view_is_that_of_the_planted_image_resized(
    kind: str, size: float, height: int, width: int, view_size: int, seed: int
) -> None:
    full = np.round(texture(height, width) * 255).astype(np.uint8)
    pixels = (full / np.float32(255)).astype(np.float32)
    planting = plant(Scene.of(pixels), Defect(kind, size, 0.4), generator(seed))
    view = decode_image(png(full), image_size=view_size, max_pixels=10**6).pixels
    found = planted_view(view, planting, height=height, width=width)
    planted = Image.fromarray(np.round(np.clip(planting.on(pixels), 0, 1) * 255).astype(np.uint8))
    resized = np.asarray(planted.resize((view_size, view_size), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(found, resized, atol=EIGHT_BIT_ROUNDING)


def test_away_from_the_defect_the_view_keeps_every_bit() -> None:
    full = part_pixels(5, size=256)
    pixels = (full / np.float32(255)).astype(np.float32)
    view = decode_image(png(full), image_size=64, max_pixels=10**6).pixels
    planting = plant(Scene.of(pixels), Defect(BLOB, 0.1, 0.4), generator())
    found = planted_view(view, planting, height=256, width=256)
    touched = (found != view).any(axis=2)
    rows, columns = np.nonzero(touched)
    assert touched.any()
    # Four pixels of the image make one of the view, whose filter reaches one further.
    assert planting.top / 4 - 2 <= rows.min() <= rows.max() <= (planting.top + planting.mask.shape[0]) / 4 + 1
    assert planting.left / 4 - 2 <= columns.min() <= columns.max() <= (planting.left + planting.mask.shape[1]) / 4 + 1


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError, match="dent"):
        plant(Scene.of(texture()), Defect("dent", 0.1, 0.4), generator())

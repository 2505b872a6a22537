"""Image-level structure: products and poses are seen, noise, drift and defects are not taken for them."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from workers.features.arrays import ArrayRef
from workers.guard.structure import MIN_SAMPLE, SAMPLE, Structure, describe_structure, gram, gram_row, sample_images
from workers.storage.directory import Directory

POSITIONS, CHANNELS = 9, 16


def structure(factors: NDArray[np.float64], *, noise: float = 0.3, kept: NDArray[np.bool_] | None = None) -> Structure:
    """Return the structure of images that move with factors (images, k), each in its own random direction."""
    rng = np.random.default_rng(11)
    directions = rng.normal(size=(factors.shape[1], POSITIONS, CHANNELS))
    values = np.einsum("nk,kpc->npc", factors, directions) + noise * rng.normal(
        size=(len(factors), POSITIONS, CHANNELS)
    )
    found = describe_structure(gram(values), np.ones(len(factors), bool) if kept is None else kept)
    assert found is not None
    return found


def two_kinds(images: int, minority: float) -> NDArray[np.float64]:
    return np.where(np.arange(images) < minority * images, 1.0, -1.0)[:, np.newaxis]


@pytest.mark.parametrize("minority", [0.5, 0.2, 0.05])
def test_two_kinds_are_tight_and_counted(minority: float) -> None:
    found = structure(two_kinds(200, minority))
    assert found.tightness > 0.9
    assert found.between > 0.5
    assert found.minority == pytest.approx(minority)
    assert found.kept_minority == pytest.approx(minority)


def test_a_kind_that_was_rejected_is_not_among_the_kept() -> None:
    factors = two_kinds(200, 0.3)
    found = structure(factors, kept=factors[:, 0] < 0)
    assert found.minority == pytest.approx(0.3)
    assert found.kept_minority == 0.0


def test_nothing_kept_is_no_kind_kept() -> None:
    assert structure(two_kinds(100, 0.3), kept=np.zeros(100, bool)).kept_minority == 0.0


@pytest.mark.parametrize("kinds", [2, 3, 4])
def test_even_products_lie_at_one_distance_from_their_mean(kinds: int) -> None:
    found = structure(np.eye(kinds)[np.arange(240) % kinds] * 3)
    assert found.leading <= kinds - 1
    assert found.kurtosis < 0.2


def test_a_part_turned_freely_moves_on_a_ring() -> None:
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 200)
    found = structure(np.stack([np.cos(angle), np.sin(angle)], axis=1))
    assert found.leading == 2
    assert found.kurtosis < 0.1


@pytest.mark.parametrize(
    ("factors", "kurtosis"),
    [
        (np.random.default_rng(1).normal(size=(4000, 1)), 1.0),
        (np.random.default_rng(2).normal(size=(4000, 2)), 1.0),
        (np.linspace(-1, 1, 4000)[:, np.newaxis], 0.4),
    ],
    ids=["normal", "normal in two dimensions", "even drift"],
)
def test_the_kurtosis_of_known_laws(factors: NDArray[np.float64], kurtosis: float) -> None:
    rng = np.random.default_rng(3)
    chosen = factors[rng.choice(len(factors), SAMPLE, replace=False)]
    assert structure(chosen, noise=0.01).kurtosis == pytest.approx(kurtosis, abs=0.15)


def test_noise_has_no_direction() -> None:
    assert structure(np.zeros((200, 1)), noise=1.0).share < 0.2


def test_positions_weigh_the_same_whatever_their_scale_and_a_flat_one_nothing() -> None:
    values = np.random.default_rng(4).normal(size=(60, 3, 5))
    scaled = values * np.array([1.0, 1000.0, 0.01])[:, np.newaxis]
    np.testing.assert_allclose(gram(scaled), gram(values), atol=1e-12)
    flat = np.concatenate([values, np.ones((60, 1, 5))], axis=1)
    np.testing.assert_array_equal(gram(flat), gram(values))


def test_a_small_sample_and_equal_images_are_not_described() -> None:
    small = gram(np.random.default_rng(5).normal(size=(MIN_SAMPLE - 1, 4, 4)))
    assert describe_structure(small, np.ones(MIN_SAMPLE - 1, bool)) is None
    assert describe_structure(gram(np.ones((60, 4, 4))), np.ones(60, bool)) is None


def test_the_sample_is_bounded_ordered_and_of_images_that_take_part() -> None:
    measured = np.random.default_rng(6).random(5000) < 0.8
    rows = sample_images(measured)
    assert len(rows) == SAMPLE
    assert measured[rows].all()
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sample_images(measured))
    np.testing.assert_array_equal(sample_images(measured[:400]), np.flatnonzero(measured[:400]))


def test_rows_of_a_stored_array_sum_to_the_gram_matrix_of_the_sample(tmp_path: Path) -> None:
    values = np.random.default_rng(7).normal(size=(70, 3, 4, 5)).astype(np.float16)
    store = zarr.open_group(str(tmp_path), mode="w")
    store.create_array("all", data=values, chunks=(16, 1, 4, 5))
    features = ArrayRef(Directory.at(str(tmp_path)), "", "all")
    sample = np.array([0, 3, 15, 16, 40, 69])
    total = sum(gram_row(features, row, sample) for row in range(3))
    np.testing.assert_allclose(total, gram(values[sample].reshape(6, 12, 5)), rtol=1e-12, atol=1e-12)

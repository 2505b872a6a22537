"""The distance to the second nearest reference image: that of brute force, whatever it is computed from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.gaussian.neighbours import (
    REFERENCES,
    choose_references,
    neighbour_distances,
    neighbour_distances_of_products,
)
from workers.gaussian.products import inner_products

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


def drawn(count: int, channels: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(3.0, 1.0, (count, channels))


def brute_force(samples: Array, references: Array, own: Rows | None = None) -> list[float]:
    """Return the second smallest distance to a reference other than a sample's own; the only one, if there is one."""
    found = []
    for row, sample in enumerate(samples):
        others = references if own is None or own[row] < 0 else np.delete(references, own[row], axis=0)
        apart = sorted(float(np.sqrt(((sample - other) ** 2).sum())) for other in others)
        found.append(apart[:2][-1] if apart else np.inf)
    return found


@given(
    count=st.integers(1, 30),
    references=st.integers(0, 30),
    channels=st.integers(1, 12),
    seed=st.integers(0, 1000),
    shift=st.sampled_from([0.0, 10.0, 1000.0]),
)
@settings(max_examples=60, deadline=None)
def test_distances_are_those_of_brute_force(
    count: int, references: int, channels: int, seed: int, shift: float
) -> None:
    samples, near = drawn(count, channels, seed) + shift, drawn(references, channels, seed + 1) + shift
    np.testing.assert_allclose(neighbour_distances(samples, near), brute_force(samples, near), rtol=1e-6)


@given(references=st.integers(1, 30), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_an_image_is_measured_without_itself(references: int, seed: int) -> None:
    samples = drawn(30, 8, seed)
    chosen = np.sort(np.random.default_rng(seed).choice(30, references, replace=False))
    own = np.full(30, -1)
    own[chosen] = np.arange(references)
    found = neighbour_distances(samples, samples[chosen], own)
    np.testing.assert_allclose(found, brute_force(samples, samples[chosen], own), rtol=1e-6)
    # A reference that is measured as it is finds itself, so its distance is that to the nearest other one.
    if references > 2:
        assert (neighbour_distances(samples[chosen], samples[chosen]) < found[chosen]).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 3.0, 50.0])
def test_inner_products_give_the_same_distances_as_features(dtype: type[np.floating], offset: float) -> None:
    samples = (drawn(60, 100) + offset).astype(dtype)
    references, measured = np.arange(1, 60, 3), np.arange(60)
    own = np.full(60, -1)
    own[references] = np.arange(len(references))
    np.testing.assert_allclose(
        neighbour_distances_of_products(inner_products(samples), references, measured),
        neighbour_distances(samples, samples[references], own),
        rtol=1e-6,
    )


def test_only_the_measured_images_are_returned_in_their_order() -> None:
    products, references = inner_products(drawn(20, 30)), np.arange(5, 15)
    everything = neighbour_distances_of_products(products, references, np.arange(20))
    some = np.array([14, 0, 7])
    np.testing.assert_array_equal(neighbour_distances_of_products(products, references, some), everything[some])


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.0])
def test_equal_images_have_no_distance_from_one_another(value: float) -> None:
    samples = np.full((6, 10), value, np.float16)
    assert (neighbour_distances(samples, samples) == 0).all()
    assert (neighbour_distances(samples, samples, np.arange(6)) == 0).all()
    assert (neighbour_distances_of_products(inner_products(samples), np.arange(6), np.arange(6)) == 0).all()


def test_three_like_images_support_one_another_and_two_do_not() -> None:
    samples = drawn(40, 20)
    for like in (2, 3):
        samples[:like] = 100.0 + 0.01 * drawn(like, 20, seed=like)
        found = neighbour_distances(samples, samples, np.arange(40))
        assert (found[:like] > 100).all() == (like == 2)
        assert (found[:like] < 1).all() == (like == 3)


def test_with_one_other_reference_the_distance_is_to_that_one_and_with_none_infinite() -> None:
    samples = drawn(3, 4)
    apart = np.linalg.norm(samples - samples[1], axis=1)
    found = neighbour_distances(samples, samples[[1]], np.array([-1, 0, -1]))
    np.testing.assert_allclose(found, [apart[0], np.inf, apart[2]])
    assert np.isinf(neighbour_distances(samples, samples[:0])).all()
    products = inner_products(samples)
    np.testing.assert_allclose(neighbour_distances_of_products(products, np.array([1]), np.arange(3)), found)
    assert np.isinf(neighbour_distances_of_products(products, np.array([], np.int64), np.arange(3))).all()


def test_arguments_stay_as_they_are() -> None:
    samples = drawn(20, 30)
    products = inner_products(samples)
    kept = samples.copy(), products.copy()
    neighbour_distances(samples, samples, np.arange(20))
    neighbour_distances_of_products(products, np.arange(10), np.arange(20))
    np.testing.assert_array_equal(samples, kept[0])
    np.testing.assert_array_equal(products, kept[1])


@pytest.mark.parametrize("fitted", [0, 1, 5, REFERENCES, REFERENCES + 1, 700, 10_000])
def test_references_are_all_fitted_images_or_spread_evenly_over_them(fitted: int) -> None:
    mask = np.zeros(2 * fitted + 3, bool)
    mask[np.random.default_rng(fitted).choice(len(mask), fitted, replace=False)] = True
    before = mask.copy()
    chosen = choose_references(mask)
    assert chosen.sum() == min(fitted, REFERENCES)
    assert not chosen[~mask].any()
    np.testing.assert_array_equal(mask, before)
    np.testing.assert_array_equal(choose_references(mask), chosen)
    steps = np.diff(np.flatnonzero(chosen[mask]))
    assert not len(steps) or np.ptp(steps) <= 1


def test_fewer_references_can_be_asked_for() -> None:
    assert np.flatnonzero(choose_references(np.ones(10, bool), 3)).tolist() == [1, 5, 8]

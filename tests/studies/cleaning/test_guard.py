"""What the product says about a clean set, from Gram matrices."""

import numpy as np
import pytest

from pipeline.judging.strategies.base import AMBIGUOUS
from studies.cleaning.gram import Gram, products_of
from studies.cleaning.guard import examine_archive, listen
from studies.cleaning.methods import NONE, Method
from studies.cleaning.passes import Archive
from workers.verdict.near_duplicates import lattice, sketch

GRID, CHANNELS, IMAGES = (3, 4), 96, 80


def archive_of(*, second_product: int = 0, outliers: int = 0, copies: int = 0) -> Archive:
    """Return an archive whose last images show another product, or else are outliers, or copies of others."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(IMAGES, GRID[0] * GRID[1], CHANNELS))
    values[IMAGES - second_product :] += 6.0
    values[IMAGES - outliers :] *= 2.0
    values[IMAGES - copies :] = values[:copies] + 1e-3 * rng.normal(size=values[:copies].shape)
    products = np.empty((values.shape[1], IMAGES, IMAGES))
    products_of(values, products)
    sketches = sketch(values.reshape(IMAGES, *GRID, CHANNELS)[:, lattice(GRID[0])])
    return Archive(Gram(products, CHANNELS), np.arange(IMAGES), GRID, sketches)


def test_contamination_is_estimated_and_its_interval_covers() -> None:
    archive, config = archive_of(outliers=8), Method("grow").config()
    found = examine_archive(archive, archive.clean(config), config).contamination
    assert found is not None
    assert found.lower <= 0.1 <= found.upper


def test_two_products_stop() -> None:
    archive, config = archive_of(second_product=40), Method(NONE).config()
    said = listen(archive, archive.clean(config), config)
    assert "kinds" in {finding.condition for finding in said.examination.findings}
    assert said.stops
    assert said.anything


def test_near_duplicates_are_warned_about_where_each_is_fitted() -> None:
    archive, config = archive_of(copies=6), Method("paire").config()
    warnings = listen(archive, archive.clean(config), config).warnings
    assert any(sentence.startswith("6 images are near-duplicates") for sentence in warnings)


@pytest.mark.parametrize("strategy", ["paire", "grow"])
def test_what_the_ledger_says_is_said(strategy: str) -> None:
    archive, config = archive_of(outliers=8), Method(strategy).config()
    cleaning = archive.clean(config)
    said = listen(archive, cleaning, config)
    is_unclear = cleaning.trimming.stop_reason == AMBIGUOUS
    assert any("no clear boundary" in sentence for sentence in said.warnings) == is_unclear

"""Features and Gram matrices in a folder: made once, for these images and this configuration."""

from pathlib import Path

import numpy as np
import pytest

from schemas.errors import SourceError
from studies.cleaning.images import extract, plant_into, prepare_gram
from studies.cleaning.methods import Method
from tests.support.archives import TINY_SETTINGS, tiny_config, write_parts
from workers.verdict.near_duplicates import lattice, sketch


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    """Return images by made-up digests that do not sort as the paths do."""
    write_parts(tmp_path / "parts", 4)
    return {f"{9 - number}": str(path) for number, path in enumerate(sorted((tmp_path / "parts").glob("*.png")))}


def test_products_are_those_of_the_features_about_their_mean(paths: dict[str, str], tmp_path: Path) -> None:
    file = prepare_gram(paths, tmp_path / "grams", tiny_config())
    gram, features = file.matrices, extract(list(paths.values()), tiny_config())
    assert file.grid == features.shape[1:3]
    assert gram.channels == features.shape[3]
    # The mean is that of all rows, planted ones too.
    planted, _ = plant_into([paths[digest] for digest in file.ground], file.ground, tiny_config())
    everything = np.concatenate([features, planted]).reshape(12, -1, gram.channels)[:, 5].astype(np.float64)
    everything -= everything.mean(axis=0)
    rows = np.concatenate([file.rows(paths), file.planted_rows(file.ground).ravel()])
    np.testing.assert_allclose(gram.products[5][np.ix_(rows, rows)], everything @ everything.T, rtol=1e-3, atol=1e-9)


def test_sketches_are_those_of_the_features(paths: dict[str, str], tmp_path: Path) -> None:
    file = prepare_gram(paths, tmp_path / "grams", tiny_config())
    features = extract(list(paths.values()), tiny_config())
    expected = sketch(features[:, lattice(features.shape[1])])
    np.testing.assert_allclose(file.sketches[file.rows(paths)], expected, rtol=1e-3, atol=1e-3)


def test_rows_of_planted_images_have_other_features(paths: dict[str, str], tmp_path: Path) -> None:
    file = prepare_gram(paths, tmp_path / "grams", tiny_config())
    planted, contrast = file.planted_rows(file.ground), file.contrast(file.ground)
    assert file.ground == sorted(paths)
    assert (contrast[:, 0] > contrast[:, 1]).all()
    squares = np.einsum("pii->i", file.matrices.products)
    assert len(set(planted.ravel().tolist()) | set(file.rows(paths).tolist())) == len(squares) == 3 * len(paths)
    assert (squares[planted] != squares[file.rows(file.ground), np.newaxis]).all()


def test_they_are_made_once_for_each_configuration(paths: dict[str, str], tmp_path: Path) -> None:
    first = prepare_gram(paths, tmp_path / "grams", tiny_config())
    written = (first.folder / "products.npy").stat().st_mtime_ns
    assert prepare_gram(paths, tmp_path / "grams", tiny_config("trim.eta=3")) == first
    assert (first.folder / "products.npy").stat().st_mtime_ns == written
    assert prepare_gram(paths, tmp_path / "grams", tiny_config("features.seed=1")) != first
    assert prepare_gram(dict(list(paths.items())[:3]), tmp_path / "grams", tiny_config()) != first


@pytest.mark.parametrize("ground", [5, 4])
def test_an_image_without_features_is_named_with_the_reason(
    paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ground: int
) -> None:
    monkeypatch.setattr("studies.cleaning.images.GROUND", ground)
    (tmp_path / "broken.png").write_bytes(b"no image")
    what = "pixels" if ground == 5 else "features"
    with pytest.raises(SourceError, match=rf"broken\.png' has no {what}: .*\. Replace it"):
        prepare_gram(
            {**paths, "99": str(tmp_path / "broken.png")}, tmp_path / "grams", Method("paire").config(TINY_SETTINGS)
        )

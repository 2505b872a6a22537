"""A finished run read back: what it knows, and which features it misses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

from pipeline.commands.clean import clean
from pipeline.commands.recut import recut
from pipeline.run_directory.finished import FinishedRun
from schemas.config import Config, parse_config
from schemas.errors import EXIT_USAGE, PaireError, SourceError
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from tests.pipeline.commands.test_recut import recut_to
from tests.support.archives import part_pixels, png, tiny_config, write_parts
from tests.support.runs import digests
from workers.features.extractor import PatchExtractor

CONFIG = tiny_config("features.pool_kernel=16", "features.pool_stride=16", "input.max_unreadable_fraction=1")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run over a whole chunk of unreadable files and four images after it, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    write_parts(folder / "archive", 3)
    (folder / "archive" / "good_003.png").write_bytes(png(part_pixels(50)[:, :40]))
    for number in range(CHUNK_IMAGES):
        (folder / "archive" / f"empty_{number:03d}.png").write_bytes(b"")
    (folder / "archive" / "notes.txt").write_text("not an image")
    clean(str(folder / "archive"), str(folder / "run"), CONFIG)
    return folder / "run"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """Return a run of one's own."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_finished_run_knows_its_configuration_and_its_inputs(run: Path) -> None:
    finished = FinishedRun.open(str(run))
    assert finished.config == CONFIG
    assert finished.record.config_digest == CONFIG.digest()
    assert len(finished.catalog) == len(finished.manifest) == CHUNK_IMAGES + 5
    assert str(finished.catalog["row"].dtype) == "Int64"


def test_the_grid_is_the_extractor_s_without_building_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: FeatureGeometry = PatchExtractor(CONFIG.features).geometry
    monkeypatch.setattr(PatchExtractor, "__init__", None)  # not to be called
    assert FinishedRun.open(str(run)).geometry == expected


def test_the_outcomes_are_what_reading_the_images_had_found(run: Path) -> None:
    outcomes = FinishedRun.open(str(run)).outcomes["all"]
    assert [outcome.row for outcome in outcomes] == list(range(CHUNK_IMAGES + 4))
    assert {outcome.reason for outcome in outcomes[:CHUNK_IMAGES]} == {"the file is empty (0 bytes)"}
    assert [(outcome.width, outcome.height) for outcome in outcomes[CHUNK_IMAGES:]] == [(64, 64)] * 3 + [(40, 64)]
    assert all(outcome.is_readable for outcome in outcomes[CHUNK_IMAGES:])


def test_chunks_of_unreadable_images_alone_are_not_missed(run: Path) -> None:
    stored = zarr.open_array(run / "features" / "all", mode="r")
    assert stored.nchunks_initialized < stored.nchunks, "zarr did store zeros: the case is not there"
    FinishedRun.open(str(run)).require_features()


def test_options_that_are_set_otherwise_are_named_with_both_values(run: Path) -> None:
    finished = FinishedRun.open(str(run))
    same = ("trim.tau=1.15", "features.pool_kernel=16")
    wanted = parse_config(None, ("trim.eta=2.6", "gaussian.ridge=1", "features.pool_stride=2", *same))
    assert list(finished.changed_options(wanted, ("features", "trim"))) == [
        ("features.pool_stride", 16, 2),
        ("trim.eta", 2.3, 2.6),
    ]
    # What is left at its default is not wanted, though the run had another.
    assert list(finished.changed_options(Config(), ("input", "features", "gaussian", "trim"))) == []


# --- runs that cannot be judged again, through `recut`, to see that it writes nothing


def unfinished(run: Path) -> None:
    (run / "_SUCCESS").unlink()


def without_features(run: Path) -> None:
    shutil.rmtree(run / "features")


def without_a_group(run: Path) -> None:
    shutil.rmtree(run / "features" / "all")


def store_instead(run: Path, part: tuple[slice, ...]) -> None:
    """Put a part of a group's features in the place of them all."""
    features = np.asarray(zarr.open_array(run / "features" / "all", mode="r")[part])
    zarr.open_group(run / "features", mode="r+").create_array("all", data=features, overwrite=True)


def with_features_of_another_shape(run: Path) -> None:
    store_instead(run, (slice(None), slice(1)))


def with_features_of_fewer_images(run: Path) -> None:
    store_instead(run, (slice(1, None),))


def without_a_chunk(run: Path) -> None:
    next(path for path in (run / "features" / "all" / "c").rglob("*") if path.is_file()).unlink()


def without_a_map(run: Path) -> None:
    shutil.rmtree(run / "model")


def without_a_catalog(run: Path) -> None:
    (run / "catalog.parquet").unlink()


def with_another_catalog(run: Path) -> None:
    frame = pd.read_parquet(run / "catalog.parquet")
    frame.assign(reason="").to_parquet(run / "catalog.parquet")


def with_a_torn_manifest(run: Path) -> None:
    (run / "manifest.parquet").write_bytes((run / "manifest.parquet").read_bytes()[:-100])


def with_half_a_manifest(run: Path) -> None:
    pd.read_parquet(run / "manifest.parquet").iloc[::2].to_parquet(run / "manifest.parquet")


def without_a_record(run: Path) -> None:
    (run / "run.json").write_text("{")


def of_another_version(run: Path) -> None:
    (run / "config.yaml").write_text("trim: {gamma: 1}")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (unfinished, r"is not a finished run: _SUCCESS is missing"),
        (without_features, r"/features is missing.*`paire clean`"),
        (without_a_group, r"features of group 'all' are missing"),
        (with_features_of_another_shape, r"have shape \(260, 1, .*say \(260, 2, 2, 128\)"),
        (with_features_of_fewer_images, r"have shape \(259, .*say \(260, "),
        (without_a_chunk, r"are incomplete: 1 chunks are stored, at least 2 expected"),
        (without_a_map, r"/model is not a Gaussian map"),
        (without_a_catalog, r"/catalog\.parquet cannot be read \(FileNotFoundError\)"),
        (with_another_catalog, r"is not the catalog that the run was made of"),
        (with_a_torn_manifest, r"/manifest\.parquet cannot be read"),
        (with_half_a_manifest, r"expected one for each"),
        (without_a_record, r"is not a readable run.*run\.json"),
        (of_another_version, r"another version of paire: unknown option 'trim\.gamma'"),
    ],
)
def test_a_run_that_cannot_be_recut_is_refused_before_anything_is_written(
    run: Path, spoil: Callable[[Path], None], named: str
) -> None:
    spoil(run)
    before = digests(run)
    with pytest.raises(PaireError, match=named):
        recut_to(run, "trim.eta=2.6")
    assert digests(run) == before


@pytest.mark.parametrize("location", ["nowhere", "nosuchprotocol://bucket/run"])
def test_what_is_not_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="finished run") as caught:
        recut(location, Config())
    assert caught.value.exit_code == EXIT_USAGE

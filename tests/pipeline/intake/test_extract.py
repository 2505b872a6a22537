"""The extraction stage on a cluster: what is missing on a worker, and what an earlier command has finished."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import pipeline.intake.extract
import schemas.stores.features
from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.intake.catalog import build_catalog
from pipeline.intake.extract import check_extractor, extract_features
from schemas.errors import DeviceError
from schemas.records.image import ImageOutcome
from schemas.records.run import FEATURES, RECEIPTS
from tests.support.archives import tiny_config, write_parts
from tests.support.runs import quick_config
from workers.features.block import extract_block
from workers.features.extractor import PatchExtractor
from workers.storage.directory import Directory


def test_a_worker_without_the_gpu_that_is_needed_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = tiny_config("features.device=cuda")
    with open_cluster(config.cluster) as cluster, pytest.raises(DeviceError, match=r"^features\.device = 'cuda'"):
        check_extractor(cluster, config, "")


def test_of_several_workers_the_one_that_lacks_it_is_named() -> None:
    client = MagicMock()
    client.run.return_value = {"tcp://a:1": None, "tcp://b:2": DeviceError("no CUDA device")}
    with pytest.raises(DeviceError, match=r"^worker tcp://b:2: no CUDA device$"):
        check_extractor(Cluster(client, 2, 1, {"a": 1, "b": 1}), tiny_config(), "")


def test_what_nobody_expected_of_a_worker_is_raised_as_it_is() -> None:
    client = MagicMock()
    client.run.return_value = {"tcp://a:1": ZeroDivisionError("odd")}
    with pytest.raises(ZeroDivisionError, match="odd"):
        check_extractor(Cluster(client, 1, 1, {"a": 1}), tiny_config(), "")


# --- receipts


# The first two blocks.
BEGUN = {f"a/good_00{number}.png" for number in range(4)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two groups, one of five images and one of three, of which one is broken."""
    folder = tmp_path_factory.mktemp("archive")
    write_parts(folder / "a", 5)
    write_parts(folder / "b", 2, first_seed=50)
    (folder / "b" / "broken.png").write_bytes(b"no image")
    return folder


@dataclass
class Extraction:
    """Extracts an archive in blocks of two images, on a cluster of its own, and notes what the extractor is given."""

    source: Path
    run: Path
    extracted: list[str] = field(default_factory=list)
    fails: bool = False

    def __call__(self) -> dict[str, list[ImageOutcome]]:
        config = quick_config("input.group_by={part}/*")
        extractor = PatchExtractor(config.features)
        catalog = build_catalog(str(self.source), config.input)
        self.extracted.clear()
        run = Directory.at(self.run)
        with open_cluster(config.cluster) as cluster, Reporter().phase("extract", len(catalog)) as phase:
            return extract_features(
                cluster,
                catalog,
                run / FEATURES,
                extractor.geometry,
                config,
                extractor.weights_digest,
                phase,
                receipts=run / RECEIPTS,
            )

    def features(self) -> dict[str, NDArray[Any]]:
        group = zarr.open_group(self.run / FEATURES, mode="r")
        return {name: np.asarray(array[:]) for name, array in group.arrays()}

    def extract_block(self, block: Any, *args: Any, **options: Any) -> Any:
        names = [Path(image.path).relative_to(self.source).as_posix() for image in block]
        if self.fails and not set(names) <= BEGUN:
            raise KeyError("the end")
        self.extracted += names
        return extract_block(block, *args, **options)


@pytest.fixture
def extraction(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Extraction:
    monkeypatch.setattr(pipeline.intake.extract, "CHUNK_IMAGES", 2)
    monkeypatch.setattr(schemas.stores.features, "CHUNK_IMAGES", 2)
    made = Extraction(archive, tmp_path / "run")
    monkeypatch.setattr(pipeline.intake.extract, "extract_block", made.extract_block)
    return made


def test_a_finished_block_is_never_extracted_again(extraction: Extraction, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pipeline.intake.extract.logger, "info", lambda text, *values: said.append(text % values))
    outcomes = extraction()
    assert len(extraction.extracted) == 8
    features = extraction.features()
    assert {name: len(values) for name, values in features.items()} == {"a": 5, "b": 3}
    assert extraction() == outcomes
    assert extraction.extracted == []
    assert "extract: 8 of 8 images had been extracted before" in said
    for name, values in features.items():
        np.testing.assert_array_equal(extraction.features()[name], values)


def test_an_extraction_that_failed_goes_on_where_it_ended(extraction: Extraction, tmp_path: Path) -> None:
    extraction.fails = True
    with pytest.raises(KeyError, match="the end"):
        extraction()
    assert set(extraction.extracted) == BEGUN
    extraction.fails = False
    outcomes = extraction()
    assert sorted(extraction.extracted) == ["a/good_004.png", "b/broken.png", "b/good_000.png", "b/good_001.png"]
    resumed, extraction.run = extraction.features(), tmp_path / "uninterrupted"
    assert extraction() == outcomes
    assert len(extraction.extracted) == 8
    for name, values in extraction.features().items():
        np.testing.assert_array_equal(resumed[name], values)


@pytest.mark.parametrize(
    ("path", "extracted"),
    [
        pytest.param("features/a/c/1/0/0/0", ["a/good_002.png", "a/good_003.png"], id="chunk"),
        pytest.param("receipts/a/000000002.json", ["a/good_002.png", "a/good_003.png"], id="receipt"),
        pytest.param("features/b/zarr.json", ["b/broken.png", "b/good_000.png", "b/good_001.png"], id="array"),
        pytest.param("features/zarr.json", None, id="store"),
    ],
)
@pytest.mark.parametrize("is_torn", [False, True])
def test_what_is_missing_or_torn_is_extracted_again_and_nothing_else(
    extraction: Extraction, path: str, extracted: list[str] | None, is_torn: bool
) -> None:
    outcomes, features = extraction(), extraction.features()
    damaged = extraction.run / path
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    if not is_torn:
        damaged.unlink()
    assert extraction() == outcomes
    if extracted is not None:
        assert sorted(extraction.extracted) == extracted
    for name, values in features.items():
        np.testing.assert_array_equal(extraction.features()[name], values)

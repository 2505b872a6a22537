"""Images that kill the process that decodes them are quarantined with a reason; no other features change."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray

import workers.features.block
from pipeline.cluster.cluster import open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.intake.catalog import build_catalog
from pipeline.intake.extract import extract_features
from schemas.errors import DecoderError
from schemas.records.image import ImageOutcome
from schemas.records.receipt import BEGUN, receipt_name
from schemas.records.run import FEATURES, RECEIPTS
from tests.support.archives import write_parts
from tests.support.poison import CRASH, LOOP, MEMORY, write_poison, write_sitecustomize
from tests.support.runs import quick_config, quick_run_on
from tests.support.torture import ROOT, TIMEOUT_S, write_config
from workers.features.extractor import PatchExtractor
from workers.images.decode import DecodedImage, decode_image
from workers.storage.directory import Directory

SETTINGS = ("input.decode_timeout_s=1.5", "input.max_pixels=10000", "input.max_unreadable_fraction=0.5")
REASONS = {
    "crash.png": "decoding it killed the process (SIGSEGV)",
    "loop.png": "decoding it did not end within input.decode_timeout_s = 1.5 s",
    "memory.png": "decoding it takes more than 0.3 GB of memory",
}


@pytest.fixture
def suffering(tmp_path: Path) -> str:
    """Return the PYTHONPATH of processes that poison ends."""
    return os.pathsep.join([str(write_sitecustomize(tmp_path / "suffering")), str(ROOT)])


def make_archive(folder: Path, *kinds: str) -> Path:
    """Write two groups of parts with poison among those of the first."""
    write_parts(folder / "a", 8)
    write_parts(folder / "b", 6, first_seed=50)
    for number, kind in enumerate(kinds):
        write_poison(folder / "a" / f"{kind}.png", kind, 100 + number)
    return folder


def test_a_block_with_every_kind_of_poison_kills_workers_and_is_finished_without_it(
    tmp_path: Path, suffering: str
) -> None:
    archive, out = make_archive(tmp_path / "archive", CRASH, LOOP, MEMORY), tmp_path / "run"
    options = write_config(tmp_path / "run.yaml", *SETTINGS, "cluster.processes=true")
    arguments = ("clean", archive, "--out", out, "--config", options)
    environment = {name: value for name, value in os.environ.items() if name != "DASK_SCHEDULER_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.cli.main import main; main()", *map(str, arguments)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": suffering},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    manifest = pd.read_parquet(out / "manifest.parquet")
    found = manifest[manifest["decision"] == "unreadable"]
    assert {Path(name).name: why for name, why in zip(found["file_name"], found["reason"], strict=True)} == REASONS

    healthy = quick_run_on(archive, tmp_path / "healthy", "input.group_by={line}/*")
    assert set(healthy.manifest["decision"]) <= {"clean", "anomalous"}
    for group, count in (("a", 11), ("b", 6)):
        names = sorted(path.name for path in (archive / group).iterdir())
        is_poison = np.array([name in REASONS for name in names])
        features, expected = (np.asarray(zarr.open_array(run / "features" / group)[:]) for run in (out, healthy.path))
        assert len(features) == count
        np.testing.assert_array_equal(features[~is_poison], expected[~is_poison])
        assert not features[is_poison].any()


# --- inside the command's own process


def extract(source: Path, run: Path) -> tuple[dict[str, ImageOutcome], NDArray[Any]]:
    """Extract an archive on a cluster in this process; returns the outcomes by name, and features of the group a."""
    config = quick_config("input.group_by={part}/*", *SETTINGS)
    extractor, catalog, out = (
        PatchExtractor(config.features),
        build_catalog(str(source), config.input),
        Directory.at(run),
    )
    with open_cluster(config.cluster) as cluster, Reporter().phase("extract", len(catalog)) as phase:
        outcomes = extract_features(
            cluster,
            catalog,
            out / FEATURES,
            extractor.geometry,
            config,
            extractor.weights_digest,
            phase,
            receipts=out / RECEIPTS,
        )
    named = {
        name: outcomes[group][int(row)]
        for name, group, row in zip(catalog["file_name"], catalog["group"], catalog["row"], strict=True)
    }
    return named, np.asarray(zarr.open_array(run / FEATURES / "a", mode="r")[:])


def test_a_block_that_a_process_died_in_is_tried_elsewhere_before_it_is_extracted(
    tmp_path: Path, suffering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, run = make_archive(tmp_path / "archive", CRASH), tmp_path / "run"
    (archive / "a" / "broken.png").write_bytes(b"no image")
    healthy, expected = extract(archive, tmp_path / "healthy")
    assert healthy["a/crash.png"].is_readable
    monkeypatch.setenv("PYTHONPATH", suffering)
    # As the attempt that died has left it.
    (Directory.at(run) / RECEIPTS / "a").write(receipt_name(0), BEGUN)
    outcomes, features = extract(archive, run)
    poison = outcomes.pop("a/crash.png")
    assert poison.reason == REASONS["crash.png"]
    assert poison.content_sha256 == healthy.pop("a/crash.png").content_sha256
    assert outcomes == healthy
    others = [outcome.row for name, outcome in outcomes.items() if name.startswith("a/")]
    np.testing.assert_array_equal(features[others], expected[others])
    assert not features[poison.row].any()
    monkeypatch.delenv("PYTHONPATH")
    # Finished: not tried again where it would do no harm.
    assert extract(archive, run)[0]["a/crash.png"] == poison


class Endless:
    """Decodes as usual, but does not return from what is poison until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __call__(self, content: bytes, **options: Any) -> DecodedImage:
        if b"poison" in content:
            self.released.wait(TIMEOUT_S)
        return decode_image(content, **options)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Any:
    decode = Endless()
    monkeypatch.setattr(workers.features.block, "decode_image", decode)
    yield decode
    decode.released.set()


@pytest.mark.usefixtures("endless")
def test_poison_that_holds_up_the_commands_own_process_is_left_to_itself(
    tmp_path: Path, suffering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / "archive", LOOP)
    monkeypatch.setenv("PYTHONPATH", suffering)
    outcomes, features = extract(archive, tmp_path / "run")
    poison = outcomes.pop("a/loop.png")
    assert poison.reason == REASONS["loop.png"]
    assert all(outcome.is_readable for outcome in outcomes.values())
    assert [row for row in range(9) if not features[row].any()] == [poison.row]


@pytest.mark.usefixtures("endless")
def test_what_holds_up_only_this_process_is_an_error_that_names_it(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "archive", LOOP)
    with pytest.raises(DecoderError, match=r"loop\.png did not end within input\.decode_timeout_s = 1\.5 s"):
        extract(archive, tmp_path / "run")

"""Judging that is interrupted anywhere and continued gives the same result bit for bit."""

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray

import workers.passes.kept_moments
from pipeline.cluster.progress import Reporter
from pipeline.cluster.tasks import Here
from pipeline.judging.distances import GroupDistances
from pipeline.judging.judge import Judge
from pipeline.judging.result import GroupResult
from pipeline.judging.statistics import GroupStatistics
from pipeline.run_directory.record import new_record
from schemas.config import Config
from schemas.errors import DamagedArrayError
from schemas.names import storage_name
from schemas.records.image import ImageOutcome
from schemas.records.run import DISTANCE
from schemas.stores.features import FeatureGeometry
from tests.pipeline.judging.test_judge import catalog_of
from tests.scenarios.test_against_reference import planted
from tests.support.archives import tiny_config
from workers.features.arrays import ArrayRef
from workers.storage.directory import Directory

CHANNELS = 24
GEOMETRY = FeatureGeometry(2, 2, CHANNELS, 2, 2, 1, 1)

# A group by products, two by features, and one that is too small to be judged.
FEATURES = {
    "a": planted(14, 2, CHANNELS, seed=1)[:, :, :2],
    "b": planted(40, 3, CHANNELS, seed=2)[:, :, :2],
    "c": planted(40, 14, CHANNELS, seed=3)[:, :, :2],
    "tiny": planted(2, 0, CHANNELS, seed=4)[:, :, :2],
}
ONE_GROUP = {"b": FEATURES["b"]}


@dataclasses.dataclass
class Job:
    """Starts or continues judging the same features, in this thread; may be interrupted at any task."""

    folder: Path
    config: Config
    tasks: int = 0
    ends_at: int | None = None

    def __call__(self, run: Path, *, features: dict[str, NDArray[Any]] = FEATURES) -> dict[str, Any]:
        """Return the ledger."""
        catalog = catalog_of({group: len(values) for group, values in features.items()})
        outcomes = {
            group: [ImageOutcome(row, f"{group}{row}", 10, 30, 20) for row in range(len(values))]
            for group, values in features.items()
        }
        store = Directory.at(self.folder / "features")
        if not store.exists():
            root = store.zarr_group("", "w")
            for group, values in features.items():
                root.create_array(storage_name(group), data=values, chunks=GEOMETRY.chunk_shape(len(values)))
        directory = Directory.at(run)
        record = dataclasses.replace(new_record("archive", catalog, self.config, "weights"), run_id="this")
        judge = Judge(directory, store, GEOMETRY, self.config, record, None, Reporter(), directory / "journal")
        self.tasks = 0
        return judge.judge(catalog, outcomes)

    def submit(self, here: Here, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.tasks += 1
        if self.tasks == self.ends_at:
            raise KeyboardInterrupt
        return SUBMIT(here, function, *args, **kwargs)


SUBMIT = Here.submit


def everything(run: Path) -> dict[str, Any]:
    """Return all that a run publishes, without times."""
    found: dict[str, Any] = {"ledger": json.loads((run / "ledger.json").read_text())}
    for part in ("distances", "model"):
        for name, node in zarr.open_group(run / part, mode="r").members(max_depth=None):
            found[f"{part}/{name} attributes"] = dict(node.attrs)
            if isinstance(node, zarr.Array):
                found[f"{part}/{name}"] = np.asarray(node[:])
    for table in ("manifest", "iterations"):
        frame = pd.read_parquet(run / f"{table}.parquet").drop(columns="seconds", errors="ignore")
        found |= {f"{table}.{column}": values.map(repr).to_numpy() for column, values in frame.items()}
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.fixture
def job(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    # Moments are kept and updated from pass to pass in groups this small.
    monkeypatch.setattr(workers.passes.kept_moments, "STORAGE_IMAGES", 0)
    strategy = getattr(request, "param", "grow")
    made = Job(
        tmp_path,
        tiny_config(
            f"trim.strategy={strategy}", "gaussian.segment_images=32", "trim.max_iterations=3", "guard.power_images=0"
        ),
    )
    monkeypatch.setattr(Here, "submit", lambda here, *args, **kwargs: made.submit(here, *args, **kwargs))
    return made


@pytest.mark.parametrize(
    ("job", "times"), [("paire", 3), ("grow", 3), ("concentrate", 2), ("none", 1)], indirect=["job"]
)
def test_judging_gives_the_same_wherever_it_is_interrupted(job: Job, times: int, tmp_path: Path) -> None:
    job(tmp_path / "whole")
    tasks, expected = job.tasks, everything(tmp_path / "whole")
    rng = np.random.default_rng(0)
    for number, ends_at in enumerate(sorted(rng.choice(np.arange(1, tasks + 1), times, replace=False))):
        run = tmp_path / f"run {number}"
        job.ends_at = int(ends_at)
        with pytest.raises(KeyboardInterrupt):
            job(run)
        assert not (run / "ledger.json").exists()
        job.ends_at = None
        job(run)
        assert job.tasks <= tasks
        assert_same(everything(run), expected)


def test_judging_that_is_interrupted_again_and_again_comes_to_its_end(job: Job, tmp_path: Path) -> None:
    job(tmp_path / "whole", features=ONE_GROUP)
    rng, run, sessions = np.random.default_rng(1), tmp_path / "run", 0
    while True:
        # Fewer than the longest pass has would never come to an end.
        job.ends_at = int(rng.integers(50, 80))
        sessions += 1
        try:
            job(run, features=ONE_GROUP)
        except KeyboardInterrupt:
            continue
        break
    assert sessions > 1
    assert_same(everything(run), everything(tmp_path / "whole"))


def test_groups_that_were_judged_are_not_judged_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(tmp_path / "run", features=ONE_GROUP)
    expected = everything(tmp_path / "run")
    monkeypatch.setattr(GroupStatistics, "__init__", None)  # not to be called
    job(tmp_path / "run", features=ONE_GROUP)
    assert job.tasks == 1  # in which the result is read
    assert_same(everything(tmp_path / "run"), expected)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("name", ["ending.npz", "0001.npz"])
def test_a_torn_journal_is_not_believed(job: Job, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job(tmp_path / "whole", features=ONE_GROUP)
    with monkeypatch.context() as patch:
        if name != "ending.npz":  # written last, in place of the others
            patch.setattr(GroupResult, "to_arrays", None)
        with pytest.raises(TypeError) if name != "ending.npz" else nullcontext():
            job(tmp_path / "run", features=ONE_GROUP)
    (torn,) = (tmp_path / "run" / "journal").glob(f"*/{name}")
    damage(torn)
    job(tmp_path / "run", features=ONE_GROUP)
    assert job.tasks > 1
    assert_same(everything(tmp_path / "run"), everything(tmp_path / "whole"))


@pytest.mark.parametrize("is_removed", [False, True], ids=["torn", "missing"])
@pytest.mark.parametrize("job", ["paire", "grow"], indirect=True)
def test_a_group_with_damaged_distances_is_judged_again(
    job: Job, is_removed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job(tmp_path / "whole", features=ONE_GROUP)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(GroupDistances, "evidence", None)  # when all passes are finished
        with pytest.raises(TypeError):
            job(run, features=ONE_GROUP)
    (chunk, *_) = sorted((run / "distances").glob("*/distance/c/*/*/*"))
    chunk.unlink() if is_removed else damage(chunk)
    caplog.set_level("WARNING", "paire")  # a cluster of an earlier test may have silenced it
    job(run, features=ONE_GROUP)
    assert "b: judged again, because" in caplog.text
    assert_same(everything(run), everything(tmp_path / "whole"))


def test_distances_that_stay_damaged_are_an_error_that_says_what_to_do(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArrayRef, "open", lambda self, _="r", opened=ArrayRef.open: torn(self, opened(self, "r+")))
    with pytest.raises(DamagedArrayError, match=r"distances/.* is damaged .*paire recut"):
        job(tmp_path / "run", features=ONE_GROUP)


def torn(ref: ArrayRef, array: Any) -> Any:
    """Damage what is stored of distances."""
    if ref.name == DISTANCE:
        for chunk in Path(ref.directory.url).glob(f"{DISTANCE}/c/*/*/*"):
            damage(chunk)
    return array


def test_a_group_of_other_images_is_judged_again(job: Job, tmp_path: Path) -> None:
    job(tmp_path / "run", features=ONE_GROUP)
    fewer = {"b": FEATURES["b"][:35]}
    job.folder = tmp_path / "fewer"
    job(tmp_path / "run", features=fewer)
    job(tmp_path / "whole", features=fewer)
    found, expected = everything(tmp_path / "run"), everything(tmp_path / "whole")
    assert_same(found, expected)

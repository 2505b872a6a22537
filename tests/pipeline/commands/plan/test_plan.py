"""A plan against what runs do: bytes, tasks and requests are exact; of times, only that a plan has them."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner
from zarr.storage import LocalStore

import pipeline.costs.footprint
from pipeline.cli.main import cli
from pipeline.cli.plan_table import duration, sentences, size
from pipeline.cluster.progress import Reporter
from pipeline.cluster.tasks import TaskWindow
from pipeline.commands.plan.forecast import (
    Measured,
    _by_operations,
    count_power_tasks,
    expected_passes,
    extraction_seconds,
    forecast,
    mean_block,
)
from pipeline.commands.plan.plan import Plan, plan
from pipeline.commands.plan.rehearsal import Rehearsal, Stopwatch, blocks_of
from pipeline.commands.plan.sample import draw
from pipeline.costs.footprint import (
    Layout,
    PassKind,
    Requests,
    keeps_moments,
    pass_requests,
    pass_tasks,
    publish_requests,
    publish_tasks,
    verdict_requests,
)
from pipeline.judging.group import Group
from pipeline.judging.statistics import GroupStatistics
from pipeline.judging.strategies.registry import strategy_of
from schemas.config import Config
from schemas.errors import ConfigError, SourceError, UnreadableBudgetError, WeightsError
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from tests.support.archives import tiny_config, write_parts
from tests.support.maps import describe
from tests.support.runs import quick_config, quick_run_on
from tests.support.watched import tasks_submitted
from workers.map.writer import create_map, write_thresholds
from workers.storage.directory import Directory

GEOMETRY = FeatureGeometry(rows=3, columns=2, channels=80, grid_rows=12, grid_columns=8, pool_kernel=4, pool_stride=4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of a small group and one that is judged by several tasks."""
    folder = tmp_path_factory.mktemp("archive")
    write_parts(folder / "small", 12)
    write_parts(folder / "large", 66, 4, first_seed=100)
    (folder / "large" / "torn.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def planned(archive: Path) -> Plan:
    return plan(str(archive), quick_config("input.group_by={group}/**"), sample=40)


def bytes_below(folder: Path) -> int:
    """Return the bytes of all chunks below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("c/**/*") if path.is_file())


def test_bytes_are_those_that_a_run_writes(planned: Plan, archive: Path, tmp_path: Path) -> None:
    run = quick_run_on(archive, tmp_path / "run", "input.group_by={group}/**")
    assert planned.bytes["features"] == bytes_below(run.path / "features")
    distances = sum(bytes_below(folder) for folder in (run.path / "distances").glob("*/distance"))
    assert planned.bytes["distances"] == distances
    assert planned.bytes["map"] >= bytes_below(run.path / "model")
    assert planned.archive_bytes == sum(path.stat().st_size for path in archive.rglob("*.png"))
    assert (planned.inputs, planned.images) == (len(run.manifest), len(run.manifest))


@pytest.mark.parametrize("channels", [20, 100])
def test_tasks_are_those_that_a_run_submits(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: Counter[str] = Counter()
    submit = TaskWindow.submit

    def counting(self: TaskWindow, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        submitted[function.__name__] += 1
        return submit(self, function, *args, **kwargs)

    monkeypatch.setattr(TaskWindow, "submit", counting)
    # Without trimming the passes and the images kept are known.
    settings = ("input.group_by={group}/**", "trim.strategy=none", "gaussian.segment_images=16")
    config = (*settings, f"features.channels={channels}")
    write_parts(tmp_path / "archive" / "small", 12)
    # Parts with defects: the breakdown guard fits a second time.
    write_parts(tmp_path / "archive" / "large", 66, 4, first_seed=100)
    tasks = plan(str(tmp_path / "archive"), quick_config(*config), sample=0).tasks
    quick_run_on(tmp_path / "archive", tmp_path / "run", *config)
    assert tasks.pop("power") == 0  # nothing is planted where nothing can be rejected
    assert min(tasks.values()) > 0
    assert submitted.total() == sum(tasks.values()), submitted


def test_groups_are_counted_and_sized(planned: Plan) -> None:
    assert planned.groups == {"number": 2, "smallest": 12, "median": 41.5, "largest": 71}


def test_a_measured_plan_has_times_and_the_memory_of_the_workers(planned: Plan) -> None:
    assert planned.seconds is not None
    assert planned.range_s is not None
    assert min(dataclasses.astuple(planned.seconds)) > 0
    assert planned.range_s[0] <= planned.seconds.total <= planned.range_s[1]
    assert planned.memory["enough"] is True
    assert 0 < planned.memory["needed"] < planned.memory["limit"]
    assert planned.workers == 1
    assert planned.unreadable is not None
    assert planned.unreadable.of == 40


def test_nothing_is_left_of_what_was_tried(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(archive.rglob("*"))
    plan(str(archive), quick_config(), sample=8)
    assert not list(tmp_path.glob("paire-plan-*"))
    assert sorted(archive.rglob("*")) == before


def test_without_a_sample_bytes_and_tasks_are_known_and_times_are_not(planned: Plan, archive: Path) -> None:
    listed = plan(str(archive), quick_config("input.group_by={group}/**"), sample=0)
    assert (listed.bytes, listed.tasks, listed.requests) == (planned.bytes, planned.tasks, planned.requests)
    assert listed.seconds is None
    assert listed.unreadable is None
    assert "No image was tried" in " ".join(sentences(listed))


def test_many_groups_are_planned_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.costs.footprint, "SMALL_GROUP", 5)
    for number in range(8):
        write_parts(tmp_path / f"group {number}", 6, first_seed=100 * number)
    config = quick_config("input.group_by={group}/**")
    alone, together = (plan(str(tmp_path), config, sample=0, workers=count) for count in (1, 8))
    assert (alone.tasks["small groups"], together.tasks["small groups"]) == (0, 8)
    assert (alone.tasks["passes"] > 0, together.tasks["passes"]) == (True, 0)
    assert together.bytes["scratch"] == 8 * alone.bytes["scratch"] > 0


def test_more_workers_need_no_more_time(archive: Path) -> None:
    many = plan(str(archive), quick_config(), sample=12, workers=16)
    assert many.workers == 16
    assert many.seconds is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"workers": -2}, "--workers -2"),
        ({"sample": -1}, "--sample -1"),
        ({"sample": 1000}, "more than the 83 images"),
    ],
)
def test_impossible_counts_are_refused(arguments: dict[str, int], said: str, archive: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(str(archive), quick_config(), **arguments)  # type: ignore[arg-type]


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no files"):
        plan(str(tmp_path), quick_config())


def test_missing_weights_are_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        plan(str(archive), quick_config(f"features.weights={tmp_path / 'none.pth'}"))


def test_a_sample_that_cannot_be_read_is_refused_with_its_first_fault(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(UnreadableBudgetError, match=r"0 of the 5 images .*0\.png"):
        plan(str(tmp_path), quick_config())


def test_the_command_prints_a_table_for_people_and_json_for_machines(archive: Path) -> None:
    tiny = quick_config()
    arguments = ["plan", str(archive), "--sample", "0", "--json", "--group-by", "{group}/**"]
    for name in ("backbone", "weights", "image_size", "pool_kernel", "pool_stride"):
        arguments += ["--set", f"features.{name}={getattr(tiny.features, name)}"]
    arguments += ["--set", f"features.nodes={','.join(tiny.features.nodes)}"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert made["groups"]["number"] == 2
    assert made["seconds"] is None
    for word in ("features", "distances", "memory", "tasks", "requests", "Assumed: 17 passes"):
        assert word in result.stderr


# Passes as they run


class Counted(NamedTuple):
    """How many tasks of each function were submitted, and requests of each kind made."""

    tasks: Counter[str]
    requests: Counter[str]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Count tasks, and reads and writes of chunks."""
    counts = Counted(tasks_submitted(monkeypatch), Counter())
    get, put = LocalStore.get, LocalStore.set

    async def counting_get(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> Any:
        counts.requests["get"] += "/c/" in f"/{key}"
        return await get(self, key, *args, **kwargs)

    async def counting_set(self: LocalStore, key: str, value: Any) -> None:
        counts.requests["put"] += "/c/" in f"/{key}"
        await put(self, key, value)

    monkeypatch.setattr(LocalStore, "get", counting_get)
    monkeypatch.setattr(LocalStore, "set", counting_set)
    return counts


WAYS = {
    "products": (300, 310, CHUNK_IMAGES),
    "features": (600, 30, CHUNK_IMAGES),
    "kept": (2100, 8, CHUNK_IMAGES),
    "whole rows": (600, 30, 4096),
    "whole rows, kept": (2100, 8, 4096),
    "small": (40, 80, CHUNK_IMAGES),
}


@pytest.fixture(params=list(WAYS.values()), ids=list(WAYS))
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[GroupStatistics, Layout, Config, int]]:
    """Give the statistics of a group that goes each of the ways."""
    images, channels, segment_images = request.param
    geometry = FeatureGeometry(3, 2, channels, 12, 8, 4, 4)
    config = tiny_config(f"gaussian.segment_images={segment_images}")
    directory = Directory.at(tmp_path)
    values = np.random.default_rng(0).normal(size=geometry.array_shape(images)).astype(np.float16)
    features = (directory / "features").zarr_group("", "w")
    array = features.create_array(
        "all", shape=values.shape, chunks=geometry.chunk_shape(images), dtype="float16", compressors=None
    )
    array[:] = values
    (directory / "distances").zarr_group("", "w")
    judged = Group("all", np.ones(images, bool), directory / "features", geometry, config)
    create_map(directory / "model", describe(geometry))
    with GroupStatistics(None, judged, directory / "distances", Reporter()) as statistics:
        yield statistics, Layout.of(geometry, config), config, images


def spent(counted: Counted, work: Callable[[], object]) -> tuple[int, Requests]:
    """Return the tasks and requests of some work."""
    counted.tasks.clear()
    counted.requests.clear()
    work()
    return counted.tasks.total(), Requests(counted.requests["get"], counted.requests["put"])


def test_tasks_and_requests_of_passes_are_those_of_the_formulas(
    group: tuple[GroupStatistics, Layout, Config, int], counted: Counted, tmp_path: Path
) -> None:
    statistics, layout, _, images = group
    everything = np.ones(images, bool)
    few = everything & (np.arange(images) < images - 5)
    is_kept = keeps_moments(layout, images)
    works: list[tuple[PassKind, bool, int, int, Callable[[], object]]] = [
        (PassKind(), True, images, 0, lambda: statistics.run_pass(everything, 1)),
        (PassKind(), False, images - 5, 1, lambda: statistics.run_pass(few, 2)),
        (PassKind(scores=True), False, images - 5, 0, lambda: statistics.score_pass(few, 3, smoothing=1)),
        (
            PassKind(scores=True, neighbours=True),
            False,
            images,
            1,
            lambda: statistics.score_pass(everything, 4, smoothing=1, neighbours=True),
        ),
        (
            PassKind(scores=True, by_rows=True),
            False,
            images - 5,
            1,
            lambda: statistics.score_pass(few, 5, smoothing=None),
        ),
        (
            PassKind(scores=True, neighbours=True, fits=False),
            False,
            images - 5,
            0,
            lambda: statistics.score_neighbours(few, 6),
        ),
    ]
    for number, (kind, is_first, fitted, changed, work) in enumerate(works):
        tasks, requests = spent(counted, work)
        updates = is_kept and number > 0 and kind.fits
        assert tasks == pass_tasks(layout, images, fitted, kind, is_first=is_first, updates=updates), kind
        chunks_changed = changed if updates else None
        assert requests == pass_requests(layout, images, fitted, kind, is_first=is_first, changed=chunks_changed), kind
    model = Directory.at(tmp_path) / "model"
    for neighbours in (False, True):
        one = dataclasses.replace(layout, has_references=neighbours)
        tasks, requests = spent(counted, partial(statistics.publish, everything, model, neighbours=neighbours))
        assert tasks == publish_tasks(one, images, images)
        assert requests == publish_requests(one, images, images)

    def conclude() -> None:
        thresholds, fitted_for = np.ones((3, 2)), np.arange(images)
        statistics.distances.store_verdict(thresholds, np.stack([everything, few]), fitted_for, smoothing=1)
        statistics.distances.evidence(thresholds, fitted_for, smoothing=1)
        write_thresholds(model, "all", thresholds, checksums=[0, 0, 0], smoothing=1)

    assert spent(counted, conclude) == (0, verdict_requests(layout, images))


# Forecasts


def test_phases_are_timed_by_their_kind_or_name() -> None:
    stopwatch = Stopwatch()
    for name, kind in (("a: pass 1", "pass"), ("pass", ""), ("judge", ""), ("b: publish", "publish")):
        with stopwatch.phase(name, 1, "rows", kind=kind, brief=True):
            pass
    assert {kind: len(seconds) for kind, seconds in stopwatch.seconds.items()} == {"pass": 2, "judge": 1, "publish": 1}


MEASURED = Measured(
    start=5.0,
    first_tasks=0.0,
    group=0.5,
    images_per_second=10.0,
    rehearsals=(
        Rehearsal(70, 1, 3, 2, first_pass=3.0, next_pass=1.0, rest=2.5, seconds=6.5, workers=1),
        Rehearsal(20, 3, 3, 2, first_pass=6.0, next_pass=6.0, rest=0.5, seconds=6.5, workers=1),
    ),
)


def seconds_of(sizes: list[int], workers: int, passes: int = 3) -> Any:
    layout = Layout.of(GEOMETRY, quick_config())
    return forecast(sizes, MEASURED, layout, quick_config(), workers=workers, passes=passes)


def test_what_was_rehearsed_in_full_takes_as_long_as_that() -> None:
    found = seconds_of([70], 1)
    assert found.passes == pytest.approx(3.0 + 2 * 1.0, rel=0.01)
    assert found.rest == pytest.approx(2.5, rel=0.01)
    assert found.extract == pytest.approx(7.0)
    assert found.total == pytest.approx(sum(dataclasses.astuple(found)))
    assert found.small_groups == 0


@pytest.mark.parametrize(
    ("rehearsed", "seconds"),
    [
        ([4.0], 8.0),  # one rehearsal: all of it is scaled
        ([4.0, 2.0], 4.0 + 4 * 2.0 / 3.0),
        ([4.0, 1.0], 8.0),
        ([4.0, 0.1], 8.0),
        ([4.0, 3.9], 6.0),  # so flat a line would be chance
    ],
)
def test_beyond_the_rehearsals_what_tasks_cost_in_any_case_is_not_scaled(
    rehearsed: list[float], seconds: float
) -> None:
    operations = np.array([4e9, 1e9][: len(rehearsed)])
    assert _by_operations(8e9, operations, np.array(rehearsed)) == pytest.approx(seconds)


def test_rows_are_shared_in_rounds() -> None:
    # Except for finding near-duplicates, whose tasks run one after another.
    assert seconds_of([70], 3).passes == pytest.approx(seconds_of([70], 1).passes / 3, rel=0.05)
    assert seconds_of([70], 2).passes == pytest.approx(seconds_of([70], 1).passes * 2 / 3, rel=0.05)


def test_small_groups_are_a_task_each() -> None:
    assert seconds_of([20] * 100, 1).small_groups == pytest.approx(200.0, rel=0.01)
    assert seconds_of([20] * 100, 10).small_groups == pytest.approx(20.0, rel=0.01)


def test_many_groups_without_moments_are_a_task_each() -> None:
    each = seconds_of([70], 1)
    # The workers share the groups, not the rows of one.
    assert seconds_of([70] * 8, 2).small_groups == pytest.approx(8 / 2 * (each.passes + each.rest), rel=0.01)
    assert seconds_of([70] * 2, 2).small_groups == 0
    assert seconds_of([70] * 8, 1).small_groups == 0


def test_images_are_extracted_in_blocks() -> None:
    assert extraction_seconds([512], 10.0, 1) == pytest.approx(51.2)
    assert extraction_seconds([512], 10.0, 2) == pytest.approx(25.6)
    assert extraction_seconds([512], 10.0, 8) == pytest.approx(25.6)
    assert extraction_seconds([768], 10.0, 2) == pytest.approx(51.2)


def test_blocks_of_small_groups_are_small() -> None:
    assert mean_block([20] * 40) == 20
    assert mean_block([512, 256]) == 256
    assert mean_block([256, 20, 20]) == 99


@pytest.mark.parametrize(("block", "groups"), [(20, [16, 16, 16, 16]), (256, [32, 32])])
def test_a_sample_is_extracted_in_blocks_like_the_archives(block: int, groups: list[int]) -> None:
    sample = pd.DataFrame({"file_name": [f"{number}.png" for number in range(64)]})
    found = blocks_of(sample, 2, block)
    assert found["group"].value_counts().tolist() == groups
    assert all(part["row"].tolist() == list(range(len(part))) for _, part in found.groupby("group"))


@pytest.mark.parametrize("strategy", ["paire", "grow", "concentrate", "trim-once", "none"])
def test_every_strategy_has_a_number_of_passes_that_its_bound_holds(strategy: str) -> None:
    for most in (1, 2, 100):
        config = tiny_config(f"trim.strategy={strategy}", f"trim.max_iterations={most}")
        known, passes = strategy_of(config).forecast, expected_passes(config)
        assert 1 <= passes.fewest <= passes.usual <= passes.most <= known.iterates * most + known.besides
        assert passes.most <= known.most


def test_a_sample_is_seeded_and_spread_over_the_archive() -> None:
    candidates = pd.DataFrame({"number": range(1000)})
    first, again, other = (draw(candidates, 10, seed)["number"].tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert all(number // 100 == place for place, number in enumerate(first))


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB")])
def test_sizes_have_decimal_units(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (90, "1.5 min"), (7200, "2.0 h"), (10 * 86400, "10.0 days")])
def test_durations_have_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_zarr_writes_one_object_a_chunk(tmp_path: Path) -> None:
    # What the formulas count.
    array = zarr.create_array(tmp_path / "a", shape=(5,), chunks=(2,), dtype="int8", compressors=None)
    array[:] = 1
    assert len([path for path in (tmp_path / "a").rglob("c/*") if path.is_file()]) == 3


def test_planted_images_are_tasks_that_are_extracted_again() -> None:
    config = quick_config("trim.strategy=grow")
    assert count_power_tasks([70], config) == 32 // 8
    assert count_power_tasks([70], quick_config("guard.power_images=0")) == 0
    assert count_power_tasks([70], quick_config("trim.strategy=none")) == 0
    # Four tasks of eight images, each without and with two defects, at ten images a second.
    assert seconds_of([70], 1).power == pytest.approx(4 * 8 * 3 / 10.0)
    assert seconds_of([70], 4).power == pytest.approx(8 * 3 / 10.0)

"""How the sample of a run is shared out, and what a run says of it: whole runs over small archives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import pipeline.cluster.tasks
from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Reporter
from pipeline.cluster.tasks import Here
from pipeline.commands.clean import clean
from pipeline.commands.recut import recut
from pipeline.judging import power as module
from pipeline.judging.power import KeptImages, measure_power, paths_by_group, share_out
from schemas.config import parse_config
from schemas.errors import UntrustworthyError
from schemas.records.image import ImageOutcome
from schemas.records.run import MODEL
from tests.support.archives import tiny_config, write_parts
from tests.support.runs import Run, config, quick_run_on, run_on, state_of
from workers.storage.directory import Directory
from workers.trust.planting import KINDS
from workers.trust.power import try_plots
from workers.trust.trial import Trials

GUARDED = "guard.accept_untrustworthy=false"


# --- how many images each group gives


def shared_out(kept: dict[str, int], images: int, most: int = 32) -> dict[str, int]:
    return share_out(kept, images, tiny_config(f"guard.power_images={most}"))


@pytest.mark.parametrize(
    ("kept", "images", "counts"),
    [
        pytest.param([500], 1000, [32], id="one group"),
        pytest.param([20], 30, [20], id="fewer are kept"),
        pytest.param([4], 30, [0], id="too few are kept"),
        pytest.param([100, 8, 2], 120, [22, 8, 0], id="a small group beside a large one"),
        pytest.param([500, 500], 1000, [16, 16], id="two share"),
        pytest.param([5000, 5000], 10_000, [32, 32], id="large runs have more"),
        pytest.param([100] * 10, 1000, [8, 8, 8, 8] + [0] * 6, id="many groups do not fit"),
    ],
)
def test_a_run_has_a_number_of_images_and_each_group_its_share(kept: list[int], images: int, counts: list[int]) -> None:
    found = shared_out({str(number): count for number, count in enumerate(kept)}, images)
    assert sorted(found.values(), reverse=True) == counts


def test_at_most_a_twentieth_of_a_large_run_is_extracted_again() -> None:
    found = shared_out({f"group {number}": 40 for number in range(10_000)}, 500_000)
    assert 2 * sum(found.values()) <= 0.05 * 500_000
    assert set(found.values()) == {0, 8}


def test_paths_are_those_of_each_group_in_row_order() -> None:
    catalog = pd.DataFrame(
        {"group": ["b", "a", "b", "b"], "row": pd.array([1, 0, 0, None], "Int64"), "image_path": ["y", "x", "z", "n"]}
    )
    assert paths_by_group(catalog) == {"a": ["x"], "b": ["z", "y"]}


# --- whole runs


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of two groups, and of one too small to judge."""
    folder = tmp_path_factory.mktemp("power")
    write_parts(folder / "large", 60, 4)
    write_parts(folder / "small", 9, first_seed=500)
    write_parts(folder / "tiny", 2, first_seed=600)
    return folder


BY_LINE = "input.group_by={line}/*"


@pytest.fixture(scope="module")
def run(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_on(archive, tmp_path_factory.mktemp("run") / "run", BY_LINE)


def powers(ledger: dict[str, Any]) -> dict[str, Any]:
    return {group: entry["power"] for group, entry in ledger["groups"].items()}


def test_the_ledger_says_of_each_group_what_its_map_sees(run: Run) -> None:
    found = powers(json.loads((run.path / "ledger.json").read_text()))
    large = found["large"]
    assert 16 <= large["planted"] + large["too_faint"] + large["rejected_untouched"] <= 32
    assert large["seen"] >= 0.8 * large["planted"]
    assert set(large["by_kind"]) <= set(KINDS)
    assert sum(each["seen"] for each in large["by_size"].values()) == large["seen"]
    assert found["tiny"]["note"] == "the group is not judged"
    assert 0 < large["medium"]["seen"] <= large["medium"]["planted"] <= 32
    # The untrained backbone misses medium defects in so small images, and the guard says so.
    sentences = [
        one["sentence"] for one in run.result.ledger["groups"]["large"]["findings"] if one["condition"] == "power"
    ]
    misses = large["medium"]["seen"] < 0.8 * large["medium"]["planted"]
    assert [sentence.split(" that were")[0].split(" defects")[0] for sentence in sentences] == (
        [f"of {large['medium']['planted']} medium"] if misses else []
    )


def test_two_processes_see_what_one_thread_sees(run: Run, archive: Path, two_processes: Cluster) -> None:
    settings = config(BY_LINE)
    model, manifest, catalog = (
        Directory.at(run.path) / MODEL,
        run.manifest,
        pd.read_parquet(run.path / "catalog.parquet"),
    )
    paths = paths_by_group(catalog)
    groups = {}
    for group in ("large", "small"):
        part = manifest[manifest["group"] == group].merge(catalog[["sample_id", "row"]]).sort_values("row")
        outcomes = [ImageOutcome(row, digest) for row, digest in enumerate(part["content_sha256"])]
        groups[group] = KeptImages((part["decision"] == "clean").to_numpy(), outcomes, paths[group])
    digest = json.loads((run.path / "run.json").read_text())["weights_digest"]
    here = measure_power(None, groups, model, settings, digest, Reporter(), None)
    there = measure_power(two_processes, groups, model, settings, digest, Reporter(), None)
    assert here == there
    assert here["large"].seen.of
    assert here["large"].to_json() == run.result.ledger["groups"]["large"]["power"]


@pytest.mark.parametrize(
    ("setting", "note"),
    [
        ("guard.power_images=0", "guard.power_images is 0"),
        ("trim.strategy=none", "trim.strategy=none rejects no image"),
    ],
)
def test_nothing_is_planted_where_that_is_off_or_nothing_can_be_rejected(
    run: Run, archive: Path, tmp_path: Path, setting: str, note: str
) -> None:
    found = powers(quick_run_on(archive, tmp_path / "run", BY_LINE, setting).result.ledger)
    assert found["large"]["note"] == note
    assert found["large"]["planted"] == 0


def test_an_interrupted_job_goes_on_after_the_groups_that_were_tried(
    archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def interrupted(plots: Any, group: str, *rest: Any) -> Trials:
        if group == "small" and "small" not in tried:
            tried.append(group)
            raise KeyboardInterrupt
        tried.append(group)
        return original(plots, group, *rest)

    original = try_plots
    monkeypatch.setattr(module, "try_plots", interrupted)
    monkeypatch.setattr(module, "open_window", lambda _: Here())
    monkeypatch.setattr(pipeline.cluster.tasks, "RESULTS_AHEAD", 0)  # each result is noted before the next task
    with pytest.raises(KeyboardInterrupt):
        clean(str(archive), str(tmp_path / "run"), config(BY_LINE))
    before = len(tried)
    again = clean(str(archive), str(tmp_path / "run"), config(BY_LINE))
    assert set(tried[before:]) == {"small"}
    assert powers(again.ledger) == powers(run.result.ledger)


# --- blind runs


# No slope ratio of the paper's rule reaches this tau.
BLIND = ("trim.strategy=paire", "trim.tau=1000")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an archive, and a run over it whose map has no threshold: it cannot reject anything."""
    folder = tmp_path_factory.mktemp("blind")
    write_parts(folder / "archive", 60)
    with pytest.raises(UntrustworthyError, match="the published map sees 0 "):
        quick_run_on(folder / "archive", folder / "run", GUARDED, *BLIND)
    return folder / "archive", folder / "run"


def test_a_blind_run_is_not_published_and_says_what_to_do(blind: tuple[Path, Path]) -> None:
    _, out = blind
    assert state_of(out) == ("untrustworthy", False)
    entry = json.loads((out / "ledger.json").read_text())["groups"]["all"]
    assert entry["clean"] == 60
    assert entry["power"]["seen"] == 0
    assert entry["power"]["smallest_seen"] is None
    found = next(one for one in entry["findings"] if one["condition"] == "power")
    assert found["stops"]
    assert "features.image_size" in found["sentence"]
    assert found["sentence"] in entry["warnings"]


def test_blindness_can_be_accepted(blind: tuple[Path, Path], tmp_path: Path) -> None:
    archive, out = blind
    again = shutil.copytree(out, tmp_path / "run")
    accepted = quick_run_on(archive, again, GUARDED, *BLIND, "guard.accept_conditions=power")
    assert accepted.result.was_done
    assert state_of(again) == ("done", True)


def test_a_recut_measures_its_own_power(blind: tuple[Path, Path], tmp_path: Path) -> None:
    out = shutil.copytree(blind[1], tmp_path / "run")
    version = recut(str(out), parse_config(None, ["trim.strategy=grow", "guard.accept_untrustworthy=true"]))
    found = version.ledger["groups"]["all"]["power"]
    assert found["planted"] > 16
    assert found["seen"] > 0


def test_a_recut_without_the_images_says_that_it_measured_nothing(run: Run, archive: Path, tmp_path: Path) -> None:
    source = shutil.copytree(archive, tmp_path / "archive")
    finished = run_on(source, tmp_path / "run", BY_LINE)
    shutil.rmtree(source)
    version = recut(str(finished.path), parse_config(None, ["trim.eta=2.6", "guard.accept_untrustworthy=true"]))
    found = version.ledger["groups"]["large"]["power"]
    assert (found["planted"], found["left_out"] > 0) == (0, True)
    assert found["note"] == "an image of the sample can no longer be read: cannot be read: no such file"
    assert not any(one["condition"] == "power" for one in version.ledger["groups"]["large"]["findings"])

"""The contact sheet of a run: which images it shows, and that nothing about them ends the command."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import pipeline.commands.sheet.sheet as under_test
from pipeline.cli.main import cli
from pipeline.commands.clean import clean
from pipeline.commands.sheet.drawing import MAX_BYTES, Sheet, draw_sheet
from pipeline.commands.sheet.sheet import KEPT, PAIRS, REJECTED, choose_kept, choose_pairs, choose_rejected, sheet
from schemas.errors import ConfigError, SourceError, StorageError, UntrustworthyError
from schemas.tables.manifest import ANOMALOUS, CLEAN, DUPLICATE
from tests.support.archives import write_parts
from tests.support.loggers import restored_loggers
from tests.support.runs import Run, quick_config, run_on
from tests.support.storage.servers import Server, bucket_on, moto_server, reached
from workers.storage.directory import read_bytes


def manifest(decisions: list[str], groups: int = 1) -> pd.DataFrame:
    """Return as much of a manifest as choosing needs."""
    count = len(decisions)
    return pd.DataFrame(
        {
            "sample_id": [f"id{number}" for number in range(count)],
            "group": [f"g{number % groups}" for number in range(count)],
            "decision": decisions,
            "margin": np.random.default_rng(0).permutation(count) / 10,
            "duplicate_of": ["id0" if decision == DUPLICATE else None for decision in decisions],
            "near_duplicate_of": None,
        }
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Sheet]:
    """Return the sheets that are drawn."""
    sheets: list[Sheet] = []

    def draw(content: Sheet) -> bytes:
        sheets.append(content)
        return draw_sheet(content)

    monkeypatch.setattr(under_test, "draw_sheet", draw)
    return sheets


# --- which images


def test_a_large_run_shows_no_more_images_than_a_small_one() -> None:
    large = manifest([CLEAN] * 5000 + [ANOMALOUS] * 5000 + [DUPLICATE] * 500)
    assert len(choose_kept(large, 0)) == KEPT
    assert len(choose_rejected(large)) == 2 * REJECTED
    assert len(choose_pairs(large, 0)) == PAIRS


def test_the_seed_draws_and_nothing_else() -> None:
    rows = manifest([CLEAN] * 500)
    assert choose_kept(rows, 3)["sample_id"].tolist() == choose_kept(rows, 3)["sample_id"].tolist()
    assert choose_kept(rows, 3)["sample_id"].tolist() != choose_kept(rows, 4)["sample_id"].tolist()


def test_kept_images_are_different_ones_of_all_groups() -> None:
    chosen = choose_kept(manifest([CLEAN] * 500, groups=5), 0)
    assert chosen["sample_id"].is_unique
    assert set(chosen["group"]) == {f"g{number}" for number in range(5)}


def test_rejected_images_are_the_worst_and_a_spread_to_the_least() -> None:
    rows = manifest([ANOMALOUS] * 300)
    margins = choose_rejected(rows)["margin"].tolist()
    ordered = sorted(rows["margin"], reverse=True)
    assert margins[: REJECTED + 1] == ordered[: REJECTED + 1]
    assert margins[-1] == ordered[-1]
    assert margins == sorted(margins, reverse=True)


@pytest.mark.parametrize("count", [0, 1, REJECTED, REJECTED + 1, 2 * REJECTED, 2 * REJECTED + 1])
def test_few_images_are_shown_once_each(count: int) -> None:
    assert choose_rejected(manifest([ANOMALOUS] * count))["sample_id"].nunique() == min(count, 2 * REJECTED)
    assert choose_kept(manifest([CLEAN] * count), 0)["sample_id"].nunique() == min(count, KEPT)


# --- whole sheets


def test_a_sheet_shows_a_finished_run(finished: Run, tmp_path: Path, drawn: list[Sheet]) -> None:
    out = tmp_path / "new" / "sheet.png"
    result = sheet(str(finished.path), str(out))
    counts = pd.Series(finished.decisions).value_counts()
    assert (result.kept, result.rejected, result.pairs) == (counts[CLEAN], counts[ANOMALOUS], 2)
    assert result.blank == 0
    assert Path(result.out) == out
    assert out.stat().st_size <= MAX_BYTES
    assert Image.open(BytesIO(out.read_bytes())).width == 1200
    (shown,) = drawn
    assert {tile.name for tile in shown.kept} <= {name for name, is_ in finished.decisions.items() if is_ == CLEAN}
    rejected = finished.manifest.set_index("file_name").loc[[tile.name for tile in shown.rejected]]
    assert [tile.note for tile in shown.rejected] == [f"{margin:.2f} \u00d7 threshold" for margin in rejected["margin"]]
    boxes = rejected[["bbox_x", "bbox_y", "bbox_width", "bbox_height"]].astype(int)
    assert [tile.box for tile in shown.rejected] == list(boxes.itertuples(index=False, name=None))
    names = finished.manifest.set_index("sample_id")["file_name"]
    copies = finished.manifest.set_index("file_name")["duplicate_of"]
    assert [left.name for left, _ in shown.pairs] == [names[copies[right.name]] for _, right in shown.pairs]


def test_a_sheet_is_the_same_every_time(finished: Run, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        sheet(str(finished.path), str(tmp_path / name))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_near_duplicates_are_shown_beside_their_originals(tmp_path: Path, drawn: list[Sheet]) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    write_parts(archive, 16, 2)
    buffer = BytesIO()
    Image.open(BytesIO((archive / "good_000.png").read_bytes())).convert("RGB").save(buffer, "JPEG", quality=97)
    (archive / "again.jpg").write_bytes(buffer.getvalue())
    run = run_on(archive, tmp_path / "run", "trim.strategy=grow")
    near = run.manifest["near_duplicate_of"].notna().sum()
    assert near
    assert sheet(str(run.path), str(tmp_path / "sheet.png")).pairs == min(near, PAIRS)
    assert {right.note for _, right in drawn[0].pairs} == {"near-duplicate"}


def test_images_that_are_gone_changed_or_broken_are_blank_tiles(
    tmp_path: Path, drawn: list[Sheet], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    write_parts(archive, 8, 2)
    run = run_on(archive, tmp_path / "run")
    gone, changed, *_ = kept = sorted(name for name, decision in run.decisions.items() if decision == CLEAN)
    (archive / gone).unlink()
    (archive / changed).write_bytes(b"something else")
    result = sheet(str(run.path), str(tmp_path / "sheet.png"))
    assert result.blank == 2
    reasons = {tile.name: tile.reason for tile in drawn[0].kept}
    assert reasons == {**dict.fromkeys(kept, ""), gone: "no longer there", changed: "changed since the run"}


def test_an_untrustworthy_run_has_a_sheet_too(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    write_parts(archive, 7, 1)
    with pytest.raises(UntrustworthyError):
        clean(str(archive), str(tmp_path / "run"), quick_config("guard.accept_untrustworthy=false"))
    assert not (tmp_path / "run" / "_SUCCESS").exists()
    assert sheet(str(tmp_path / "run"), str(tmp_path / "sheet.png")).blank == 0


def test_a_run_in_an_object_store_has_a_sheet(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    write_parts(archive, 8, 1)
    with moto_server() as endpoint, bucket_on(endpoint) as server, reached(server):
        check_in_store(server, archive)


def check_in_store(server: Server, archive: Path) -> None:
    server.put_folder(archive, "archive")
    run = server.url("run")
    clean(server.url("archive"), run, quick_config(*server.options()))
    result = sheet(run, server.url("sheet.png"))
    assert result.blank == 0
    assert result.out == server.url("sheet.png")
    assert Image.open(BytesIO(read_bytes(result.out))).width == 1200


# --- what is refused


def test_a_store_that_is_away_ends_the_command(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(location: str) -> bytes:
        raise StorageError("the store does not answer")

    monkeypatch.setattr(under_test, "read_bytes", fail)
    with pytest.raises(StorageError, match="does not answer"):
        sheet(str(finished.path), str(tmp_path / "sheet.png"))
    assert not (tmp_path / "sheet.png").exists()


def test_what_is_not_a_judged_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        sheet(str(tmp_path), str(tmp_path / "sheet.png"))


def test_a_name_that_is_not_that_of_a_png_is_refused(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sheet\.jpg"):
        sheet(str(finished.path), str(tmp_path / "sheet.jpg"))


def test_a_negative_seed_is_refused(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--seed -1"):
        sheet(str(finished.path), str(tmp_path / "sheet.png"), seed=-1)


# --- the command


def test_the_command_prints_its_result_as_json(finished: Run, tmp_path: Path) -> None:
    with restored_loggers():
        ended = CliRunner().invoke(cli, ["sheet", str(finished.path), "--out", str(tmp_path / "s.png"), "--json"])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["out"] == str(tmp_path / "s.png")
    assert (tmp_path / "s.png").exists()

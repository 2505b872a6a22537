"""A run opened from Python."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import paire
import pipeline.run_directory.finished
from pipeline.commands.recut import recut
from schemas.config import parse_config
from tests.support.runs import Run, quick_run_on
from workers.storage.settings import storage_in_use, use_storage


def test_a_run_has_its_tables_books_and_options(finished: Run) -> None:
    run = paire.open_run(finished.path)
    assert run.url == str(finished.path)
    assert run.run_id == finished.result.run_id
    assert run.ledger == finished.result.ledger
    assert run.config.features.backbone == "resnet18"
    pd.testing.assert_frame_equal(run.manifest, finished.manifest, check_dtype=False)
    assert run.iterations["n_clean"].tolist() == finished.iterations["n_clean"].tolist()


def test_clean_and_rejected_are_rows_of_the_manifest(finished: Run) -> None:
    run = paire.open_run(str(finished.path))
    total = run.ledger["total"]
    assert set(run.clean["decision"]) == {"clean"}
    assert set(run.rejected["decision"]) == {"anomalous"}
    assert (len(run.clean), len(run.rejected)) == (total["clean"], total["anomalous"])
    assert run.clean.index.tolist() == list(range(total["clean"]))
    assert run.clean["sample_id"].isin(run.manifest["sample_id"]).all()
    assert list(run.rejected.columns) == list(run.manifest.columns)


def test_tables_are_read_on_first_use_and_once(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(*_: object, **__: object) -> None:
        raise AssertionError("read before it was needed, or again")

    with monkeypatch.context() as patched:
        patched.setattr("paire.run.read_table", unread)
        patched.setattr(pipeline.run_directory.finished, "read_table", unread)
        patched.setattr(pipeline.run_directory.finished, "read_ledger", unread)
        patched.setattr("workers.map.reader.GaussianMap.open", unread)
        run = paire.open_run(finished.path)
    names = ("manifest", "clean", "rejected", "iterations", "ledger", "map")
    first = [getattr(run, name) for name in names]
    assert all(getattr(run, name) is value for name, value in zip(names, first, strict=True))


def test_the_map_scores_new_images(finished: Run) -> None:
    gaussian_map = paire.open_run(finished.path).map
    assert isinstance(gaussian_map, paire.GaussianMap)
    scores = paire.ImageScorer(gaussian_map, device="cpu").score([finished.source / "good_000.png"])
    assert isinstance(scores, paire.Scores)
    assert np.isfinite(scores.anomaly_score).all()


def test_a_run_shows_where_it_is_and_what_was_decided(finished: Run) -> None:
    total = finished.result.ledger["total"]
    assert repr(paire.open_run(finished.path)) == (
        f"<paire.Run {str(finished.path)!r}: 23 inputs in 1 group: {total['clean']} clean, "
        f"{total['anomalous']} anomalous, 2 duplicate, 1 unreadable, 1 skipped; untrustworthy>"
    )


def test_a_run_without_its_books_is_still_shown(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    (tmp_path / "run" / "ledger.json").unlink()
    run = paire.open_run(tmp_path / "run")
    assert repr(run) == f"<paire.Run {str(tmp_path / 'run')!r}>"
    with pytest.raises(paire.SourceError, match=r"ledger\.json"):
        _ = run.ledger


def test_a_version_of_a_run_is_opened_like_a_run(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    version = recut(
        str(tmp_path / "run"), parse_config(None, ["trim.strategy=none", "guard.accept_untrustworthy=true"])
    )
    run = paire.open_run(version.run)
    assert run.url == str(tmp_path / "run" / "recuts" / "0001")
    assert run.config.trim.strategy == "none"
    assert len(run.clean) == version.ledger["total"]["clean"]


# --- what is not a published run


def test_an_untrustworthy_run_is_opened_only_when_that_is_accepted(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(paire.UntrustworthyError):
        quick_run_on(finished.source, tmp_path / "run", "guard.accept_untrustworthy=false")
    with pytest.raises(
        paire.SourceError, match=r"is not published: .*ledger\.json says why.*accept_untrustworthy=True"
    ):
        paire.open_run(tmp_path / "run")
    run = paire.open_run(tmp_path / "run", accept_untrustworthy=True)
    assert len(run.manifest) == run.ledger["total"]["inputs"]
    assert repr(run).endswith("; untrustworthy>")
    assert run.map.groups == ("all",)


@pytest.mark.parametrize("accept", [False, True])
def test_a_missing_run_is_a_source_error(tmp_path: Path, accept: bool) -> None:
    with pytest.raises(paire.SourceError, match="nowhere"):
        paire.open_run(tmp_path / "nowhere", accept_untrustworthy=accept)


@pytest.mark.parametrize("accept", [False, True])
def test_an_unfinished_run_is_a_source_error(finished: Run, tmp_path: Path, accept: bool) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    (tmp_path / "run" / "_SUCCESS").unlink()
    with pytest.raises(paire.SourceError, match="_SUCCESS"):
        paire.open_run(tmp_path / "run", accept_untrustworthy=accept)


def test_an_unknown_protocol_is_a_source_error() -> None:
    with pytest.raises(paire.PaireError, match="nosuch"):
        paire.open_run("nosuch://bucket/run")


# --- storage


def test_storage_options_hold_from_now_on(finished: Run) -> None:
    before = storage_in_use()
    try:
        paire.open_run(finished.path, storage={"retry_seconds": 3})
        assert storage_in_use().retry_seconds == 3
        paire.open_run(finished.path)
        assert storage_in_use().retry_seconds == 3
    finally:
        use_storage(before)


def test_a_wrong_storage_option_is_a_config_error(finished: Run) -> None:
    with pytest.raises(paire.ConfigError, match=r"storage\.endpoint"):
        paire.open_run(finished.path, storage={"endpoint": "https://s3.example.com"})

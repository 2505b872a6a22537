"""The rows of a study: kept whole, taken over where they still hold, computed again where they do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from studies.cleaning import results as module
from studies.cleaning.dirty_sets import OVERLAP, Case
from studies.cleaning.methods import CONCENTRATE, ETA, GROW, NONE, ORACLE, PAIRE, TRIM_ONCE, Method
from studies.cleaning.results import Result, ResultsFile, code_digest, digest_of, passes_of

CASE = Case("part", OVERLAP, 0.1, 0)
RESULT = Result(
    archive=CASE.archive,
    protocol=CASE.protocol,
    noise=CASE.noise,
    seed=CASE.seed,
    method=NONE,
    setting="",
    made_of="0123",
    images=20,
    anomalies=2,
    kept=20,
    kept_anomalies=2,
    purity=0.9,
    kept_share=1.0,
    passes=1,
    stop_reason="no trimming",
    floor_applied=False,
    history="20:2",
    test_normals=5,
    test_anomalies=0,
    auroc=float("nan"),
    auroc_smoothed=float("nan"),
    seconds=1.5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study" / "results.csv"


def test_rows_are_there_again_with_their_types(path: Path) -> None:
    ResultsFile(path).add([RESULT])
    (row,) = ResultsFile(path).table.to_dict("records")
    assert np.isnan(row.pop("auroc"))
    assert np.isnan(row.pop("auroc_smoothed"))
    expected = {name: value for name, value in vars(RESULT).items() if not name.startswith("auroc")}
    assert row == expected
    assert not list(path.parent.glob("*.part"))


def test_a_row_is_missing_until_one_made_of_the_same_is_there(path: Path) -> None:
    results = ResultsFile(path)
    assert results.lacks(CASE, Method(NONE), "0123")
    results.add([RESULT])
    assert not ResultsFile(path).lacks(CASE, Method(NONE), "0123")
    assert ResultsFile(path).lacks(CASE, Method(NONE), "4567")
    assert ResultsFile(path).lacks(CASE, Method(PAIRE), "0123")
    assert ResultsFile(path).lacks(replace(CASE, seed=1), Method(NONE), "0123")


def test_a_new_row_takes_the_place_of_the_old_one(path: Path) -> None:
    results = ResultsFile(path)
    results.add([RESULT, replace(RESULT, seed=1)])
    results.add([replace(RESULT, made_of="4567")])
    assert ResultsFile(path).table[["seed", "made_of"]].to_numpy().tolist() == [[0, "4567"], [1, "0123"]]


def test_a_file_of_other_columns_is_started_over(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("archive,purity\npart,0.5\n", encoding="utf-8")
    assert ResultsFile(path).lacks(CASE, Method(NONE), "0123")


def test_rows_of_what_was_not_asked_for_stay_out_of_the_report(path: Path) -> None:
    results = ResultsFile(path)
    results.add([RESULT, replace(RESULT, seed=1), replace(RESULT, method=PAIRE)])
    assert results.rows_of([(CASE, Method(NONE)), (CASE, Method(GROW))])[["method", "seed"]].to_numpy().tolist() == [
        [NONE, 0]
    ]


def test_what_a_row_is_made_of_depends_on_images_weights_options_and_method() -> None:
    def digest(images: str = "a", weights: str = "b", method: Method | None = None) -> str:
        method = method or Method(PAIRE)
        return digest_of(images, weights, method.config(), method)

    made = [digest(), digest(images="c"), digest(weights="c"), digest(method=Method(PAIRE, f"{ETA}=3"))]
    assert len(set(made)) == 4
    assert digest() == made[0]


def test_the_code_of_a_strategy_is_followed_through_the_packages() -> None:
    assert code_digest(("pipeline/judging/strategies/paire.py",)) != code_digest(
        ("pipeline/judging/strategies/grow.py",)
    )
    known = {path.name for path in module._closure(("pipeline/judging/strategies/grow.py",))}
    assert {"grow.py", "base.py", "calibration.py", "selection.py"} <= known
    assert "config.py" not in known


@pytest.mark.parametrize(
    ("method", "file"),
    [
        (NONE, "ablations"),
        (TRIM_ONCE, "ablations"),
        (ORACLE, "ablations"),
        (PAIRE, "paire"),
        (CONCENTRATE, "concentrate"),
        (GROW, "grow"),
    ],
)
def test_a_row_is_made_of_the_file_of_its_strategy(method: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[tuple[str, ...]] = []

    def digest(files: tuple[str, ...]) -> str:
        digested.append(files)
        return ""

    monkeypatch.setattr(module, "code_digest", digest)
    digest_of("a", "b", Method(method).config(), Method(method))
    assert digested[0][0] == f"pipeline/judging/strategies/{file}.py"
    assert all((module.ROOT / name).is_file() for name in digested[0])


def test_comments_docstrings_and_layout_are_no_change_of_code(tmp_path: Path) -> None:
    def dump(text: str) -> str:
        (tmp_path / "code.py").write_text(text, encoding="utf-8")
        return module._behaviour(tmp_path / "code.py")

    code = dump('"""Why."""\n\n\ndef double(x):\n    """Return twice."""\n    return 2 * x  # twice\n')
    assert code == dump("def double(x):\n    return (\n        2 * x\n    )\n")
    assert code != dump("def double(x):\n    return 3 * x\n")


def test_a_history_is_read_back() -> None:
    assert passes_of("21:0 116:3").tolist() == [[21, 0], [116, 3]]
    assert passes_of("").shape == (0, 2)

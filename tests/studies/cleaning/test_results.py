"""The rows of a study: kept whole, taken over where they still hold, computed again where they do not."""

from pathlib import Path

import numpy as np
import pytest

from studies.cleaning import results as module
from studies.cleaning.dirty_sets import OVERLAP, Case
from studies.cleaning.methods import NONE, Method
from studies.cleaning.results import Result, ResultsFile, code_digest, digest_of, key_of

CASE, BACKBONE = Case("part", OVERLAP, 0.1, 0), "squeezenet1_1"
UNDEFINED = ("auroc", "oracle_auroc", "contamination", "lower", "upper", "covered")
RESULT = Result(
    archive=CASE.archive,
    backbone=BACKBONE,
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
    stops=False,
    said="",
    failed=False,
    silent=False,
    test_normals=5,
    test_anomalies=0,
    oracle_cut=0.8,
    seconds=1.5,
    **dict.fromkeys(UNDEFINED, float("nan")),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study" / "results.csv"


def test_rows_are_there_again_with_their_types(path: Path) -> None:
    ResultsFile(path).add([RESULT])
    (row,) = ResultsFile(path).table.to_dict("records")
    assert all(np.isnan(row.pop(name)) for name in UNDEFINED)
    assert row == {name: value for name, value in RESULT._asdict().items() if name not in UNDEFINED}
    assert not list(path.parent.glob("*.part"))


def test_rows_are_known_by_their_keys_with_what_they_were_made_of(path: Path) -> None:
    results = ResultsFile(path)
    assert results.digests == {}
    results.add([RESULT])
    assert ResultsFile(path).digests == {key_of(CASE, BACKBONE, Method(NONE)): "0123"}


def test_a_new_row_takes_the_place_of_the_old_one(path: Path) -> None:
    results = ResultsFile(path)
    results.add([RESULT, RESULT._replace(seed=1)])
    results.add([RESULT._replace(made_of="4567")])
    assert ResultsFile(path).table[["seed", "made_of"]].to_numpy().tolist() == [[0, "4567"], [1, "0123"]]


def test_a_file_of_other_columns_is_started_over(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("archive,purity\npart,0.5\n", encoding="utf-8")
    assert ResultsFile(path).digests == {}


def test_rows_of_what_was_not_asked_for_stay_out_of_the_report(path: Path) -> None:
    results = ResultsFile(path)
    results.add([RESULT, RESULT._replace(seed=1), RESULT._replace(method="paire"), RESULT._replace(backbone="other")])
    wanted = [(CASE, BACKBONE, Method(NONE)), (CASE, BACKBONE, Method("grow"))]
    assert results.rows_of(wanted)[["method", "seed"]].to_numpy().tolist() == [[NONE, 0]]


def test_what_a_row_is_made_of_depends_on_images_weights_options_and_method() -> None:
    def digest(images: str = "a", weights: str = "b", method: Method | None = None) -> str:
        method = method or Method("paire")
        return digest_of(images, weights, method.config(), method)

    made = [digest(), digest(images="c"), digest(weights="c"), digest(method=Method("paire", "trim.eta=3"))]
    assert len(set(made)) == 4
    assert digest() == made[0]


@pytest.mark.parametrize(
    ("method", "file"),
    [(NONE, "ablations"), ("paire", "paire"), ("concentrate", "concentrate"), ("grow", "grow")],
)
def test_a_row_is_made_of_the_file_of_its_strategy(method: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[tuple[str, ...]] = []

    def digest(places: tuple[str, ...]) -> str:
        digested.append(places)
        return ""

    monkeypatch.setattr(module, "code_digest", digest)
    digest_of("a", "b", Method(method).config(), Method(method))
    assert digested[0][0].endswith(f"pipeline/judging/strategies/{file}.py")
    assert all((module.ROOT / name).exists() for name in digested[0])


def test_the_code_of_a_folder_is_that_of_its_files() -> None:
    folder = "workers/verdict"
    files = tuple(path.relative_to(module.ROOT).as_posix() for path in (module.ROOT / folder).rglob("*.py"))
    assert code_digest((folder,)) == code_digest(files) != code_digest(files[1:])


def test_comments_docstrings_and_layout_are_no_change_of_code(tmp_path: Path) -> None:
    def dump(text: str) -> str:
        (tmp_path / "code.py").write_text(text, encoding="utf-8")
        return module._behaviour(tmp_path / "code.py")

    code = dump('"""Why."""\n\n\ndef double(x):\n    """Return twice."""\n    return 2 * x  # twice\n')
    assert code == dump("def double(x):\n    return (\n        2 * x\n    )\n")
    assert code != dump("def double(x):\n    return 3 * x\n")

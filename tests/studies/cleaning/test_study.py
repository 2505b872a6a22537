"""The whole study on two small archives, cut short and taken up again."""

from pathlib import Path

import pandas as pd
import pytest

from schemas.errors import EXIT_USAGE
from studies.cleaning.__main__ import main
from studies.cleaning.archives import write_category

COMMAND = (
    *("--weights", "random", "--sets", "bottle", "transistor-turned", "--backbones", "squeezenet1_1"),
    *("--noise", "0", "0.1", "--seeds", "1", "--workers", "1"),
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a command whose study has been run once."""
    folder = tmp_path_factory.mktemp("study")
    for name, seed in (("mvtec_bottle", 0), ("transistor", 500)):
        write_category(folder / "data" / name, first_seed=seed)
    command = [str(folder / "data"), *COMMAND, "--out", str(folder / "docs"), "--cache", str(folder / "cache")]
    assert main(command) == 0
    return command


def docs(words: list[str]) -> Path:
    return Path(words[words.index("--out") + 1])


def test_it_writes_report_figures_and_rows(words: list[str]) -> None:
    rows = pd.read_csv(docs(words) / "study" / "results.csv", keep_default_na=False)
    assert set(rows["archive"]) == {"bottle", "transistor-turned"}
    # Four methods on three sets of the one and two of the other, and eight more where constants are swept.
    assert len(rows) == 4 * (3 + 2) + 2 * 8
    none = rows[(rows["method"] == "none") & (rows["noise"] == 0.1)]
    assert (none["kept"] == none["images"]).all()
    assert (none["kept_anomalies"] == 2).all()
    report = (docs(words) / "study.md").read_text(encoding="utf-8")
    figures = {path.name for path in (docs(words) / "study").glob("*.png")}
    assert figures == {"bottle.png", "transistor-turned.png"}
    assert all(f"(study/{name})" in report for name in figures)
    assert "## Leave one set out" in report
    assert str(docs(words).parent) not in report


def test_a_study_that_is_done_computes_nothing_and_prose_stays(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results, report = docs(words) / "study" / "results.csv", docs(words) / "study.md"
    before = results.read_bytes()
    report.write_text(report.read_text(encoding="utf-8") + "\nWhat I make of it.\n", encoding="utf-8")
    assert main(words) == 0
    assert "extracting" not in capsys.readouterr().err
    assert results.read_bytes() == before
    assert report.read_text(encoding="utf-8").endswith("\nWhat I make of it.\n")


def test_only_what_no_longer_holds_is_computed_again(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = docs(words) / "study" / "results.csv"
    rows = pd.read_csv(results, keep_default_na=False)
    stale = (rows["archive"] == "bottle") & (rows["method"] == "paire") & (rows["noise"] == 0.1)
    rows.assign(made_of=rows["made_of"].where(~stale, "earlier"), seconds=rows["seconds"].where(stale, 0)).to_csv(
        results, index=False
    )
    assert main(words) == 0
    shown = capsys.readouterr().err
    assert "1 of 1: bottle" in shown
    assert "transistor" not in shown
    again = pd.read_csv(results, keep_default_na=False)
    assert (again.loc[~stale, "seconds"] == 0).all()
    assert (again.loc[stale, "seconds"] > 0).all()
    # The same images by the same methods: the same results.
    pd.testing.assert_frame_equal(again.loc[stale, "images":"oracle_cut"], rows.loc[stale, "images":"oracle_cut"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["nothing-here"], "not a folder"),
        (["--weights", "nothing"], "nothing/squeezenet1_1"),
        (["--noise", "2"], "is not a share"),
    ],
)
def test_bad_input_is_said_on_one_line(
    words: list[str], changed: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*words, *changed] if changed[0].startswith("--") else [*changed, *words[1:]]
    assert main(given) == EXIT_USAGE
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("changed", [["--seeds", "0"], ["--workers", "0"], ["--sets", "nothing"], ["--sweep", "grow"]])
def test_impossible_arguments_end_the_command(words: list[str], changed: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, *changed])
    assert ended.value.code == EXIT_USAGE

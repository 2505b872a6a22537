"""The report: failures first, figures where they belong, prose left alone."""

from collections.abc import Iterator

import pandas as pd
import pytest

from studies.cleaning.dirty_sets import NO_OVERLAP, OVERLAP, Case, list_cases
from studies.cleaning.methods import COMPARED, NONE, SWEEPS, Method, methods_for
from studies.cleaning.report import END, START, TITLE, Report, with_report
from studies.cleaning.results import Result

PURITY = {0: 1.0, 1: 0.9}
BACKBONES = ("one", "two")


def result(case: Case, backbone: str, method: Method) -> Result:
    """Return a row: `grow` fails with seed 1, silently with the first backbone."""
    failed = method.name == "grow" and case.seed == 1
    return Result(
        archive=case.archive,
        backbone=backbone,
        protocol=case.protocol,
        noise=case.noise,
        seed=case.seed,
        method=method.name,
        setting=method.setting,
        made_of="",
        images=200,
        anomalies=round(200 * case.noise),
        kept=180,
        kept_anomalies=2,
        purity=PURITY[case.seed] if method.name == "grow" else 1.0,
        kept_share=0.97,
        passes=2,
        stop_reason="",
        stops=method.name == "concentrate",
        said="" if backbone == "one" else "no clear boundary",
        failed=failed,
        silent=failed and backbone == "one",
        contamination=0.12,
        lower=0.05,
        upper=0.15,
        covered=float(case.noise == 0.1),
        test_normals=20,
        test_anomalies=9 if case.protocol == OVERLAP else 60,
        auroc=0.9,
        oracle_auroc=0.95,
        oracle_cut=0.99,
        seconds=1.0,
    )


def results() -> Iterator[Result]:
    for case in list_cases(["bottle", "casting"], [0.0, 0.1], 2, made=()):
        for backbone in BACKBONES:
            for method in methods_for(case, COMPARED, SWEEPS if backbone == "one" else ()):
                yield result(case, backbone, method)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return pd.DataFrame(list(results()))


@pytest.fixture(scope="module")
def report(rows: pd.DataFrame) -> str:
    return Report(rows, ("bottle", "casting"), BACKBONES, COMPARED, SWEEPS).write("Made today.")


def section(report: str, title: str) -> list[str]:
    lines = report.splitlines()
    start = lines.index(title)
    return lines[start : next((n for n, line in enumerate(lines) if n > start and line.startswith("#")), None)]


def test_failures_come_first_and_are_counted(report: str) -> None:
    assert next(line for line in report.splitlines() if line.startswith("#")) == "## Where it fails"
    lines = section(report, "## Where it fails")
    # Two sets, two noises, two seeds: seed 1 fails.
    assert "| `grow` | one | 8 | 4 | 4 | 0 | 0 | 0 |" in lines
    assert "| `grow` | two | 8 | 4 | 0 | 4 | 0 | 0 |" in lines
    assert "| `concentrate` | one | 8 | 0 | 0 | 0 | 0 | 8 |" in lines
    assert "| casting | 0 of 0 of 8 | 0 of 0 of 8 | 2 of 4 of 8 |" in lines
    assert "| 10% | 0 of 0 of 8 | 0 of 0 of 8 | 2 of 4 of 8 |" in lines


def test_silent_failures_are_listed_before_others(report: str) -> None:
    lines = section(report, "## Where it fails")
    shown = lines[lines.index("The worst of 8 failures, silent ones first:") :]
    assert "| bottle | one | 0% | 1 | `grow` | 0.900 | 2 of 0 | 0.97 | 0.900 of 0.950 | **nothing** |" in shown
    said = [line.split("|")[-2].strip() for line in shown if line.startswith(("| bottle", "| casting"))]
    assert said[:8] == ["**nothing**"] * 4 + ["no clear boundary"] * 4


def test_without_failures_it_says_so(rows: pd.DataFrame) -> None:
    report = Report(rows[rows["method"] != "grow"], ("bottle",), BACKBONES, ("paire",), ()).write("")
    assert "No clean set has a purity below 0.98." in report
    assert "Leave one set out" not in report


def test_coverage_has_width_and_error(report: str) -> None:
    lines = section(report, "## Coverage of the contamination interval")
    assert "| casting | 0.50 (0.10; +0.07) | 0.50 (0.10; +0.07) | 0.50 (0.10; +0.07) |" in lines


def test_every_sweep_has_a_line_for_each_set(report: str) -> None:
    lines = section(report, "## Leave one set out")
    assert "| casting | 2.3 | 0, 0, 0.970 | 0, 0, 0.970 | 0, 0, 0.970 | 2.3 |" in lines
    assert sum(line.startswith("| casting") for line in lines) == len(SWEEPS)


def test_cells_are_the_mean_the_worst_and_the_oracle_s(report: str) -> None:
    lines = section(report, "### bottle, no overlap")
    assert "| one | 10% | 1.0000 (1.0000) | 1.0000 (1.0000) | 0.9500 (0.9000) |" in lines
    kept = lines[lines.index("Kept share, of the oracle's cut:") :]
    assert kept[4].startswith("| one | 0% | 0.970 (0.970) of 0.990 |")


def test_no_area_under_the_curve_is_given_where_few_anomalies_are_tested(report: str) -> None:
    lines = section(report, "### bottle, overlap")
    auroc = lines[lines.index("AUROC, of the oracle's:") :]
    assert next(line for line in auroc if line.startswith("| one | 10% |")).count("not given") == 1 + len(COMPARED)


def test_dirty_sets_are_described(report: str) -> None:
    assert "| overlap | 10% | 200 | 20 | 20 | 9 |" in report.splitlines()
    assert "| no overlap | 10% | 200 | 20 | 20 | 60 |" in report.splitlines()


def test_no_trimming_is_no_failure(rows: pd.DataFrame) -> None:
    judged = Report(rows, ("bottle",), BACKBONES, COMPARED, ()).judged
    assert NONE not in set(judged["method"])
    assert set(judged["protocol"]) == {NO_OVERLAP}


def test_prose_around_the_markers_stays_and_what_is_between_them_goes() -> None:
    text = f"# Mine\n\nBefore.\n\n{START}\nold\n{END}\n\nAfter.\n"
    assert with_report(text, "new\n") == f"# Mine\n\nBefore.\n\n{START}\nnew\n{END}\n\nAfter.\n"
    assert with_report("", "new") == f"{TITLE}\n\n{START}\nnew\n{END}\n"
    assert with_report("Mine.\n", r"\1") == f"Mine.\n\n{START}\n\\1\n{END}\n"

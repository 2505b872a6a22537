"""The report: figures where they belong, prose left alone, nothing said that too few images cannot say."""

from collections.abc import Iterator
from dataclasses import asdict

import pandas as pd
import pytest

from pipeline.judging.strategies.base import AMBIGUOUS
from studies.cleaning.dirty_sets import NO_OVERLAP, OVERLAP, list_cases
from studies.cleaning.methods import GROW, ORACLE, PAIRE, Method, methods_for
from studies.cleaning.plots import sweep
from studies.cleaning.report import END, START, TITLE, with_report, write_report
from studies.cleaning.results import Result

PURITY = {0: 1.0, 1: 0.9876}


def result(archive: str, protocol: str, noise: float, seed: int, method: Method) -> Result:
    is_grow, is_oracle = method.name == GROW, method.name == ORACLE
    return Result(
        archive=archive,
        protocol=protocol,
        noise=noise,
        seed=seed,
        method=method.name,
        setting=method.setting,
        made_of="",
        images=200,
        anomalies=round(200 * noise),
        kept=180,
        kept_anomalies=2,
        purity=PURITY[seed] if is_grow else 0.75,
        kept_share=0.97 if is_grow else 0.5,
        passes=2,
        stop_reason=AMBIGUOUS if is_grow and protocol == OVERLAP else "",
        floor_applied=method.name == PAIRE,
        history="100:0 180:2",
        test_normals=20,
        test_anomalies=9 if protocol == NO_OVERLAP else 60,
        auroc=0.9996 if is_oracle else 0.9963 if is_grow else 0.8,
        auroc_smoothed=0.9997,
        seconds=1.0,
    )


def results() -> Iterator[Result]:
    for case in list_cases(["part"], [0.0, 0.1, 0.2], 2):
        for method in methods_for(case, "part"):
            yield result(case.archive, case.protocol, case.noise, case.seed, method)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return pd.DataFrame([asdict(one) for one in results()])


@pytest.fixture(scope="module")
def report(rows: pd.DataFrame) -> str:
    return write_report(rows, archives=["part"], swept_archive="part", made="Made today.")


def section(report: str, title: str) -> list[str]:
    lines = report.splitlines()
    start = lines.index(title)
    return lines[start : next((n for n, line in enumerate(lines) if n > start and line.startswith("#")), None)]


def test_cells_are_the_mean_and_the_worst(report: str) -> None:
    overlap = section(report, "### part, overlap")
    (purity,) = [line for line in overlap[: overlap.index("Kept share:")] if line.startswith("| 10% |")]
    assert purity.endswith("| 0.9938 (0.9876) |")
    assert purity.startswith("| 10% | 0.7500 (0.7500) |")


def test_no_area_under_the_curve_is_given_where_few_anomalies_are_tested(report: str) -> None:
    lines = section(report, "### part, no overlap")
    auroc = lines[lines.index("AUROC with the estimator `ridge`:") :]
    assert next(line for line in auroc if line.startswith("| 10% |")).count("not given") == 4
    assert "0.9996" not in "\n".join(lines)


def test_it_counts_the_dirty_sets_that_come_out_as_wanted(report: str) -> None:
    lines = section(report, "## How many dirty sets come out as wanted")
    # Ten sets: one seed of two is pure, and the four without overlap have no area under the curve.
    assert f"| `{GROW}` | part | 10 | 5 | 10 | 6 | 3 | 6 | 0 |" in lines
    assert f"| `{PAIRE}` | part | 10 | 0 | 0 | 0 | 0 | 0 | 10 |" in lines


def test_dirty_sets_are_described(report: str) -> None:
    assert "| overlap | 20% | 200 | 40 | 20 | 60 |" in report.splitlines()
    assert "| no overlap | 10% | 200 | 20 | 20 | 9 |" in report.splitlines()


def test_a_sweep_has_the_default_among_its_values(rows: pd.DataFrame, report: str) -> None:
    part = rows[(rows["protocol"] == OVERLAP) & (rows["noise"] == 0.1)]
    assert sorted(set(sweep(part, PAIRE, "trim.eta")["value"])) == [1.5, 2.0, 2.3, 2.6, 3.0, 4.0, 6.0]
    targets = [0.005, 0.01, 0.02, 0.05, 0.1]
    assert sorted(set(sweep(part, GROW, "trim.target_false_reject")["value"])) == targets
    assert "| 2.3 | 20% | 0.7500 (0.7500) | 0.500 (0.500) | 0.8000 (0.8000) |" in report.splitlines()


def test_without_a_sweep_none_is_reported(rows: pd.DataFrame) -> None:
    plain = rows[rows["setting"].str.startswith("gaussian.") | (rows["setting"] == "")]
    report = write_report(plain[plain["noise"] == 0], archives=["part"], swept_archive="part", made="")
    assert "trim.eta" not in report


def test_prose_around_the_markers_stays_and_what_is_between_them_goes() -> None:
    text = f"# Mine\n\nBefore.\n\n{START}\nold\n{END}\n\nAfter.\n"
    assert with_report(text, "new\n") == f"# Mine\n\nBefore.\n\n{START}\nnew\n{END}\n\nAfter.\n"
    assert with_report("", "new") == f"{TITLE}\n\n{START}\nnew\n{END}\n"
    assert with_report("Mine.\n", r"\1") == f"Mine.\n\n{START}\n\\1\n{END}\n"

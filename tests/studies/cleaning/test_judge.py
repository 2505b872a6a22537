"""The oracle's own cut, and rows of sets that share their training images."""

from pathlib import Path

import numpy as np
import pytest

from studies.cleaning.archives import write_category
from studies.cleaning.dirty_sets import NO_OVERLAP, OVERLAP, Case, draw
from studies.cleaning.images import prepare_gram
from studies.cleaning.judge import Task, best_cut, judge
from studies.cleaning.methods import NONE, Method
from tests.support.archives import TINY_SETTINGS


@pytest.mark.parametrize(
    ("bad_scores", "purity", "expected"),
    [
        ([20.0], 0.995, 1.0),
        ([0.0], 0.995, 0.0),
        ([5.5], 0.995, 0.5),
        ([5.5], 0.9, 1.0),
        ([5.0], 0.995, 0.4),
        ([], 0.995, 1.0),
    ],
)
def test_the_oracle_s_cut_is_the_largest_pure_part_of_its_ranking(
    bad_scores: list[float], purity: float, expected: float
) -> None:
    scores = np.array([*np.arange(1.0, 11.0), *bad_scores])
    assert best_cut(scores, np.arange(len(scores)) >= 10, purity) == pytest.approx(expected)


def test_each_set_is_tested_on_its_own_test_set_under_one_cleaning(tmp_path: Path) -> None:
    category = write_category(tmp_path / "part")
    first = draw(Case("part", OVERLAP, 0.2, 0), category, tmp_path / "dirty")
    keys = [first.case, Case("part", NO_OVERLAP, 0.2, 0)]
    half = len(first.test.digests) // 2
    second = type(first)(
        keys[1],
        first.train,
        type(first.test)(first.test.digests[:half], first.test.is_anomalous[:half]),
        first.train_list,
        first.roots,
        first.paths,
    )
    gram = prepare_gram(first.paths, tmp_path / "grams", Method("paire").config(TINY_SETTINGS))
    missing = {Method(NONE): {keys[0]: "a"}, Method("paire"): {keys[0]: "b", keys[1]: "c"}}
    rows = judge(Task((first, second), "tiny", TINY_SETTINGS, gram, missing))
    assert [(row.method, row.protocol, row.made_of) for row in rows] == [
        (NONE, OVERLAP, "a"),
        ("paire", OVERLAP, "b"),
        ("paire", NO_OVERLAP, "c"),
    ]
    none, one, other = rows
    assert (none.kept, none.kept_anomalies, none.failed) == (none.images, 5, False)
    assert (one.kept, one.purity, one.said) == (other.kept, other.purity, other.said)
    assert one.test_normals + one.test_anomalies == len(first.test.digests)
    assert other.test_normals + other.test_anomalies == half
    assert one.failed == (one.purity < 0.98)
    assert one.silent == (one.failed and not one.said)

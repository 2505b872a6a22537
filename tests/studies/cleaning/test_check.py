"""The study's strategies against the whole `paire clean` on the same files."""

from pathlib import Path

import pytest

from studies.cleaning.archives import TRAIN_GOOD, write_category
from studies.cleaning.check import Agreement, agreement_table, compare_with_command
from studies.cleaning.dirty_sets import OVERLAP, Case, draw
from studies.cleaning.images import prepare_gram
from studies.cleaning.methods import Method
from tests.support.archives import TINY_SETTINGS

STRATEGIES = ("paire", "trim-once", "concentrate", "grow")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_strategy_keeps_the_images_that_the_command_keeps(tmp_path: Path) -> None:
    dirty = draw(Case("part", OVERLAP, 0.2, 0), write_category(tmp_path / "part"), tmp_path / "dirty")
    gram = prepare_gram(dirty.paths, tmp_path / "grams", Method("paire").config(TINY_SETTINGS))
    found = list(compare_with_command(dirty, gram, STRATEGIES, TINY_SETTINGS, tmp_path))
    assert [one.strategy for one in found] == list(STRATEGIES)
    assert {one.images for one in found} <= {TRAIN_GOOD, TRAIN_GOOD + 1}
    for one in found:
        assert 0 < one.command == one.study < one.images
        assert (one.only_command, one.only_study) == (0, 0)


def test_the_table_has_a_line_for_each_strategy() -> None:
    table = agreement_table([Agreement("paire", 209, 149, 149, 0, 0), Agreement("grow", 209, 184, 183, 2, 1)])
    assert table.splitlines()[2:] == ["| paire | 209 | 149 | 149 | 0 | 0 |", "| grow | 209 | 184 | 183 | 2 | 1 |"]

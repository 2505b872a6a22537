"""Tables for people: which groups they show, and what stands in their cells."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from pipeline.cli.tables import changes_table, dirty_table, figures_table, ledger_table
from schemas.tables.manifest import DECISIONS


def lines(table: Table) -> list[list[str]]:
    """Return the words of each line that is not empty or a rule."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    rows = [line.split() for line in capture.get().splitlines()]
    return [row for row in rows if row and not set("".join(row)) <= {"─"}]


def ledger(groups: int) -> dict[str, Any]:
    books = {f"g{number}": dict.fromkeys(("inputs", *DECISIONS), number) for number in range(groups)}
    return {"groups": books, "total": dict.fromkeys(("inputs", *DECISIONS), 99)}


@pytest.mark.parametrize(("groups", "shown"), [(1, 1), (2, 2), (20, 20), (21, 20)])
def test_a_ledger_has_at_most_twenty_groups_and_a_total_of_several(groups: int, shown: int) -> None:
    title, header, *rows = lines(ledger_table("/runs/a", ledger(groups)))
    assert (title, header) == (["/runs/a"], ["group", "inputs", *DECISIONS])
    expected = [[f"g{number}", *[str(number)] * 6] for number in range(shown)]
    if groups > shown:
        expected.append(["...", "1", "more", "in", "ledger.json"])
    if groups > 1:
        expected.append(["total", *["99"] * 6])
    assert rows == expected


def test_changes_are_counted_for_each_group_and_in_all() -> None:
    counts = {"added": 1, "removed": 2, "unchanged": 3}
    changes = {"groups": dict.fromkeys(ledger(22)["groups"], counts), "total": dict.fromkeys(counts, 66)}
    _, header, *rows = lines(changes_table("/runs/a", ledger(22), changes))
    assert header == ["group", "inputs", "clean", "added", "removed", "unchanged"]
    assert rows[4] == ["g4", "4", "4", "1", "2", "3"]
    assert rows[-2:] == [["...", "2", "more", "in", "changes.json"], ["total", "99", "99", "66", "66", "66"]]


@pytest.mark.parametrize(("groups", "shown"), [(8, 8), (12, 8)])
def test_figures_show_at_most_eight_groups_the_last_one_always(groups: int, shown: int) -> None:
    names = [f"g{number}" for number in range(groups - 1)] + ["overall"]
    figures = pd.DataFrame({"group": names, "n_clean": 3, "aupro": [np.nan] + [0.5] * (groups - 1)})
    header, counts, shares = lines(figures_table(figures))
    assert header == [*names[: shown - 1], "overall"]
    assert counts == ["n", "clean", *["3"] * shown]
    assert shares == ["aupro", "-", *["0.5000"] * (shown - 1)]


def test_dirty_sets_are_counted_by_label() -> None:
    counts = {"train_normals": 1, "train_anomalies": 2, "test_normals": 3, "test_anomalies": 4}
    *_, cells = lines(dirty_table("/sets/a", counts))
    assert cells == [
        "1",
        "normal,",
        "2",
        "anomalous",
        "3",
        "normal,",
        "4",
        "anomalous",
    ]

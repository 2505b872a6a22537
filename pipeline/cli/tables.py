"""Results as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.run_directory.log import one_line
from schemas.tables.manifest import DECISIONS

# Groups that are shown: as rows of a ledger or of changes, as columns of an evaluation.
_MOST_ROWS = 20
_MOST_COLUMNS = 8

_CHANGES = ("added", "removed", "unchanged")
_SCORED = ("inputs", "scored", "anomalous")


def ledger_table(run: str, ledger: dict[str, Any]) -> Table:
    """Return the decisions of a run, a row for each group."""

    def cells(books: dict[str, int]) -> list[int]:
        return [books[name] for name in ("inputs", *DECISIONS)]

    rows = {group: cells(books) for group, books in ledger["groups"].items()}
    table = _table_of_groups(run, ("inputs", *DECISIONS), rows, cells(ledger["total"]), more_in="ledger.json")
    judged = [books for books in ledger["groups"].values() if books.get("purity") and books["clean"]]
    if judged:
        kept = sum(books["clean"] for books in judged)
        estimate, lower = (
            sum(books["clean"] * books["purity"][name] for books in judged) / kept for name in ("estimate", "lower")
        )
        table.caption = f"purity of the clean images: an estimated {estimate:.1%}, at least {lower:.1%}"
        table.caption_justify = "left"
    return table


def changes_table(run: str, ledger: dict[str, Any], changes: dict[str, Any]) -> Table:
    """Return what a recut changed, a row for each group."""

    def cells(books: dict[str, int], counts: dict[str, int]) -> list[int]:
        return [books["inputs"], books["clean"], *(counts[name] for name in _CHANGES)]

    rows = {group: cells(books, changes["groups"][group]) for group, books in ledger["groups"].items()}
    total = cells(ledger["total"], changes["total"])
    return _table_of_groups(run, ("inputs", "clean", *_CHANGES), rows, total, more_in="changes.json")


def scores_table(result: dict[str, Any]) -> Table:
    """Return how many images were scored and how many are anomalous."""
    table = _table(result["scores"], *_SCORED)
    table.add_row(*(str(result[name]) for name in _SCORED))
    return table


def recall_table(out: str, overall: dict[str, Any]) -> Table:
    """Return the recall of a trust test: a row for each kind and contrast, a column for each size."""
    recall = overall["recall"]
    sizes = list(dict.fromkeys(cell["size"] for cell in recall))
    table = _table(out, "recall", "", *(f"{size:.0%}" for size in sizes))
    for kind, contrast in dict.fromkeys((cell["kind"], cell["contrast"]) for cell in recall):
        row = [cell for cell in recall if (cell["kind"], cell["contrast"]) == (kind, contrast)]
        table.add_row(kind, contrast, *(f"{cell['recall']:.2f}" for cell in row))
    rate, low, high = (overall[f"false_reject_{name}"] for name in ("rate", "low", "high"))
    table.caption = (
        f"untouched images rejected: {overall['false_rejects']} of {overall['images']}, "
        f"{rate:.1%} ({low:.1%} to {high:.1%})"
    )
    table.caption_justify = "left"
    return table


def figures_table(figures: pd.DataFrame) -> Table:
    """Return the figures of an evaluation: a row for each figure and a column for each group.

    The last row of ``figures`` describes all groups together and is always shown.
    """
    shown = figures if len(figures) <= _MOST_COLUMNS else pd.concat([figures[: _MOST_COLUMNS - 1], figures[-1:]])
    table = Table("", *(Column(header=Text(one_line(str(group)))) for group in shown["group"]), box=SIMPLE_HEAD)
    for name in figures.columns.drop("group"):
        table.add_row(name.replace("_", " "), *map(_figure, shown[name]))
    return table


def dirty_table(out: str, counts: dict[str, int]) -> Table:
    """Return how many normal and anomalous images are in the two sets of ``paire dirty``."""
    table = _table(out, "training set", "test set")
    table.add_row(
        *(f"{counts[f'{part}_normals']} normal, {counts[f'{part}_anomalies']} anomalous" for part in ("train", "test"))
    )
    return table


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=Text(one_line(title)), title_justify="left", box=SIMPLE_HEAD)


def _table_of_groups(
    title: str, columns: Sequence[str], rows: Mapping[str, list[int]], total: list[int], *, more_in: str
) -> Table:
    """Return a table of at most twenty groups, with a total if there are several; ``more_in`` is the file with all."""
    table = _table(title, "group", *columns)
    for group, cells in list(rows.items())[:_MOST_ROWS]:
        table.add_row(Text(one_line(group)), *map(str, cells))
    if len(rows) > _MOST_ROWS:
        table.add_row(f"... {len(rows) - _MOST_ROWS} more in {more_in}")
    if len(rows) > 1:
        table.add_section()
        table.add_row("total", *map(str, total))
    return table


def _figure(value: Any) -> str:
    """Return a count as it is, a share with four digits, and a dash for a figure that is not defined."""
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) and not value.is_integer() else f"{value:g}"

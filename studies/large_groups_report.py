"""The cases of the study of large groups, and its results as tables and a plot in the documentation.

The tables are made from `results.csv` and stand between markers; people write the text around them.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import pandas as pd

from studies.synthetic_features import SHIFTS, Archive

DOCUMENT = Path(__file__).parents[1] / "docs" / "large-groups.md"
FOLDER = DOCUMENT.with_suffix("")
RESULTS = FOLDER / "results.csv"

CENTRE = Archive()
# Small archives are drawn several times, as verdicts on few images depend on the images.
SEEDS = range(3)


@dataclass(frozen=True)
class Series:
    """Archives that differ along some axes, the columns of their table, and the strategies that judge them."""

    axes: tuple[str, ...]
    archives: tuple[Archive, ...]
    strategies: tuple[str, ...] = ("paire", "grow")


def _vary(centre: Archive = CENTRE, **values: tuple[object, ...]) -> tuple[Archive, ...]:
    """Return a centre, changed in one field after the other to each of its values."""
    return tuple(
        dataclasses.replace(centre, **{name: value})  # type: ignore[arg-type]
        for name, column in values.items()
        for value in column
    )


def _seeded(archives: tuple[Archive, ...]) -> tuple[Archive, ...]:
    return tuple(dataclasses.replace(archive, seed=seed) for archive in archives for seed in SEEDS)


# The strategies: names in the tables to settings.
STRATEGIES = {
    "paire": ("trim.strategy=paire",),
    "trim-once": ("trim.strategy=trim-once",),
    "grow": ("trim.strategy=grow",),
    "grow, smoothing 3": ("trim.strategy=grow", "trim.smoothing=3"),
    "grow, smoothing 1": ("trim.strategy=grow", "trim.smoothing=1"),
}
WITH_ABLATION = ("paire", "trim-once", "grow")
LARGE = Archive(images=10_000)
SERIES = {
    "images": Series(("images",), _vary(images=(200, 1000, 5000, 20_000, 50_000)), WITH_ABLATION),
    "channels": Series(
        ("images", "channels", "side"),
        (*_vary(channels=(64, 192, 448)), *_vary(Archive(images=5000, side=3), channels=(64, 448))),
    ),
    "positions": Series(("images", "side"), (*_vary(side=(3, 7, 14)), *_vary(LARGE, side=(3, 7, 14))), WITH_ABLATION),
    "extent": Series(
        ("side", "extent"),
        (*_vary(extent=(1, 3, 5)), *_vary(Archive(side=14), extent=(1, 3, 5))),
        ("grow", "grow, smoothing 3", "grow, smoothing 1"),
    ),
    "planted": Series(("images", "planted"), (*_vary(planted=(0.0, 0.1, 0.3)), *_vary(LARGE, planted=(0.0, 0.1, 0.3)))),
    "few": Series(
        ("images", "channels"),
        _seeded(
            (
                *_vary(Archive(channels=64), images=(60, 100, 200, 400)),
                *_vary(Archive(channels=192), images=(60, 100, 200, 400)),
            )
        ),
    ),
    "copies": Series(
        ("copies", "represented"),
        (*_vary(copies=(0.0, 0.1, 0.3, 0.6)), *_vary(Archive(represented=True), copies=(0.1, 0.3, 0.6))),
    ),
    "repeats": Series(
        ("images", "channels", "repeats", "recurring", "represented"),
        (
            *_vary(repeats=(1, 2, 3, 5, 10, 20)),
            *_vary(Archive(represented=True), repeats=(2, 5, 20)),
            *_vary(Archive(recurring=True), repeats=(5, 20)),
            *_vary(Archive(images=200, channels=192), repeats=(1, 2, 3)),
            *_vary(Archive(images=200, channels=192, represented=True), repeats=(2, 3)),
        ),
    ),
    "tails": Series(("tails", "planted"), (*_vary(tails=(0, 8, 5)), *_vary(Archive(planted=0.0), tails=(0, 8, 5)))),
}

AXIS_NAMES = {"images": "N", "channels": "D", "side": "positions", "represented": "copies found"}
HEADER = (
    "strategy",
    "good kept",
    "defects kept",
    f"by size {', '.join(f'{shift:g}' for shift in SHIFTS)}",
    "purity",
    "AUROC",
    "at target",
    "passes",
    "by floor",
    "stop, warnings",
    "guard",
)
COUNTS = ("good", "good_kept", "defective", "defects_kept", *(f"kept_at_{shift:g}" for shift in SHIFTS))


def write_report(results: pd.DataFrame, document: Path) -> None:
    """Update the tables between the document's markers, and the plot beside the document.

    Raises
    ------
    ValueError
        When the document has no markers for a series.
    """
    text = document.read_text(encoding="utf-8")
    for name, series in SERIES.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{document} has no markers {start} ... {end}: add them where the table belongs.")
        block = f"{start}\n{table(results, series)}{end}"
        text = pattern.sub(lambda _, block=block: block, text)  # type: ignore[misc]
    document.write_text(text, encoding="utf-8")
    draw(results, document.with_suffix("") / "kept-share.png")


def table(results: pd.DataFrame, series: Series) -> str:
    """Return one series as a Markdown table: a row for each case and strategy, over all seeds."""
    columns = (*(AXIS_NAMES.get(axis, axis) for axis in series.axes), *HEADER)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for archive in dict.fromkeys(dataclasses.replace(archive, seed=0) for archive in series.archives):
        seeds = [member.seed for member in series.archives if dataclasses.replace(member, seed=0) == archive]
        found = _rows(results, archive, seeds)
        for strategy in series.strategies:
            rows = found[found["strategy"] == strategy]
            if len(rows):
                cells = [*(_axis(archive, axis) for axis in series.axes), strategy, *_cells(rows)]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _rows(results: pd.DataFrame, archive: Archive, seeds: list[int]) -> pd.DataFrame:
    same = results["seed"].isin(seeds)
    for name, value in dataclasses.asdict(archive).items():
        if name != "seed":
            same &= results[name] == value
    return results[same]


def _axis(archive: Archive, axis: str) -> str:
    value = archive.positions if axis == "side" else getattr(archive, axis)
    if axis == "tails":
        return f"t, {value}" if value else "normal"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.0%}" if isinstance(value, float) else f"{value}"


def _cells(rows: pd.DataFrame) -> list[str]:
    """Return the table row of one case and strategy: sums and means over its seeds."""
    total = rows[list(COUNTS)].sum()
    kept = total["good_kept"] + total["defects_kept"]
    endings = rows["stop_reason"] + rows["warnings"].astype(object).fillna("").map(
        lambda warnings: warnings and f"; {warnings}"
    )
    auroc = rows["margin_auroc"].mean()
    return [
        f"{total['good_kept'] / total['good']:.1%}",
        f"{total['defects_kept']} of {total['defective']}",
        ", ".join(str(total[f"kept_at_{shift:g}"]) for shift in SHIFTS) if total["defective"] else "",
        f"{total['good_kept'] / kept:.4f}" if kept else "",
        "" if pd.isna(auroc) else f"{auroc:.4f}",
        f"{rows['below_target'].sum()}",
        f"{rows['passes'].mean():.3g}",
        f"{rows['floor_passes'].sum()}",
        " / ".join(dict.fromkeys(endings)),
        " / ".join(dict.fromkeys(rows["guard"].dropna())),
    ]


def draw(results: pd.DataFrame, path: Path) -> None:
    """Plot the share of good and of defective images kept against N and against the number of positions."""
    figure = matplotlib.figure.Figure(figsize=(10.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    by_size = list(SERIES["images"].archives)
    by_positions = [archive for archive in SERIES["positions"].archives if archive.images == LARGE.images]
    panels: tuple[tuple[Any, list[Archive], Callable[[Archive], int], str], ...] = (
        (left, by_size, lambda archive: archive.images, f"images ({CENTRE.positions} positions)"),
        (right, by_positions, lambda archive: archive.positions, f"positions (N = {LARGE.images})"),
    )
    for axes, archives, measure, label in panels:
        _draw_panel(axes, results, archives, measure, label)
    left.set_ylabel("share kept")
    figure.legend(*left.get_legend_handles_labels(), fontsize="small", loc="outside right center")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_panel(
    axes: Any, results: pd.DataFrame, archives: list[Archive], measure: Callable[[Archive], int], label: str
) -> None:
    found = [(measure(archive), _rows(results, archive, [archive.seed])) for archive in archives]
    points = pd.concat([rows.assign(place=place) for place, rows in found])
    for strategy in WITH_ABLATION:
        rows = points[points["strategy"] == strategy]
        # Where the paper's rule stops after one pass, both lines coincide: the ablation is drawn wide, behind.
        behind = {"linewidth": 6, "alpha": 0.35, "zorder": 1} if strategy == "trim-once" else {}
        (line,) = axes.plot(rows["place"], rows["good_kept"] / rows["good"], "o-", label=f"{strategy}: good", **behind)
        axes.plot(
            rows["place"],
            rows["defects_kept"] / rows["defective"],
            "x:",
            color=line.get_color(),
            label="  defective",
            **behind,
        )
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(label)
    axes.grid(visible=True, alpha=0.3)

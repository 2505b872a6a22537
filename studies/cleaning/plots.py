"""The figures of the study, one for each set, readable at page width and with any colour vision."""

from io import BytesIO
from typing import Final, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from studies.cleaning.dirty_sets import NO_OVERLAP
from studies.cleaning.methods import NONE

Panels = list[list[Axes]]


class Style(NamedTuple):
    """One of Okabe and Ito's colours, with its own marker and line style."""

    colour: str
    marker: str
    line: str


ORACLE: Final = "oracle"

STYLES: Final = {
    NONE: Style("#999999", "x", ":"),
    "paire": Style("#0072B2", "s", "-"),
    "concentrate": Style("#CC79A7", "D", "-."),
    "grow": Style("#009E73", "o", "-"),
    ORACLE: Style("#000000", "", "--"),
}
# Of strategies that have none of their own, in the order of their names.
_MORE: Final = (Style("#E69F00", "v", "--"), Style("#56B4E9", "^", "-"), Style("#D55E00", "P", "-."))

_BAND: Final = 0.15
_LINE_WIDTH, _MARKER_SIZE = 1.8, 5.5
_DPI: Final = 110

# Quantity, name of the axis, the oracle's column. Without cleaning the purity is the noise, and the kept share 1.
_LINES: Final = (
    ("purity", "purity", ""),
    ("kept_share", "kept share of the normals", "oracle_cut"),
    ("auroc", "test AUROC", "oracle_auroc"),
)


def draw_archive(rows: pd.DataFrame, title: str) -> bytes:
    """Draw purity, kept share and test AUROC against the noise without overlap, the backbones side by side, as a PNG.

    Lines are means over the seeds; bands span the worst to the best. The oracle is the best one of all estimators.
    """
    rows = rows[rows["protocol"] == NO_OVERLAP]
    backbones = list(dict.fromkeys(rows["backbone"]))
    figure, panels = _figure(len(_LINES), len(backbones))
    for line, (quantity, name, oracle) in enumerate(_LINES):
        for panel, backbone in zip(panels[line], backbones, strict=True):
            part = rows[rows["backbone"] == backbone]
            for method, style in styles_of(part).items():
                if quantity == "auroc" or method != NONE:
                    _draw_line(panel, part[part["method"] == method], quantity, style, method)
            if oracle:
                best = part.groupby(["noise", "seed"], as_index=False)[oracle].max()
                _draw_line(panel, best, oracle, STYLES[ORACLE], ORACLE)
            panel.set(ylabel=name, xlabel="noise" if line == len(_LINES) - 1 else "")
            panel.set_title(f"{title}, {backbone}" if not line else "")
            panel.set_xticks(sorted(set(part["noise"])))
            panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _share_limits(panels)
    handles, labels = panels[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, handlelength=4)
    return _png(figure)


def styles_of(rows: pd.DataFrame) -> dict[str, Style]:
    """Return the style of each method in some rows."""
    methods = set(rows["method"])
    known = {method: style for method, style in STYLES.items() if method in methods}
    return known | dict(zip(sorted(methods - set(STYLES)), _MORE, strict=False))


def _draw_line(panel: Axes, rows: pd.DataFrame, quantity: str, style: Style, label: str) -> None:
    """Draw the mean over the seeds, and a band from the least to the largest."""
    values = rows.groupby("noise")[quantity].agg(["mean", "min", "max"])
    panel.plot(
        values.index,
        values["mean"],
        color=style.colour,
        marker=style.marker,
        linestyle=style.line,
        label=label,
        clip_on=False,
        linewidth=_LINE_WIDTH,
        markersize=_MARKER_SIZE,
    )
    panel.fill_between(values.index, values["min"], values["max"], color=style.colour, alpha=_BAND, linewidth=0)


def _figure(lines: int, columns: int) -> tuple[Figure, Panels]:
    figure = Figure(figsize=(9.5, 3.2 * lines + 0.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False)
    for panel in panels.flat:
        panel.grid(color="#E5E5E5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels.tolist()


def _share_limits(panels: Panels) -> None:
    """Give the panels of a row one scale, so that readers can compare backbones."""
    for line in panels:
        low, high = (choose(end for one in line for end in one.get_ylim()) for choose in (min, max))
        for panel in line:
            panel.set_ylim(low, min(high, 1.005))


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

"""The figures of the study, readable at page width and with any colour vision."""

from io import BytesIO
from typing import Final, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from studies.cleaning.dirty_sets import NO_OVERLAP, OVERLAP
from studies.cleaning.methods import (
    CONCENTRATE,
    ETA,
    FALSE_REJECT,
    GROW,
    NONE,
    ORACLE,
    PAIRE,
    STRATEGIES,
    TRIM_ONCE,
    Method,
    estimator,
    with_estimator,
)
from studies.cleaning.results import passes_of

Panels = list[list[Axes]]


class Style(NamedTuple):
    """Okabe and Ito's colours, each with its own marker and line style."""

    colour: str
    marker: str
    line: str


STYLES: Final = {
    NONE: Style("#999999", "x", ":"),
    TRIM_ONCE: Style("#E69F00", "v", "--"),
    PAIRE: Style("#0072B2", "s", "-"),
    CONCENTRATE: Style("#CC79A7", "D", "-."),
    GROW: Style("#009E73", "o", "-"),
    ORACLE: Style("#000000", "", "--"),
}
_BAND: Final = 0.15
# Room above the lines for a legend.
_ROOM: Final = 1.15
_LINE_WIDTH, _MARKER_SIZE, _END_SIZE = 1.8, 5.5, 8.0
_DPI: Final = 110

# Quantity, name of the axis, methods. Without trimming the AUROC falls so far that the other lines would be flat.
_LINES: Final = (
    ("purity", "purity", STRATEGIES),
    ("kept_share", "kept share of the normals", STRATEGIES),
    ("auroc", "test AUROC", (*STRATEGIES, ORACLE)),
    ("auroc", "test AUROC, larger", (*STRATEGIES[1:], ORACLE)),
)


def draw_archive(rows: pd.DataFrame, title: str) -> bytes:
    """Draw purity, kept share and test AUROC against the noise, both protocols side by side, as a PNG.

    Lines are means over the seeds; bands span the worst to the best.
    """
    figure, panels = _figure(len(_LINES), 2, size=(9.5, 13))
    for line, (quantity, name, methods) in enumerate(_LINES):
        for panel, protocol in zip(panels[line], (OVERLAP, NO_OVERLAP), strict=True):
            part = rows[(rows["protocol"] == protocol) | (rows["noise"] == 0)]
            for method in methods:
                _draw_line(panel, _of(part, Method(method)), "noise", quantity, method)
            if ORACLE in methods:
                shrunk = with_estimator(ORACLE, estimator(GROW))
                _draw_line(
                    panel, _of(part, shrunk), "noise", quantity, ORACLE, line_style=(0, (1, 1)), suffix=" of grow"
                )
            panel.set(ylabel=name, xlabel="noise" if line == len(_LINES) - 1 else "")
            panel.set_title(f"{title}, {protocol}" if not line else "")
            panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _share_limits(panels)
    handles, labels = panels[-2][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, handlelength=4)
    return _png(figure)


def draw_ablations(rows: pd.DataFrame, swept: pd.DataFrame) -> bytes:
    """Draw the counterparts of the paper's Figures 13 to 15, and the sweep of `grow`'s target, as a PNG.

    Parameters
    ----------
    rows
        Results of one archive under the overlap protocol, without swept options.
    swept
        All results of that archive and protocol at the noises of the sweeps.
    """
    has_sweep = bool(is_swept(swept).any())
    figure, panels = _figure(2, 2, size=(9.5, 8)) if has_sweep else _figure(1, 2, size=(9.5, 4))
    for method in (NONE, TRIM_ONCE, PAIRE):
        _draw_line(panels[0][0], _of(rows, Method(method)), "noise", "auroc", method)
        _draw_line(panels[0][1], _of(rows, Method(method)), "noise", "kept", method)
    panels[0][0].set(title="Modules of paire (Fig. 13)", xlabel="noise", ylabel="test AUROC")
    panels[0][1].set(title="Number of clean samples (Fig. 14)", xlabel="noise", ylabel="kept images")
    for panel in panels[0]:
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.set_ylim(0, _ROOM * panel.get_ylim()[1])
        panel.legend(frameon=False, handlelength=3, ncols=3, loc="upper center")
    if not has_sweep:
        return _png(figure)
    _draw_sweep(panels[1][0], sweep(swept, PAIRE, ETA), "eta of paire (Fig. 15)", "eta")
    _draw_sweep(panels[1][1], sweep(swept, GROW, FALSE_REJECT), "target_false_reject of grow", "target_false_reject")
    panels[1][1].set_xscale("log")
    targets = sorted(set(sweep(swept, GROW, FALSE_REJECT)["value"]))
    panels[1][1].set_xticks(targets, [f"{value:g}" for value in targets], minor=False)
    panels[1][1].minorticks_off()
    return _png(figure)


def draw_passes(rows: pd.DataFrame) -> bytes:
    """Draw purity against the number of clean images after each pass, one panel for each noise, as a PNG."""
    noises = sorted(set(rows["noise"]))
    figure, panels = _figure(1, len(noises), size=(9.5, 4.6))
    for panel, noise in zip(panels[0], noises, strict=True):
        for method in (PAIRE, CONCENTRATE, GROW):
            style = STYLES[method]
            for number, history in enumerate(_of(rows[rows["noise"] == noise], Method(method))["history"]):
                kept, bad = passes_of(history).T
                purity = 1 - bad / kept
                panel.plot(kept, purity, style.line, color=style.colour, linewidth=1, alpha=0.6)
                panel.plot(kept[:-1], purity[:-1], ".", color=style.colour, alpha=0.6)
                label = "" if number else method
                panel.plot(
                    kept[-1], purity[-1], style.marker, color=style.colour, markersize=_END_SIZE, label=label or None
                )
        panel.axhline(1 - noise, color=STYLES[NONE].colour, linestyle=STYLES[NONE].line, label="everything")
        panel.set(title=f"{noise:.0%} noise", xlabel="kept images after a pass", ylabel="purity")
        panel.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.12))
    return _png(figure)


def is_swept(rows: pd.DataFrame) -> pd.Series:
    """Return the rows of a swept option."""
    swept: pd.Series = rows["setting"].str.startswith((ETA, FALSE_REJECT))
    return swept


def sweep(rows: pd.DataFrame, method: str, option: str) -> pd.DataFrame:
    """Return a method's rows for each value of an option, with its default, with the value in a column ``value``."""
    section, _, key = option.partition(".")
    default = float(getattr(getattr(Method(method).config(), section), key))
    own = rows[(rows["method"] == method) & rows["setting"].str.fullmatch(f"({option}=.*)?")]
    values = [float(setting.partition("=")[2]) if setting else default for setting in own["setting"]]
    return own.assign(value=values)


def _draw_sweep(panel: Axes, rows: pd.DataFrame, title: str, name: str) -> None:
    """Draw the three shares against the values of an option, all noises of the sweep together."""
    for quantity, label, method in (
        ("auroc", "test AUROC", PAIRE),
        ("purity", "purity", GROW),
        ("kept_share", "kept share", TRIM_ONCE),
    ):
        _draw_line(panel, rows, "value", quantity, method, name=label)
    noises = " and ".join(f"{noise:.0%}" for noise in sorted(set(rows["noise"])))
    panel.set(title=f"{title},\nat {noises} noise", xlabel=name, ylabel="share")
    panel.legend(frameon=False, handlelength=4)


def _draw_line(
    panel: Axes,
    rows: pd.DataFrame,
    against: str,
    quantity: str,
    method: str,
    *,
    name: str = "",
    suffix: str = "",
    line_style: str | tuple[int, tuple[int, int]] = "",
) -> None:
    """Draw the mean over the seeds, and a band from the least to the largest."""
    if rows.empty:
        return
    style, values = STYLES[method], rows.groupby(against)[quantity].agg(["mean", "min", "max"])
    panel.plot(
        values.index,
        values["mean"],
        color=style.colour,
        marker=style.marker,
        linestyle=line_style or style.line,
        label=(name or method) + suffix,
        clip_on=False,
        linewidth=_LINE_WIDTH,
        markersize=_MARKER_SIZE,
    )
    panel.fill_between(values.index, values["min"], values["max"], color=style.colour, alpha=_BAND, linewidth=0)


def _of(rows: pd.DataFrame, method: Method) -> pd.DataFrame:
    return rows[(rows["method"] == method.name) & (rows["setting"] == method.setting)]


def _figure(lines: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, Panels]:
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False)
    for panel in panels.flat:
        panel.grid(color="#E5E5E5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels.tolist()


def _share_limits(panels: Panels) -> None:
    """Give the panels of a row one scale, so that readers can compare protocols."""
    for line in panels:
        low, high = (choose(end for one in line for end in one.get_ylim()) for choose in (min, max))
        for panel in line:
            panel.set_ylim(low, min(high, 1.02))


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

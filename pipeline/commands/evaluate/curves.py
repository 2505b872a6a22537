"""The curves of an evaluation as one picture, readable with any colour vision."""

import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.commands.evaluate.evaluation import Evaluation, Figures
from pipeline.commands.evaluate.metrics import AUPRO_LIMIT

# Okabe and Ito's colours, which people with any colour vision tell apart. Each also has its own line style.
_STYLES: Final = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#E69F00", (0, (5, 1, 1, 1, 1, 1))),
    ("#56B4E9", (0, (8, 2))),
)
_OTHERS: Final = "#BBBBBB"
# For each quantity: marker and line style, and the filling of the marker (empty: the colour of the line).
_PASS_LINES: Final = {"purity": ("o-", ""), "kept_share": ("s--", "white")}
_NAME_LENGTH: Final = 24


def draw_curves(evaluation: Evaluation) -> bytes:
    """Draw ROC, precision-recall, per-region overlap, and the clean set over the passes, as a PNG.

    If there are more groups than colours, those with the lowest image AUROC are named and the others are grey.
    """
    figure = Figure(figsize=(11, 8.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    (roc_axes, precision_axes), (pro_axes, pass_axes) = figure.subplots(2, 2)
    by_rank = sorted(evaluation.groups, key=lambda figures: 2.0 if (a := figures.image_auroc) is None else a)
    named = sorted(by_rank[: len(_STYLES)], key=lambda figures: figures.group)
    others = [figures.group for figures in by_rank[len(_STYLES) :]]
    for axes, curve, figure_name, title, x, y in (
        (roc_axes, "roc", "image_auroc", "ROC of images (AUROC)", "false-positive rate", "true-positive rate"),
        (
            precision_axes,
            "precision_recall",
            "average_precision",
            "Precision-recall of images (AP)",
            "recall",
            "precision",
        ),
        (
            pro_axes,
            "pro",
            "aupro",
            f"Per-region overlap of pixels (AUPRO to {AUPRO_LIMIT:g})",
            "false-positive rate",
            "mean overlap",
        ),
    ):
        _draw_panel(axes, evaluation, named, others, curve=curve, figure_name=figure_name)
        axes.set(title=title, xlabel=x, ylabel=y, ylim=(-0.02, 1.02))
        axes.set_xlim(*((-0.006, AUPRO_LIMIT) if curve == "pro" else (-0.02, 1.02)))
    roc_axes.plot([0, 1], [0, 1], color=_OTHERS, linewidth=1, zorder=0)
    _draw_passes(pass_axes, evaluation.by_iteration, [figures.group for figures in named])
    _name_groups(figure, [_short(figures.group) for figures in named], len(others))
    for axes in figure.axes:
        axes.grid(color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    with warnings.catch_warnings():
        # A group's name may be in any script; the font draws a box for a missing glyph.
        warnings.filterwarnings("ignore", message="Glyph")
        canvas.print_png(buffer)
    return buffer.getvalue()


def _draw_panel(
    axes: Axes, evaluation: Evaluation, named: Sequence[Figures], others: Sequence[str], *, curve: str, figure_name: str
) -> None:
    """Draw one kind of curve for all groups, with the groups' figures in the legend."""
    for group in others:
        if points := getattr(evaluation.curves[group], curve):
            axes.plot(points.x, points.y, color=_OTHERS, linewidth=0.8, zorder=1)
    for figures, (colour, style) in zip(named, _STYLES, strict=False):
        if points := getattr(evaluation.curves[figures.group], curve):
            label = f"{getattr(figures, figure_name):.3f}"
            axes.plot(points.x, points.y, color=colour, linestyle=style, linewidth=2, label=label, clip_on=False)
    if axes.lines:
        overall = getattr(evaluation.overall, figure_name)
        title = f"mean {overall:.3f}" if len(evaluation.groups) > 1 else None
        axes.legend(
            title=title,
            handlelength=4,
            loc="lower left" if curve == "precision_recall" else "lower right",
            framealpha=0.9,
        )
    else:
        _say(
            axes,
            "no masks" if curve == "pro" and not evaluation.overall.n_pixel_images else "needs normal and anomalous",
        )


def _draw_passes(axes: Axes, passes: pd.DataFrame, groups: Sequence[str]) -> None:
    """Draw purity (filled) and kept share (hollow) over the passes, in the colours of the groups."""
    for group, (colour, _) in zip(groups, _STYLES, strict=False):
        part = passes[passes["group"] == group]
        for quantity, (line, filling) in _PASS_LINES.items():
            axes.plot(part["iteration"], part[quantity], line, color=colour, markerfacecolor=filling or colour)
    axes.set(title="Clean set by pass", xlabel="pass", ylabel="share", ylim=(-0.02, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not passes["group"].isin(groups).any():
        axes.set_xticks([])
        _say(axes, "no passes: none is stored, or these are scores")
        return
    grey = "#444444"
    keys = [
        Line2D([], [], color=grey, linestyle=line[1:], marker=line[0], markerfacecolor=filling or grey)
        for line, filling in _PASS_LINES.values()
    ]
    names = [quantity.replace("_", " ") for quantity in _PASS_LINES]
    axes.legend(keys, names, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)


def _name_groups(figure: Figure, names: Sequence[str], others: int) -> None:
    """Name the groups below the panels."""
    keys = [Line2D([], [], color=colour, linestyle=style, linewidth=2) for colour, style in _STYLES[: len(names)]]
    # Explicit labels, because matplotlib would hide one that starts with an underscore.
    labels = list(names)
    if others:
        keys.append(Line2D([], [], color=_OTHERS))
        labels.append(f"{others} other groups")
    figure.legend(keys, labels, loc="outside lower center", ncols=4, handlelength=4, frameon=False, title="group")


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="#666666")


def _short(name: str) -> str:
    """Return a group's name for a legend: cut, and without dollar signs, which would start a formula."""
    text = name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"
    return text.replace("$", r"\$")

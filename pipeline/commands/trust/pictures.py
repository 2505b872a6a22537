"""The pictures of a trust test: recall against size, and planted defects as they were scored."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workers.trust.planting import KINDS, Defect, Pixels, Planting
from workers.trust.recall import CONFIDENCE, CONTRASTS, DEFECTS, SIZES, GroupTrust

# Okabe and Ito's colours, which people with any colour vision tell apart. Each also has its own line and marker.
_STYLES: Final = {"faint": ("#009E73", "-.", "^"), "medium": ("#D55E00", "--", "s"), "strong": ("#0072B2", "-", "o")}
_CAUGHT, _MISSED = "#0072B2", "#D55E00"
_GREY: Final = "#555555"
# Distance between the markers of one size, in steps of the axis, so that intervals do not hide each other.
_SIDESTEP: Final = 0.07
# Contact sheet: the width of a thumbnail's cell in inches; its height, with the outcome below, and the space around an
# image in cells; the space for names on the left and on top in inches.
_THUMBNAIL_IN: Final = 1.6
_CELL_HEIGHT: Final = 1.1
_INSET: Final = 0.03
_MARGIN_IN, _HEAD_IN = 0.6, 0.75
# Distance of the outline from the defect, in pixels of the view, so that tiny defects are found.
_CLEARANCE: Final = 4


@dataclass(frozen=True)
class Example:
    """A planted defect to show.

    Attributes
    ----------
    defect
        What was planted.
    view
        (size, size, 3) float32 in 0..1: the image as it was scored.
    box
        Left, top, width and height of the defect, in pixels of the view.
    margin
        Largest distance / threshold; 1 or more means caught.
    """

    defect: Defect
    view: Pixels
    box: tuple[float, float, float, float]
    margin: float

    @classmethod
    def of(
        cls, defect: Defect, planting: Planting, view: Pixels, margin: float, *, height: int, width: int
    ) -> "Example":
        """Return the example of a defect planted into an image of ``height`` x ``width`` pixels."""
        rows, columns = planting.mask.shape
        across, down = view.shape[1] / width, view.shape[0] / height
        return cls(defect, view, (planting.left * across, planting.top * down, columns * across, rows * down), margin)


def draw_recall(overall: GroupTrust, groups: Sequence[GroupTrust]) -> bytes:
    """Draw ``overall``'s recall against size as a PNG: a panel for each kind, a line with intervals for each contrast.

    The title counts ``groups``.
    """
    figure = Figure(figsize=(11, 8.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, KINDS, strict=True):
        _draw_kind(axes, overall, kind)
    for axes in figure.axes[2:]:
        axes.set_xlabel("length of the defect, % of the image's shorter side")
    for axes in figure.axes[::2]:
        axes.set_ylabel("recall: share of planted images rejected")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        handlelength=4,
        title="contrast: change of the grey level, % of the image's span from dark to light",
    )
    figure.suptitle(_title(overall, groups), fontsize=13)
    return _png(canvas)


def draw_examples(examples: Sequence[Example]) -> bytes:
    """Draw planted images as a PNG: a row for each kind and contrast, a column for each size, the defect outlined."""
    names = [(kind, name) for kind in KINDS for name in CONTRASTS]
    by_defect = {example.defect: example for example in examples}
    width, height = _THUMBNAIL_IN * len(SIZES) + _MARGIN_IN, _THUMBNAIL_IN * _CELL_HEIGHT * len(names) + _HEAD_IN
    figure = Figure(figsize=(width, height), dpi=110)
    canvas = FigureCanvasAgg(figure)
    # One pair of axes with a thumbnail as its unit: a pair for each thumbnail would take most of the time.
    axes = figure.add_axes((_MARGIN_IN / width, 0.0, 1 - _MARGIN_IN / width, 1 - _HEAD_IN / height))
    axes.set(xlim=(0, len(SIZES)), ylim=(len(names) * _CELL_HEIGHT, 0), autoscale_on=False)
    axes.set_axis_off()
    for row, (kind, name) in enumerate(names):
        top = row * _CELL_HEIGHT
        axes.text(-0.04, top + 0.5, f"{kind}\n{name}", rotation=90, ha="right", va="center", fontsize=9)
        for column, size in enumerate(SIZES):
            if example := by_defect.get(Defect(kind, size, CONTRASTS[name])):
                _draw_example(axes, example, left=column + _INSET, top=top + _INSET)
    for column, size in enumerate(SIZES):
        axes.text(column + 0.5, -0.03, f"{size:.0%}", ha="center", va="bottom", fontsize=10)
    title = (
        "One planted image of each kind, contrast and length\n"
        "blue: caught, orange dashed: missed; the largest distance / threshold below each"
    )
    figure.text(0.5, 1 - 0.06 / height, title, ha="center", va="top", fontsize=10)
    return _png(canvas)


def _draw_kind(axes: Axes, trust: GroupTrust, kind: str) -> None:
    """Draw one kind: lines with intervals over sizes, and the false-reject rate as the baseline of recall."""
    false = trust.untouched
    steps = range(len(SIZES))
    axes.axhspan(false.low, false.high, color=_GREY, alpha=0.12, linewidth=0)
    axes.axhline(false.value or 0.0, color=_GREY, linestyle=":", linewidth=1.5, label="untouched images rejected")
    for place, (name, (colour, line, marker)) in enumerate(_STYLES.items()):
        shares = [trust.share(kind, size, name) for size in SIZES]
        values = [share.value or 0.0 for share in shares]
        lows, highs = [share.low for share in shares], [share.high for share in shares]
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.12, linewidth=0)
        shifted = [step + (place - 1) * _SIDESTEP for step in steps]
        axes.vlines(shifted, lows, highs, color=colour, linewidth=1.2, alpha=0.8)
        axes.plot(
            shifted,
            values,
            color=colour,
            linestyle=line,
            marker=marker,
            linewidth=2,
            markersize=6,
            label=f"{name}, {CONTRASTS[name]:.0%}",
            clip_on=False,
        )
    axes.set(title=kind, ylim=(-0.02, 1.02), xlim=(-0.25, len(SIZES) - 0.75))
    axes.set_xticks(list(steps), [f"{100 * size:g}" for size in SIZES])
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_example(axes: Axes, example: Example, *, left: float, top: float) -> None:
    """Draw one image into a cell, with its defect outlined and its margin."""
    is_caught = example.margin >= 1
    colour, line = (_CAUGHT, "-") if is_caught else (_MISSED, "--")
    side, rows, columns = 1 - 2 * _INSET, *example.view.shape[:2]
    axes.imshow(example.view, extent=(left, left + side, top + side, top), interpolation="bilinear", aspect="auto")
    x, y, width, height = example.box
    outline = (x - _CLEARANCE, y - _CLEARANCE, x + width + _CLEARANCE, y + height + _CLEARANCE)
    first_x, last_x = (left + side * np.clip(value / columns, 0, 1) for value in outline[::2])
    first_y, last_y = (top + side * np.clip(value / rows, 0, 1) for value in outline[1::2])
    frames = ((left, top, side, side, 2.0, line), (first_x, first_y, last_x - first_x, last_y - first_y, 1.2, "-"))
    for frame_x, frame_y, frame_width, frame_height, thickness, style in frames:
        axes.add_patch(
            Rectangle(
                (frame_x, frame_y),
                frame_width,
                frame_height,
                fill=False,
                edgecolor=colour,
                linestyle=style,
                linewidth=thickness,
            )
        )
    words = f"{'caught' if is_caught else 'missed'}, {example.margin:.2f}"
    axes.text(left + side / 2, top + side + _INSET, words, color=colour, ha="center", va="top", fontsize=7)


def _title(overall: GroupTrust, groups: Sequence[GroupTrust]) -> str:
    """Return two lines: what is shown, and how many untouched images were rejected."""
    false = overall.untouched
    of = f"{len(groups)} groups" if len(groups) > 1 else "one group"
    rate = "unknown" if false.value is None else f"{false.value:.1%} ({false.low:.1%} to {false.high:.1%})"
    return (
        f"What the run would catch: {false.of} held-out images of {of}, {len(DEFECTS)} defects planted in each\n"
        f"untouched images rejected: {rate}; bands and bars are {CONFIDENCE:.0%} intervals"
    )


def _png(canvas: FigureCanvasAgg) -> bytes:
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        canvas.print_png(buffer)
    return buffer.getvalue()

"""Artificial defects of a known kind, size and contrast, planted into the pixels of a real image.

Without labels, only planted defects show what a run would catch. A seed determines each defect, and the rest of the
image stays as it was. The transforms of torchvision are unsuitable: they draw from torch's global state and return no
mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from schemas.arrays import Floats

Pixels = NDArray[np.float32]

CUT_PASTE: Final = "cut-paste"
SCRATCH: Final = "scratch"
BLOB: Final = "blob"
STAIN: Final = "stain"
KINDS: Final = (CUT_PASTE, SCRATCH, BLOB, STAIN)

# Largest ratio of the sides of a cut-paste patch (Li et al., "CutPaste", CVPR 2021, 3.1).
MAX_ASPECT: Final = 3.3
# Places to try for a patch that differs enough from where it is pasted.
SOURCES: Final = 32
# A scratch is this many times longer than wide, but at least a pixel wide.
SCRATCH_ASPECT: Final = 12.0
# How far a scratch may bend, as a share of its length.
SCRATCH_BEND: Final = 0.2
# Points of a scratch's curve, and the scale of the canvas that it is drawn on and averaged from: no visible corners.
CURVE_POINTS: Final = 24
OVERSAMPLING: Final = 4
# A stain is a disc whose outline is dented by noise of this size (share of the radius) and this strength.
DENT_SIZE: Final = 0.3
DENT_STRENGTH: Final = 0.6
# At its outline, a stain fades over this share of its radius.
STAIN_EDGE: Final = 0.25
# Fainter pixels do not count as part of a defect.
MIN_OPACITY: Final = 0.1

# Places are drawn from a grid of cells, from the half with the most detail: products have more detail than their
# background.
PLACE_CELLS: Final = 32
# Percentiles of an image's grey levels that count as dark and light, so that single pixels do not matter.
SPAN_PERCENTILES: Final = (1.0, 99.0)
# The span of an image of one colour: one grey level of 8 bits, because contrast needs a unit.
MIN_SPAN: Final = 1.0 / 255.0
# A defect is darker or lighter as drawn if this contrast has room. It has no room if clipping at black or white leaves
# less than this share of it.
ROOM_CONTRAST: Final = 0.4
ENOUGH_ROOM: Final = 0.9


class Defect(NamedTuple):
    """A defect to plant."""

    kind: str  # one of ``KINDS``
    size: float  # length as a share of the image's shorter side; at least one pixel is planted
    contrast: float  # root mean square of its change of the grey level, as a share of ``Scene.span``


@dataclass(frozen=True)
class Planting:
    """A defect in its place."""

    top: int  # row of the image where the box around the defect begins
    left: int  # column of the box
    change: Pixels  # (rows, columns, 3): to add to the pixels in the box; they stay in 0..1
    mask: NDArray[np.bool_]  # (rows, columns): pixels of the defect
    contrast: float  # reached; too small if clipping at white or black, or patches too much alike, prevent more

    def on(self, pixels: Pixels) -> Pixels:
        """Return the image (height, width, 3) with the defect in it."""
        rows, columns = self.mask.shape
        planted = pixels.copy()
        planted[self.top : self.top + rows, self.left : self.left + columns] += self.change
        return planted

    def full_mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Return the defect's mask (height, width) in the whole image."""
        full = np.zeros((height, width), dtype=bool)
        rows, columns = self.mask.shape
        full[self.top : self.top + rows, self.left : self.left + columns] = self.mask
        return full


@dataclass(frozen=True)
class Scene:
    """An image to plant defects into, with everything that does not depend on the defect."""

    pixels: Pixels  # (height, width, 3) RGB in 0..1
    grey: Pixels  # (height, width): mean of the channels
    span: float  # from dark to light: the unit of contrast, comparable between dark, pale and textured images
    places: NDArray[np.int64]  # (places, 2): row and column, in ``PLACE_CELLS``, of the cells to place defects in

    @classmethod
    def of(cls, pixels: Pixels) -> "Scene":
        """Return the scene of an image (height, width, 3) float32 in 0..1."""
        grey = pixels.mean(axis=2)
        detail = _cell_means(grey.astype(np.float64) ** 2) - _cell_means(grey.astype(np.float64)) ** 2
        dark, light = np.percentile(grey, SPAN_PERCENTILES)
        return cls(pixels, grey, max(float(light - dark), MIN_SPAN), np.argwhere(detail >= np.median(detail)))


def plant(scene: Scene, defect: Defect, rng: np.random.Generator) -> Planting:
    """Plant one defect.

    From generators in the same state, defects that differ only in contrast have the same shape and place.

    Parameters
    ----------
    defect
        Its kind is cut-paste (a patch of the image copied elsewhere in it), scratch (a thin, slightly bent line), blob
        (a round bump that fades to its rim) or stain (a spot with an irregular outline). All but cut-paste change the
        three channels by the same amount, to lighter or darker. An unknown kind is a KeyError.
    rng
        Draws place, shape and sign.
    """
    height, width = scene.grey.shape
    length = max(1, round(defect.size * min(height, width)))
    opacity = _SHAPES[defect.kind](length, rng)[:height, :width]
    rows, columns = opacity.shape
    top, left = _draw_place(scene, rows, columns, rng)
    here = scene.pixels[top : top + rows, left : left + columns].astype(np.float64)
    mask = opacity >= MIN_OPACITY
    wanted = defect.contrast * scene.span
    if defect.kind == CUT_PASTE:
        change = _pasted(scene, here, wanted, rng)
    else:
        change = _shaded(here, opacity, mask, wanted, ROOM_CONTRAST * scene.span, rng)
    return Planting(top, left, change.astype(np.float32), mask, _strength(change, mask) / scene.span)


def planted_view(view: Pixels, planting: Planting, *, height: int, width: int) -> Pixels:
    """Return the backbone's view of an image with a defect planted at the original size.

    Resizing is linear, so only the change is resized, with the same filter of Pillow as the image. Away from the defect
    the view keeps every bit, whatever the depth of the original.

    Parameters
    ----------
    view
        (size, size, 3) float32 in 0..1: the image resized for the backbone.
    height, width
        Size of the original image.
    """
    rows = _Resizing.of(planting.top, planting.mask.shape[0], height, len(view))
    columns = _Resizing.of(planting.left, planting.mask.shape[1], width, len(view))
    around = np.pad(planting.change, (rows.padding, columns.padding, (0, 0)))
    box = (columns.box[0], rows.box[0], columns.box[1], rows.box[1])
    size = (columns.target.stop - columns.target.start, rows.target.stop - rows.target.start)
    planted = view.copy()
    for channel in range(view.shape[2]):
        part = Image.fromarray(around[..., channel]).resize(size, Image.Resampling.BILINEAR, box=box)
        planted[rows.target, columns.target, channel] += np.asarray(part)
    return np.clip(planted, 0.0, 1.0, out=planted)


class _Resizing(NamedTuple):
    """How to resize a small part of an image along one axis."""

    target: slice  # pixels of the result that the part reaches
    padding: tuple[int, int]  # zeros before and after, so that the part holds all that these pixels depend on
    box: tuple[float, float]  # the target, in pixels of the padded part

    @classmethod
    def of(cls, start: int, length: int, original: int, size: int) -> "_Resizing":
        scale = original / size
        # The bilinear filter reaches one pixel of the coarser grid to each side.
        reach = max(scale, 1.0)
        first = max(0, int(np.floor((start - reach) / scale)))
        last = min(size, int(np.ceil((start + length + reach) / scale)))
        begin = max(0, int(np.floor(first * scale - reach)))
        end = min(original, int(np.ceil(last * scale + reach)))
        return cls(
            slice(first, last), (start - begin, end - start - length), (first * scale - begin, last * scale - begin)
        )


def _draw_place(scene: Scene, rows: int, columns: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return where a box begins: centred in one of the scene's places, but inside the image."""
    height, width = scene.grey.shape
    cell = scene.places[rng.integers(len(scene.places))]
    centre = (cell + rng.random(2)) / PLACE_CELLS * (height, width)
    top, left = np.round(centre - np.array([rows, columns]) / 2).astype(int)
    return int(np.clip(top, 0, height - rows)), int(np.clip(left, 0, width - columns))


def _shaded(
    here: Floats, opacity: Floats, mask: NDArray[np.bool_], wanted: float, needed: float, rng: np.random.Generator
) -> Floats:
    """Return the change (rows, columns, 3) to lighter or darker with the wanted strength.

    The direction does not depend on the strength: it is the drawn one, unless that has no room for ``needed`` and the
    other has more.
    """
    shape = opacity[..., np.newaxis] / float(np.sqrt(np.mean(opacity[mask] ** 2)))

    def changed(amplitude: float) -> Floats:
        planted: Floats = np.clip(here + amplitude * shape, 0.0, 1.0)
        return planted - here

    sign = float(rng.choice((-1.0, 1.0)))
    drawn, other = (_strength(changed(side * needed), mask) for side in (sign, -sign))
    return changed((sign if drawn >= min(ENOUGH_ROOM * needed, other) else -sign) * wanted)


def _pasted(scene: Scene, here: Floats, wanted: float, rng: np.random.Generator) -> Floats:
    """Return the change (rows, columns, 3) that pastes the first patch that differs enough, or the most different."""
    rows, columns = here.shape[:2]
    height, width = scene.grey.shape
    mask = np.ones((rows, columns), dtype=bool)
    best, strength = np.zeros_like(here), 0.0
    for _ in range(SOURCES):
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        difference = scene.pixels[top : top + rows, left : left + columns] - here
        if _strength(difference, mask) > strength:
            best, strength = difference, _strength(difference, mask)
        if strength >= wanted:
            break
    return best * min(1.0, wanted / strength) if strength else best


def _strength(change: Floats, mask: NDArray[np.bool_]) -> float:
    """Return the root mean square of the change of the grey level over a defect's pixels."""
    return float(np.sqrt(np.mean(change.mean(axis=2)[mask] ** 2)))


def _rectangle(length: int, rng: np.random.Generator) -> Floats:
    """Return a rectangle, lying or standing."""
    other = max(1, round(length / rng.uniform(1.0, MAX_ASPECT)))
    return np.ones((length, other) if rng.random() < 0.5 else (other, length))


def _line(length: int, rng: np.random.Generator) -> Floats:
    """Return a thin, slightly bent line across a square at any angle."""
    angle, bend = rng.uniform(0.0, np.pi), rng.uniform(-SCRATCH_BEND, SCRATCH_BEND)
    thickness = max(1.0, length / SCRATCH_ASPECT)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    t = np.linspace(-0.5, 0.5, CURVE_POINTS)[:, np.newaxis]
    points = (length - thickness) * t * along + bend * length * (0.25 - t**2) * across
    centred = points - (points.min(axis=0) + points.max(axis=0)) / 2
    canvas = Image.new("L", (length * OVERSAMPLING, length * OVERSAMPLING), 0)
    places = (centred + length / 2) * OVERSAMPLING
    ImageDraw.Draw(canvas).line(
        [(float(x), float(y)) for x, y in places], fill=255, width=round(thickness * OVERSAMPLING), joint="curve"
    )
    opacity = np.asarray(canvas.reduce(OVERSAMPLING), np.float64) / 255.0
    return opacity / opacity.max() if opacity.max() > MIN_OPACITY else np.ones_like(opacity)


def _bump(length: int, rng: np.random.Generator) -> Floats:  # noqa: ARG001 - all shapes have the same signature
    """Return a disc that is strongest at its centre: 1 - (distance / radius)^2."""
    return np.clip(1.0 - _squared_radius(length), 0.0, None)


def _spot(length: int, rng: np.random.Generator) -> Floats:
    """Return a disc with a dented outline, of equal strength except at its edge."""
    noise = gaussian_filter(rng.standard_normal((length, length)), DENT_SIZE * length / 2, mode="nearest")
    spread = float(noise.std())
    dents = DENT_STRENGTH * noise / spread if spread else 0.0
    inside = 1.0 - _squared_radius(length)
    opacity = np.clip(np.minimum(inside + dents, inside * 2) / STAIN_EDGE, 0.0, 1.0)
    return opacity / opacity.max() if opacity.max() > MIN_OPACITY else np.clip(inside, 0.0, None)


def _squared_radius(length: int) -> Floats:
    """Return each pixel's squared distance from the centre of a square, in squared radii of the disc in it."""
    from_centre = (np.arange(length) + 0.5) / length * 2 - 1
    squared: Floats = from_centre[:, np.newaxis] ** 2 + from_centre**2
    return squared


def _cell_means(values: Floats) -> Floats:
    """Return the means over ``PLACE_CELLS`` by ``PLACE_CELLS`` cells of an image."""
    cells = Image.fromarray(values.astype(np.float32)).resize((PLACE_CELLS, PLACE_CELLS), Image.Resampling.BOX)
    return np.asarray(cells, np.float64)


_SHAPES: Final[dict[str, Callable[[int, np.random.Generator], Floats]]] = {
    CUT_PASTE: _rectangle,
    SCRATCH: _line,
    BLOB: _bump,
    STAIN: _spot,
}

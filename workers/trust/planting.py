"""Artificial defects of a known kind, size and contrast, planted into the pixels of a real image.

What a run would catch can be measured without a label only on defects that somebody has put there. These are drawn
from a seed, on top of an image that stays as it was everywhere else. The generator is NumPy's, and every defect knows
its pixels: the transforms of torchvision, which draw from torch's global state and return no mask, offer neither.
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

# Longer sides of cut-paste patches are up to so many times the shorter (Li et al., "CutPaste", CVPR 2021, 3.1).
MAX_ASPECT: Final = 3.3
# Places that a patch may be cut from, tried until one differs enough from where it is pasted.
SOURCES: Final = 32
# A scratch is this many times longer than wide, but at least a pixel wide.
SCRATCH_ASPECT: Final = 12.0
# How far a scratch may bend, as a share of its length.
SCRATCH_BEND: Final = 0.2
# Points of its curve, and its pixels' side on the canvas it is drawn on before being averaged: no visible corners.
CURVE_POINTS: Final = 24
OVERSAMPLING: Final = 4
# A stain's outline is a disc's, dented by noise of this size (share of the radius) and this strength.
DENT_SIZE: Final = 0.3
DENT_STRENGTH: Final = 0.6
# Where the outline is left, a stain fades over this share of its radius.
STAIN_EDGE: Final = 0.25
# Fainter pixels of a defect do not count as its own.
MIN_OPACITY: Final = 0.1

# Places are drawn on a grid of so many cells a side, from the half of them with the most detail: products have more
# of it than the background they lie on.
PLACE_CELLS: Final = 32
# Dark and light are these percentiles of an image's grey levels: single pixels are neither.
SPAN_PERCENTILES: Final = (1.0, 99.0)
# The span of an image of one colour is taken as a grey level of 8 bits: contrast needs a unit.
MIN_SPAN: Final = 1.0 / 255.0
# A defect gets darker or lighter as drawn where this contrast has room; it has none where clipping at black or white
# leaves less than this share of it.
ROOM_CONTRAST: Final = 0.4
ENOUGH_ROOM: Final = 0.9


class Defect(NamedTuple):
    """A defect to plant.

    Attributes
    ----------
    kind
        One of ``KINDS``.
    size
        Its length as a share of the image's shorter side; at least one pixel is planted.
    contrast
        Root mean square of its change of the grey level over its own pixels, as a share of the image's span of grey
        levels.
    """

    kind: str
    size: float
    contrast: float


@dataclass(frozen=True)
class Planting:
    """A defect in its place.

    Attributes
    ----------
    top, left
        Row and column of the image where the box around the defect begins.
    change
        (rows, columns, 3) float32: what it adds to the pixels in the box; they stay in 0..1.
    mask
        (rows, columns) bool: its pixels.
    contrast
        What was reached of the contrast asked for: less where there was no room to white or black, or where no patch
        of the image differs enough from another.
    """

    top: int
    left: int
    change: Pixels
    mask: NDArray[np.bool_]
    contrast: float

    def on(self, pixels: Pixels) -> Pixels:
        """Return the image (height, width, 3) with the defect in it."""
        rows, columns = self.mask.shape
        planted = pixels.copy()
        planted[self.top : self.top + rows, self.left : self.left + columns] += self.change
        return planted

    def full_mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Return the mask (height, width) of the whole image."""
        full = np.zeros((height, width), dtype=bool)
        rows, columns = self.mask.shape
        full[self.top : self.top + rows, self.left : self.left + columns] = self.mask
        return full


@dataclass(frozen=True)
class Scene:
    """An image to plant defects into, with all that does not depend on the defect.

    Attributes
    ----------
    pixels
        (height, width, 3) float32 RGB in 0..1.
    grey
        (height, width) float32: mean of the channels.
    span
        From dark to light, the unit of contrast: it means the same in a dark image, in a pale one and in a texture.
    places
        (places, 2) int64: rows and columns, in ``PLACE_CELLS``, of the cells that defects are placed in.
    """

    pixels: Pixels
    grey: Pixels
    span: float
    places: NDArray[np.int64]

    @classmethod
    def of(cls, pixels: Pixels) -> "Scene":
        """Return the scene of an image (height, width, 3) float32 in 0..1."""
        grey = pixels.mean(axis=2)
        detail = _cell_means(grey.astype(np.float64) ** 2) - _cell_means(grey.astype(np.float64)) ** 2
        dark, light = np.percentile(grey, SPAN_PERCENTILES)
        return cls(pixels, grey, max(float(light - dark), MIN_SPAN), np.argwhere(detail >= np.median(detail)))


def plant(scene: Scene, defect: Defect, rng: np.random.Generator) -> Planting:
    """Plant one defect.

    With generators in the same state, defects that differ only in contrast are of one shape at one place.

    Parameters
    ----------
    scene
        The image.
    defect
        What to plant: cut-paste (a patch of the image elsewhere in it), scratch (a thin, slightly bent line), blob (a
        round bump that fades to its rim) or stain (a spot of irregular outline). All but cut-paste change the three
        channels by the same amount, to lighter or darker.
    rng
        Draws place, shape and sign.

    Raises
    ------
    KeyError
        When the kind is unknown.
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

    Resizing is linear, so only the defect's change is resized, with Pillow's filter as the image was: away from the
    defect the view keeps every bit, whatever the depth of the original.

    Parameters
    ----------
    view
        (size, size, 3) float32 in 0..1: the image as it was resized for the backbone.
    planting
        The defect.
    height, width
        Of the original image.
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
    """One axis of resizing a small part of an image.

    Attributes
    ----------
    target
        Pixels of the result that the part reaches.
    padding
        Zeros to put before and after the part, so that it holds all that those pixels are made of.
    box
        What of the padded part becomes the target, in its pixels.
    """

    target: slice
    padding: tuple[int, int]
    box: tuple[float, float]

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
    """Return where a box begins whose centre lies in one of the scene's places, as far as it fits into the image."""
    height, width = scene.grey.shape
    cell = scene.places[rng.integers(len(scene.places))]
    centre = (cell + rng.random(2)) / PLACE_CELLS * (height, width)
    top, left = np.round(centre - np.array([rows, columns]) / 2).astype(int)
    return int(np.clip(top, 0, height - rows)), int(np.clip(left, 0, width - columns))


def _shaded(
    here: Floats, opacity: Floats, mask: NDArray[np.bool_], wanted: float, needed: float, rng: np.random.Generator
) -> Floats:
    """Return the change (rows, columns, 3) to lighter or darker that comes to the wanted strength.

    Which of the two does not depend on the strength: the drawn one, unless it has no room for the strength needed and
    the other has more.
    """
    shape = opacity[..., np.newaxis] / float(np.sqrt(np.mean(opacity[mask] ** 2)))

    def changed(amplitude: float) -> Floats:
        planted: Floats = np.clip(here + amplitude * shape, 0.0, 1.0)
        return planted - here

    sign = float(rng.choice((-1.0, 1.0)))
    drawn, other = (_strength(changed(side * needed), mask) for side in (sign, -sign))
    return changed((sign if drawn >= min(ENOUGH_ROOM * needed, other) else -sign) * wanted)


def _pasted(scene: Scene, here: Floats, wanted: float, rng: np.random.Generator) -> Floats:
    """Return the change (rows, columns, 3) of blending in a patch cut elsewhere, to the wanted strength if it can be.

    The first patch that differs enough is taken, or the one that differs most.
    """
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
    """Return the root mean square of a change of the grey level over a defect's pixels."""
    return float(np.sqrt(np.mean(change.mean(axis=2)[mask] ** 2)))


def _rectangle(length: int, rng: np.random.Generator) -> Floats:
    """Return a rectangle, lying or standing."""
    other = max(1, round(length / rng.uniform(1.0, MAX_ASPECT)))
    return np.ones((length, other) if rng.random() < 0.5 else (other, length))


def _line(length: int, rng: np.random.Generator) -> Floats:
    """Return a thin line across a square, at any angle and slightly bent."""
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


def _bump(length: int, rng: np.random.Generator) -> Floats:  # noqa: ARG001 - all shapes are made alike
    """Return a disc that is strongest at its centre: 1 - (distance / radius)^2."""
    return np.clip(1.0 - _squared_radius(length), 0.0, None)


def _spot(length: int, rng: np.random.Generator) -> Floats:
    """Return a disc with a dented outline, of one strength except for its edge."""
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

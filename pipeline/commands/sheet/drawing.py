"""The drawing of a contact sheet: tiles on a light page, small enough for a README."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Final

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]

WIDTH: Final = 1200
MAX_BYTES: Final = 300_000

_MARGIN: Final = 40
_GAP: Final = 16
_PAIR_GAP: Final = 6
_INNER: Final = WIDTH - 2 * _MARGIN
_KEPT_COLUMNS: Final = 10
_COLUMNS: Final = 6
# The larger of the two sizes of tiles; thumbnails are no larger.
_TILE: Final = (_INNER - (_COLUMNS - 1) * _GAP) // _COLUMNS
_SMALL_TILE: Final = (_INNER - (_KEPT_COLUMNS - 1) * _GAP) // _KEPT_COLUMNS
# Below a tile: its note and its name.
_CAPTION: Final = 46
_HEADING: Final = 42
_SECTION_GAP: Final = 26
_ROUNDING: Final = 6
_SMALLEST_FRAME: Final = 10
# Thickness of a frame, its white line included.
_FRAME: Final = 5

_PAGE: Final = (250, 250, 249)
_BLANK: Final = (234, 236, 239)
_INK: Final = (28, 33, 40)
_GREY: Final = (107, 114, 128)
# Okabe and Ito's colours, which people with any colour vision tell apart.
_GREEN: Final = (0, 140, 102)
_ORANGE: Final = (213, 94, 0)
_BLUE: Final = (0, 104, 168)
_COLOURS: Final = {
    "clean": _GREEN,
    "anomalous": _ORANGE,
    "duplicate": _BLUE,
    "unreadable": _GREY,
    "skipped": (200, 204, 210),
}
# Colours kept for page, text and frames; photographs share the others.
_RESERVED_STEPS: Final = 4


@dataclass(frozen=True)
class Tile:
    """One image on the sheet.

    Attributes
    ----------
    name
        File name, written below.
    image
        Thumbnail; without one the tile is blank and shows ``reason``.
    size
        Width and height of the original in pixels.
    box
        The worst patch: left, top, width and height in pixels of the original.
    note
        Written below in bold, such as the margin.
    """

    name: str
    image: Image.Image | None = None
    size: tuple[int, int] = (1, 1)
    box: Box | None = None
    note: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Sheet:
    """What a sheet shows; ``counts`` has the inputs of the run by decision, ``pair_count`` all its copies."""

    title: str
    counts: Mapping[str, int]
    kept: Sequence[Tile]
    rejected: Sequence[Tile]
    pairs: Sequence[tuple[Tile, Tile]]
    pair_count: int

    @property
    def blank(self) -> int:
        """How many tiles have no image."""
        tiles = [*self.kept, *self.rejected, *(tile for pair in self.pairs for tile in pair)]
        return sum(tile.image is None for tile in tiles)


def thumbnail(image: Image.Image) -> Image.Image:
    """Return an RGB image that fits into a tile, with its aspect ratio."""
    small = image.convert("RGB")
    scale = _TILE / max(small.size)
    width, height = (max(1, round(side * scale)) for side in small.size)
    return small.resize((width, height), Image.Resampling.LANCZOS)


def draw_sheet(sheet: Sheet) -> bytes:
    """Draw a sheet as a PNG of at most `MAX_BYTES`: kept images, rejected ones, copies beside their originals."""
    page = _Page(_height(sheet))
    page.header(sheet.title, sheet.counts)
    page.heading("Kept", _GREEN, _of(len(sheet.kept), sheet.counts["clean"]), "drawn from all groups")
    page.grid(sheet.kept, columns=_KEPT_COLUMNS, side=_SMALL_TILE, has_captions=False)
    page.heading(
        "Rejected",
        _ORANGE,
        _of(len(sheet.rejected), sheet.counts["anomalous"]),
        "largest margins first, then down to the smallest; the frame is the worst patch",
    )
    page.grid(sheet.rejected, columns=_COLUMNS, side=_TILE, frame=_ORANGE)
    page.heading(
        "Near-duplicates and copies",
        _BLUE,
        _of(len(sheet.pairs), sheet.pair_count),
        "left the image that stands for both, right the copy",
    )
    page.grid([tile for pair in sheet.pairs for tile in pair], columns=_COLUMNS, side=_TILE, in_pairs=True)
    return _small_png(page.image)


def _height(sheet: Sheet) -> int:
    """Return the height of the page: header, three sections, their rows of tiles."""
    kept, rejected, pairs = (
        -(-count // columns)
        for count, columns in (
            (len(sheet.kept), _KEPT_COLUMNS),
            (len(sheet.rejected), _COLUMNS),
            (2 * len(sheet.pairs), _COLUMNS),
        )
    )
    rows = kept * (_SMALL_TILE + _GAP) + (rejected + pairs) * (_TILE + _CAPTION + _GAP)
    return _Page.HEADER + 3 * (_HEADING + _SECTION_GAP) + rows


def _of(shown: int, count: int) -> str:
    return f"{shown} of {count}" if count else "none"


class _Page:
    """A page that is drawn from top to bottom."""

    HEADER: Final = 128

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (WIDTH, height), _PAGE)
        self._draw = ImageDraw.Draw(self.image)
        self._top = 0

    def header(self, title: str, counts: Mapping[str, int]) -> None:
        """Draw the title, a bar of all inputs by decision, and its legend."""
        total = sum(counts.values())
        size = f"{total:,} inputs"
        right = WIDTH - _MARGIN
        self._draw.text((right, 62), size, _GREY, _font(18), anchor="rs")
        room = _INNER - self._draw.textlength(size, _font(18)) - _GAP
        self._draw.text(
            (_MARGIN, 62), _fitted(title, _font(30, bold=True), room), _INK, _font(30, bold=True), anchor="ls"
        )
        left = float(_MARGIN)
        for name, count in counts.items():
            width = _INNER * count / max(total, 1)
            self._draw.rectangle((left, 80, max(left, left + width - 1), 89), _COLOURS[name])
            left += width
        left = _MARGIN
        for name, count in counts.items():
            self._draw.rectangle((left, 108, left + 10, 118), _COLOURS[name])
            text = f"{count:,} {name}"
            self._draw.text((left + 18, 113), text, _INK, _font(15), anchor="lm")
            left += 18 + int(self._draw.textlength(text, _font(15))) + 28
        self._top = self.HEADER

    def heading(self, name: str, colour: Colour, count: str, explanation: str) -> None:
        """Draw the heading of a section."""
        self._top += _SECTION_GAP
        baseline, title = self._top + 20, _font(21, bold=True)
        self._draw.text((_MARGIN, baseline), name, colour, title, anchor="ls")
        left = _MARGIN + self._draw.textlength(name, title) + 14
        text = count if count == "none" else f"{count}: {explanation}"
        self._draw.text((left, baseline), text, _GREY, _font(15), anchor="ls")
        self._top += _HEADING

    def grid(
        self,
        tiles: Sequence[Tile],
        *,
        columns: int,
        side: int,
        has_captions: bool = True,
        frame: Colour | None = None,
        in_pairs: bool = False,
    ) -> None:
        """Draw tiles in rows; those in pairs lie close together."""
        step = side + _GAP + (_CAPTION if has_captions else 0)
        for number, tile in enumerate(tiles):
            row, column = divmod(number, columns)
            closer = column % 2 * (_GAP - _PAIR_GAP) if in_pairs else 0
            left, top = _MARGIN + round(column * (_INNER - side) / (columns - 1)) - closer, self._top + row * step
            self._tile(tile, left, top, side, frame)
            if has_captions:
                self._caption(tile, left, top + side + 8, side)
        self._top += -(-len(tiles) // columns) * step - _GAP if tiles else 0

    def _tile(self, tile: Tile, left: int, top: int, side: int, frame: Colour | None) -> None:
        square = Image.new("RGB", (side, side), _BLANK)
        if tile.image is None:
            lines = _wrapped(tile.reason, _font(13), side - 20)
            ImageDraw.Draw(square).multiline_text(
                (side / 2, side / 2), "\n".join(lines), _GREY, _font(13), anchor="mm", align="center"
            )
        else:
            scale = side / max(tile.image.size)
            width, height = (max(1, round(edge * scale)) for edge in tile.image.size)
            x, y = (side - width) // 2, (side - height) // 2
            square.paste(tile.image.resize((width, height), Image.Resampling.LANCZOS), (x, y))
            if frame is not None and tile.box is not None:
                _frame(square, tile, (x, y, width, height), frame)
        self.image.paste(square, (left, top), _rounded(side))

    def _caption(self, tile: Tile, left: int, top: int, width: int) -> None:
        bold, plain = _font(15, bold=True), _font(13)
        if tile.note:
            self._draw.text((left, top), _fitted(tile.note, bold, width), _INK, bold)
            top += 20
        self._draw.text((left, top), _fitted(tile.name, plain, width), _GREY, plain)


def _frame(square: Image.Image, tile: Tile, area: Box, colour: Colour) -> None:
    """Frame the worst patch on the drawn image, also where the patch is tiny."""
    assert tile.box is not None
    left, top, width, height = area
    x, y, box_width, box_height = tile.box
    across, down = width / max(tile.size[0], 1), height / max(tile.size[1], 1)
    edges = []
    for start, length, scale, offset, end in (
        (x, box_width, across, left, square.width),
        (y, box_height, down, top, square.height),
    ):
        drawn = max(length * scale, _SMALLEST_FRAME)
        first = offset + (start + length / 2) * scale - drawn / 2
        low = min(max(first, _FRAME), end - _FRAME - _SMALLEST_FRAME)
        high = max(min(first + drawn, end - _FRAME), low + _SMALLEST_FRAME)
        edges.append((round(low), round(high) - 1))
    (x0, x1), (y0, y1) = edges
    draw = ImageDraw.Draw(square)
    # Around the patch, so that the frame hides nothing of it; white outside the colour shows on dark and light images.
    draw.rectangle((x0 - 5, y0 - 5, x1 + 5, y1 + 5), outline=(255, 255, 255), width=2)
    draw.rectangle((x0 - 3, y0 - 3, x1 + 3, y1 + 3), outline=colour, width=3)


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and has most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)


@cache
def _rounded(side: int) -> Image.Image:
    """Return the mask of a square with rounded corners, drawn four times as large for smooth edges."""
    mask = Image.new("L", (4 * side, 4 * side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), 4 * _ROUNDING, fill=255)
    return mask.resize((side, side), Image.Resampling.LANCZOS)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return a text, its middle left out where it is too wide."""
    text = text[:200] + text[-200:] if len(text) > 400 else text
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shortened = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
        if font.getlength(shortened) <= width:
            return shortened
    return "…"


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a text into at most six lines."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fitted(line, font, width) for line in lines[:6]]


def _small_png(page: Image.Image) -> bytes:
    """Return a PNG, with fewer colours and then fewer pixels where it would be larger than `MAX_BYTES`."""
    png = b""
    for scale in (1.0, 0.75, 0.5):
        scaled = page if scale == 1 else page.resize((round(page.width * scale), round(page.height * scale)))
        for colours in (256, 128, 96, 64, 48):
            png = _png(scaled, colours)
            if len(png) <= MAX_BYTES:
                return png
    return png


def _png(page: Image.Image, colours: int) -> bytes:
    reserved = _reserved_colours()
    photographs = page.quantize(colours - len(reserved), method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(value for colour in reserved for value in colour), *photographs])
    buffer = BytesIO()
    page.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _reserved_colours() -> list[Colour]:
    """Return the page's own colours, with the steps between text and page that smooth its edges."""
    reserved = [_PAGE, _BLANK, (255, 255, 255), *_COLOURS.values()]
    for colour in (_INK, _GREY, _GREEN, _ORANGE, _BLUE):
        for step in range(_RESERVED_STEPS):
            share = step / _RESERVED_STEPS
            red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, _PAGE, strict=True))
            reserved.append((red, green, blue))
    return list(dict.fromkeys(reserved))

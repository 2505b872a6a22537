"""The feature store's layout: one Zarr array of patch features per product group.

Statistics read whole rows of positions, so a chunk holds one row of positions of up to 256 images; at 1792 channels it
is 12.8 MB, within the 8-16 MB that suit object stores. Extraction writes blocks of exactly as many images as a chunk,
so every chunk has one writer.
"""

from dataclasses import dataclass

CHUNK_IMAGES = 256


@dataclass(frozen=True)
class FeatureGeometry:
    """The grid of patch positions that a backbone gives."""

    rows: int  # h': positions from top to bottom
    columns: int  # w': positions from left to right
    channels: int  # D: length of a patch feature vector
    grid_rows: int  # h: rows of the grid before pooling
    grid_columns: int  # w
    pool_kernel: int  # k, in cells of that grid (Eq. 3)
    pool_stride: int  # s, in cells (Eq. 3)

    def array_shape(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape (images, rows, columns, channels) of a group's array."""
        return images, self.rows, self.columns, self.channels

    def chunk_shape(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape of the chunks of a group's array."""
        return min(CHUNK_IMAGES, max(images, 1)), 1, self.columns, self.channels

    def patch_box(self, row: int, column: int, *, width: int, height: int) -> tuple[int, int, int, int]:
        """Return x, y, width and height of the patch at a position, in pixels of an image of the given size.

        The patch is the cells that the position pools over, rounded outwards to whole pixels.
        """
        x, box_width = self._extent(column, self.grid_columns, width)
        y, box_height = self._extent(row, self.grid_rows, height)
        return x, y, box_width, box_height

    def _extent(self, index: int, cells: int, pixels: int) -> tuple[int, int]:
        first = index * self.pool_stride
        last = min(first + self.pool_kernel, cells)
        start = first * pixels // cells
        end = -(-last * pixels // cells)
        return start, end - start

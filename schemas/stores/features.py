"""The feature store's layout: one Zarr array of patch features per product group.

Chunks hold one row of positions of up to 256 images, because the statistics read whole rows of positions;
at 1792 channels a chunk is 12.8 MB, inside the 8-16 MB that object stores like. Extraction writes blocks of
exactly as many images as a chunk has, so every chunk has one writer.
"""

from dataclasses import dataclass

CHUNK_IMAGES = 256


@dataclass(frozen=True)
class FeatureGeometry:
    """The grid of patch positions that a backbone gives.

    Attributes
    ----------
    rows, columns
        h' and w': positions in each direction.
    channels
        D: length of a patch feature vector.
    grid_rows, grid_columns
        h and w: cells of the grid before pooling.
    pool_kernel, pool_stride
        k and s, in cells of that grid (Eq. 3).
    """

    rows: int
    columns: int
    channels: int
    grid_rows: int
    grid_columns: int
    pool_kernel: int
    pool_stride: int

    def array_shape(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape (images, rows, columns, channels) of a group's array."""
        return images, self.rows, self.columns, self.channels

    def chunk_shape(self, images: int) -> tuple[int, int, int, int]:
        """Return the shape of its chunks."""
        return min(CHUNK_IMAGES, max(images, 1)), 1, self.columns, self.channels

    def patch_box(self, row: int, column: int, *, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the pixels of an image that the patch at a position pools over.

        Parameters
        ----------
        row, column
            Position.
        width, height
            Size of the original image in pixels.

        Returns
        -------
        tuple of int
            x, y, width, height in pixels: the patch's cells, rounded outwards to whole pixels.
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

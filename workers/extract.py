"""One extraction task: a block of images in, whole chunks of the feature store and one outcome per image out.

Reading, decoding and the forward pass overlap: some threads decode a bounded number of images ahead, batches of them
wait for the compute threads, a bounded number too, and the features of one batch are put into place while later ones
are computed.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.config import FeaturesConfig, InputConfig
from schemas.errors import StorageError
from schemas.image import ImageOutcome
from workers.decode import DecodedImage, UndecodableError, decode_image
from workers.extractor import SLICE_IMAGES, PatchExtractor
from workers.storage import read_bytes

# Images being read and decoded ahead of the forward pass, in batches.
BATCHES_AHEAD = 2

# Slices waiting for each compute thread when a batch is gathered, so that none is idle meanwhile.
SLICES_AHEAD = 2


class ImageRef(NamedTuple):
    """Where one image is, and which row of its group's array it fills."""

    row: int
    path: str


def extract_block(
    images: Sequence[ImageRef],
    extractor: PatchExtractor,
    *,
    inputs: InputConfig,
    features: FeaturesConfig,
    readers: int,
    on_batch: Callable[[int], None] = lambda _: None,
    on_last_batch: Callable[[], None] = lambda: None,
) -> tuple[NDArray[Any], list[ImageOutcome]]:
    """Read, decode and extract a block of images.

    Batches are fixed slices of the block, and an unreadable image leaves a blank in its place, so that the
    features depend on the block and the configuration alone.

    Parameters
    ----------
    images
        The block, in row order.
    extractor
        This process's extractor.
    inputs, features
        The configuration.
    readers
        Threads that read and decode ahead of the forward pass; as many as compute threads.
    on_batch
        Called with the number of images of each finished batch.
    on_last_batch
        Called when all images have been decoded and their batches started: another block may begin.

    Returns
    -------
    features : ndarray
        (images, rows, columns, channels); zeros where an image is unreadable.
    outcomes : list of ImageOutcome
        One per image, in the order given.
    """
    block = np.zeros(extractor.geometry.array_shape(len(images)), dtype=features.dtype)
    outcomes: list[ImageOutcome] = []
    started: deque[tuple[int, int, Callable[[], NDArray[Any]]]] = deque()
    batches_ahead = -(-SLICES_AHEAD * SLICE_IMAGES * readers // features.batch_size)

    def finish_one() -> None:
        start, count, batch_features = started.popleft()
        readable = [outcome.is_readable for outcome in outcomes[start : start + count]]
        block[start : start + count][readable] = batch_features()[readable]
        on_batch(count)

    with ThreadPoolExecutor(readers, thread_name_prefix="read-image") as pool:
        arriving = _read_ahead(pool, images, inputs, features)
        for start in range(0, len(images), features.batch_size):
            arrived = list(islice(arriving, features.batch_size))
            outcomes.extend(outcome for outcome, _ in arrived)
            pixels = _batch_pixels([decoded for _, decoded in arrived], features.image_size)
            started.append((start, len(arrived), extractor.start(pixels)))
            if len(started) > batches_ahead:
                finish_one()
    on_last_batch()
    while started:
        finish_one()
    return block, outcomes


def _batch_pixels(images: Sequence[DecodedImage | None], image_size: int) -> NDArray[np.float32]:
    """Return (images, image_size, image_size, 3) pixels, zero where there is no image."""
    pixels = np.zeros((len(images), image_size, image_size, 3), np.float32)
    for slot, image in enumerate(images):
        if image is not None:
            pixels[slot] = image.pixels
    return pixels


def read_image(
    image: ImageRef, inputs: InputConfig, features: FeaturesConfig
) -> tuple[ImageOutcome, DecodedImage | None]:
    """Read and decode one image; whatever is wrong with it becomes the outcome's reason."""
    try:
        content = read_bytes(image.path)
    except StorageError:
        raise  # of the whole store, not of this image
    except (OSError, ValueError) as error:
        return ImageOutcome(image.row, reason=f"can not be read: {_in_words(error)}"), None
    digest = hashlib.sha256(content).hexdigest()
    try:
        decoded = decode_image(
            content,
            image_size=features.image_size,
            max_pixels=inputs.max_pixels,
            sixteen_bit_white=inputs.sixteen_bit_white,
        )
    except UndecodableError as error:
        return ImageOutcome(image.row, digest, len(content), reason=str(error)), None
    return ImageOutcome(image.row, digest, len(content), decoded.width, decoded.height), decoded


def _read_ahead(
    pool: ThreadPoolExecutor, images: Sequence[ImageRef], inputs: InputConfig, features: FeaturesConfig
) -> Iterator[tuple[ImageOutcome, DecodedImage | None]]:
    """Yield the images in order while a bounded number of later ones is being read."""
    upcoming = iter(images)
    pending: list[Future[tuple[ImageOutcome, DecodedImage | None]]] = [
        pool.submit(read_image, image, inputs, features)
        for image in islice(upcoming, (1 + BATCHES_AHEAD) * features.batch_size)
    ]
    while pending:
        done = pending.pop(0)
        pending.extend(pool.submit(read_image, image, inputs, features) for image in islice(upcoming, 1))
        yield done.result()


def _in_words(error: Exception) -> str:
    """Name an I/O failure without repeating the path, which the row has already."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a directory"
    if isinstance(error, PermissionError):
        return "permission denied"
    return f"{' '.join(str(error).split())} ({type(error).__name__})"

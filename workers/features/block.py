"""One extraction task: from a block of images to whole chunks of the feature store and one outcome per image.

Reading, decoding and the forward pass overlap. Some threads decode a bounded number of images ahead, a bounded number
of batches wait for the compute threads, and the features of one batch are stored while later batches are computed.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.config import FeaturesConfig, InputConfig
from schemas.errors import DecoderError
from schemas.records.image import ImageOutcome, ImageRef
from workers.features.extractor import SLICE_IMAGES, PatchExtractor
from workers.images.decode import DecodedImage, UndecodableError, decode_image
from workers.storage.directory import read_bytes

# Batches of images to read and decode ahead of the forward pass.
BATCHES_AHEAD = 2

# Slices that wait for each compute thread, so that none is idle while the next batch is gathered.
SLICES_AHEAD = 2

# Time between two checks on an image that is not there yet.
GLANCE_S = 1.0

NO_POISON: Mapping[int, str] = MappingProxyType({})

# The outcome of an image, and its pixels if it is readable.
Arrived = tuple[ImageOutcome, DecodedImage | None]


def extract_block(
    images: Sequence[ImageRef],
    extractor: PatchExtractor,
    *,
    inputs: InputConfig,
    features: FeaturesConfig,
    readers: int,
    on_batch: Callable[[int], None] = lambda _: None,
    on_last_batch: Callable[[], None] = lambda: None,
    poison: Mapping[int, str] = NO_POISON,
) -> tuple[NDArray[Any], list[ImageOutcome]]:
    """Read, decode and extract a block of images.

    Batches are fixed slices of the block, and an unreadable image leaves a gap in its batch, so the features depend
    only on the block and the configuration.

    Parameters
    ----------
    images
        The block, in row order.
    readers
        Threads that read and decode ahead of the forward pass; use as many as compute threads.
    on_batch
        Called with the number of images of each finished batch.
    on_last_batch
        Called when all images are decoded and their batches started, so that another block may begin.
    poison
        Row to reason, for images that must not be decoded; see `workers.images.quarantine`.

    Returns
    -------
    features : ndarray
        (images, rows, columns, channels); zeros for an unreadable image.
    outcomes : list of ImageOutcome
        One per image, in the order given.

    Raises
    ------
    DecoderError
        When decoding an image does not end in time. Its thread keeps running.
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

    with _Readers(readers) as pool:
        arriving = _read_ahead(pool, images, inputs, features, poison)
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
    """Return (images, image_size, image_size, 3) pixels, zero for a missing image."""
    pixels = np.zeros((len(images), image_size, image_size, 3), np.float32)
    for slot, image in enumerate(images):
        if image is not None:
            pixels[slot] = image.pixels
    return pixels


def read_image(
    image: ImageRef,
    inputs: InputConfig,
    features: FeaturesConfig,
    *,
    poison: Mapping[int, str] = NO_POISON,
    on_decoding: Callable[[], None] = lambda: None,
) -> Arrived:
    """Read and decode one image; whatever is wrong with it becomes the reason in its outcome."""
    try:
        content = read_bytes(image.path)
    except (OSError, ValueError) as error:
        return ImageOutcome(image.row, reason=f"cannot be read: {_in_words(error)}"), None
    digest = hashlib.sha256(content).hexdigest()
    if image.row in poison:
        return ImageOutcome(image.row, digest, len(content), reason=poison[image.row]), None
    on_decoding()
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


class _Readers:
    """Threads that read and decode images; they are daemons, unlike those of the standard executor.

    A thread that never ends must delay neither the end of its block nor that of the process. The standard pool with
    daemon threads, ``multiprocessing.pool.ThreadPool``, leaks semaphores in a process that is killed.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs: SimpleQueue[tuple[Future[Arrived], Callable[[], Arrived]] | None] = SimpleQueue()

    def __enter__(self) -> "_Readers":
        for _ in range(self._count):
            threading.Thread(target=self._work, name="read-image", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _thread in range(self._count):
            self._jobs.put(None)

    def submit(self, job: Callable[[], Arrived]) -> "Future[Arrived]":
        """Run the job in a thread; returns its future result."""
        future: Future[Arrived] = Future()
        self._jobs.put((future, job))
        return future

    def _work(self) -> None:
        while (each := self._jobs.get()) is not None:
            future, job = each
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - the waiting thread raises it again
                future.set_exception(error)


class _Arrival:
    """One image that another thread is reading."""

    def __init__(
        self,
        pool: _Readers,
        image: ImageRef,
        inputs: InputConfig,
        features: FeaturesConfig,
        poison: Mapping[int, str],
    ) -> None:
        self._image, self._timeout_s = image, inputs.decode_timeout_s
        self._decoding_since: float | None = None
        self._result = pool.submit(
            lambda: read_image(image, inputs, features, poison=poison, on_decoding=self._begin_decoding)
        )

    def wait(self) -> Arrived:
        """Return the image when it is ready; raises `DecoderError` if decoding takes too long."""
        while True:
            try:
                return self._result.result(min(GLANCE_S, self._timeout_s))
            except TimeoutError:
                since = self._decoding_since
                if since is None or time.monotonic() - since < self._timeout_s:
                    continue
            raise DecoderError(
                f"decoding {self._image.path} did not end within input.decode_timeout_s = {self._timeout_s:g} s. "
                "Remove it from the source, or raise the limit."
            )

    def _begin_decoding(self) -> None:
        self._decoding_since = time.monotonic()


def _read_ahead(
    pool: _Readers,
    images: Sequence[ImageRef],
    inputs: InputConfig,
    features: FeaturesConfig,
    poison: Mapping[int, str],
) -> Iterator[Arrived]:
    """Yield the images in order while threads read a bounded number of later ones."""
    upcoming = (_Arrival(pool, image, inputs, features, poison) for image in images)
    pending = deque(islice(upcoming, (1 + BATCHES_AHEAD) * features.batch_size))
    while pending:
        arrival = pending.popleft()
        pending.extend(islice(upcoming, 1))
        yield arrival.wait()


def _in_words(error: Exception) -> str:
    """Name an I/O failure without the path, which the row contains already."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a directory"
    if isinstance(error, PermissionError):
        return "permission denied"
    return f"{' '.join(str(error).split())} ({type(error).__name__})"

"""One extraction task: a block of images in, whole chunks of the feature store and one outcome per image out.

Reading, decoding and the forward pass overlap: some threads decode a bounded number of images ahead, batches of them
wait for the compute threads, a bounded number too, and the features of one batch are put into place while later ones
are computed.
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

# Images being read and decoded ahead of the forward pass, in batches.
BATCHES_AHEAD = 2

# Slices waiting for each compute thread when a batch is gathered, so that none is idle meanwhile.
SLICES_AHEAD = 2

# Between two looks at an image that is being waited for.
GLANCE_S = 1.0

NO_POISON: Mapping[int, str] = MappingProxyType({})

# What became of an image, and its pixels.
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
    poison
        Row to reason, of images that are not to be decoded; see `workers.images.quarantine`.

    Returns
    -------
    features : ndarray
        (images, rows, columns, channels); zeros where an image is unreadable.
    outcomes : list of ImageOutcome
        One per image, in the order given.

    Raises
    ------
    DecoderError
        When decoding an image does not end in time. The thread that decodes it is left to itself.
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
    """Return (images, image_size, image_size, 3) pixels, zero where there is no image."""
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
    """Read and decode one image; whatever is wrong with it becomes the outcome's reason."""
    try:
        content = read_bytes(image.path)
    except (OSError, ValueError) as error:
        return ImageOutcome(image.row, reason=f"can not be read: {_in_words(error)}"), None
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
    """Threads that read and decode images.

    They are daemons, as those of the standard executor are not: one that never ends holds up neither the end of its
    block nor that of the process. The standard pool of daemons leaves semaphores behind in a process that is killed.
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
        """Return the job's result, which a thread will set."""
        future: Future[Arrived] = Future()
        self._jobs.put((future, job))
        return future

    def _work(self) -> None:
        while (each := self._jobs.get()) is not None:
            future, job = each
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - raised where the result is waited for
                future.set_exception(error)


class _Arrival:
    """One image that is being read in another thread."""

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
        """Return the image once it is there; raise where decoding it does not end."""
        while True:
            try:
                return self._result.result(min(GLANCE_S, self._timeout_s))
            except TimeoutError:
                since = self._decoding_since
                if since is None or time.monotonic() - since < self._timeout_s:
                    continue
            raise DecoderError(
                f"decoding {self._image.path} did not end within input.decode_timeout_s = {self._timeout_s:g} s. "
                "Remove it from the source, or wait longer."
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
    """Yield the images in order while a bounded number of later ones is being read."""
    upcoming = (_Arrival(pool, image, inputs, features, poison) for image in images)
    pending = deque(islice(upcoming, (1 + BATCHES_AHEAD) * features.batch_size))
    while pending:
        arrival = pending.popleft()
        pending.extend(islice(upcoming, 1))
        yield arrival.wait()


def _in_words(error: Exception) -> str:
    """Name an I/O failure without repeating the path, which the row has already."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a directory"
    if isinstance(error, PermissionError):
        return "permission denied"
    return f"{' '.join(str(error).split())} ({type(error).__name__})"

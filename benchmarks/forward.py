"""The bare forward pass that extraction is compared with, in its own process."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.pool import Pool
from typing import NamedTuple

import torch

from schemas.config import FeaturesConfig
from workers.compute import keep_freed_memory
from workers.features.extractor import SLICE_IMAGES, PatchExtractor


class Speed(NamedTuple):
    """The speed of one side: images/s by the clock, and images for each CPU second of all cores and processes."""

    clock: float
    cpu: float


@contextmanager
def forward_process() -> Iterator[Pool]:
    """Start the process in which `forward_speed` runs; its model stays there between calls."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


def forward_speed(features: FeaturesConfig, images: int, cores: int, *, by_slices: bool) -> Speed:
    """Take random tensors through the backbone that extraction uses, with nothing before or after it.

    Parameters
    ----------
    images
        A whole number of batches.
    by_slices
        Take one slice of a batch on each core, as extraction does; otherwise whole batches on torch's own threads.
    """
    extractor = _extractor(features)
    device = next(extractor.backbone.parameters()).device
    count = SLICE_IMAGES if by_slices else features.batch_size
    batch = torch.rand(count, 3, features.image_size, features.image_size, device=device)
    batch = batch.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(_: int) -> None:
        extractor.backbone(batch)

    def forward_all() -> None:
        for number in range(images // count):
            forward(number)
        if device.type == "cuda":
            torch.cuda.synchronize()

    if not by_slices:
        torch.set_num_threads(cores)
        return _timed(forward_all, images)
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return _timed(lambda: list(pool.map(forward, range(images // count))), images)


def _timed(work: Callable[[], object], images: int) -> Speed:
    started, before = time.perf_counter(), time.process_time()
    work()
    return Speed(images / (time.perf_counter() - started), images / (time.process_time() - before))


@lru_cache(maxsize=1)
def _extractor(features: FeaturesConfig) -> PatchExtractor:
    keep_freed_memory()  # otherwise the other side would win by this alone
    return PatchExtractor(features)

"""The second stage: workers turn images into patch features, one block of whole chunks per task.

A block that an earlier command finished has a receipt. It is checked, not extracted again.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from threading import BoundedSemaphore
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import zarr
from distributed import get_worker, secede
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Phase
from pipeline.cluster.tasks import TaskWindow
from schemas.config import Config
from schemas.errors import EXIT_UNEXPECTED, DamagedArrayError, DecoderError, PaireError
from schemas.names import storage_name
from schemas.records.image import ImageOutcome, ImageRef
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from workers.features.block import NO_POISON, extract_block
from workers.features.extractor import PatchExtractor, shared_extractor
from workers.features.receipts import begin, find_finished, write_receipt
from workers.images.quarantine import find_poison
from workers.storage.directory import Directory, damage_as, is_url

logger = logging.getLogger("paire")

# Workers count images by events on this topic, so that progress moves while blocks are extracted.
PROGRESS_TOPIC = "paire-images"

# Blocks that a worker holds at once: it extracts one while it writes another.
_live_blocks = BoundedSemaphore(2)


class _BlockResult(NamedTuple):
    """The outcome of each image of a block, and whether an earlier command finished the block."""

    outcomes: list[ImageOutcome]
    was_finished: bool


def check_extractor(cluster: Cluster, config: Config, weights_digest: str) -> None:
    """Build the extractor on every worker, so that missing weights or devices are found before the first image.

    Raises
    ------
    PaireError
        What `workers.features.extractor.shared_extractor` raises on a worker. If there are several workers, the
        message names the one that failed.
    """
    answers = cluster.client.run(_warm_up, config, weights_digest, on_error="return")
    for worker, answer in sorted(answers.items()):
        if isinstance(answer, PaireError) and len(answers) > 1:
            raise type(answer)(f"worker {worker}: {answer}") from answer
        if isinstance(answer, BaseException):
            raise answer


def extract_features(
    cluster: Cluster,
    catalog: pd.DataFrame,
    store: Directory,
    geometry: FeatureGeometry,
    config: Config,
    weights_digest: str,
    phase: Phase,
    *,
    receipts: Directory | None = None,
) -> dict[str, list[ImageOutcome]]:
    """Write every group's features and report what became of each image.

    Parameters
    ----------
    catalog
        The inputs, sorted; skipped ones have no row.
    store
        The run's feature store.
    weights_digest
        Digest of the weights that every worker must have.
    phase
        Counts images.
    receipts
        Receipts of finished blocks, which are not extracted again. Without it, every block is extracted and no receipt
        is written.

    Returns
    -------
    dict
        The outcomes of each group's candidates, in row order.
    """
    root = _open_store(store, keeps=receipts is not None)
    window = TaskWindow(cluster.client, cluster.workers, cluster.timeout_s)
    candidates = catalog[catalog["row"].notna()]
    blocks = []
    cluster.client.subscribe_topic(PROGRESS_TOPIC, lambda event: phase.advance(int(event[1])))
    try:
        for group, part in candidates.groupby("group", sort=True):
            name = storage_name(str(group))
            _require_array(root, name, str(group), geometry, len(part), config.features.dtype, _compressors(store))
            beside = None if receipts is None else receipts / name
            refs = [ImageRef(int(row), path) for row, path in zip(part["row"], part["image_path"], strict=True)]
            for start in range(0, len(refs), CHUNK_IMAGES):
                block = refs[start : start + CHUNK_IMAGES]
                task = window.submit(_extract_task, block, store, name, config, weights_digest, cluster.threads, beside)
                blocks.append((str(group), task))
        results: list[_BlockResult] = window.gather([task for _, task in blocks])
    finally:
        cluster.client.unsubscribe_topic(PROGRESS_TOPIC)
    phase.complete_to(len(candidates))
    outcomes: dict[str, list[ImageOutcome]] = {}
    for (group, _), result in zip(blocks, results, strict=True):
        outcomes.setdefault(group, []).extend(result.outcomes)
    finished = sum(len(result.outcomes) for result in results if result.was_finished)
    if finished:
        logger.info("extract: %d of %d images had been extracted before", finished, len(candidates))
    return outcomes


def _open_store(store: Directory, *, keeps: bool) -> zarr.Group:
    """Open the feature store; ``keeps`` what an interrupted command left in it."""
    try:
        with damage_as(DamagedArrayError):
            return store.zarr_group("", "a" if keeps else "w")
    except DamagedArrayError:  # torn metadata: the whole store may be torn
        return store.zarr_group("", "w")


def _require_array(
    root: zarr.Group,
    name: str,
    group: str,
    geometry: FeatureGeometry,
    images: int,
    dtype: str,
    compressors: ZstdCodec | Crc32cCodec,
) -> None:
    """Create a group's array, unless there is one of the same shape, chunks and type."""
    shape, chunks = geometry.array_shape(images), geometry.chunk_shape(images)
    there: Any = None
    with suppress(DamagedArrayError), damage_as(DamagedArrayError):
        there = root.get(name)
    if isinstance(there, zarr.Array) and (there.shape, there.chunks, there.dtype.name) == (shape, chunks, dtype):
        return
    root.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        compressors=compressors,
        attributes={"group": group},
        overwrite=True,
    )


def _compressors(store: Directory) -> ZstdCodec | Crc32cCodec:
    """Return no compression on disk, where it would cost more than it saves, and zstd-1 for object stores.

    Chunks have a checksum, so that altered features are never judged.
    """
    return ZstdCodec(level=1, checksum=True) if is_url(store.url) else Crc32cCodec()


def _extract_task(
    block: list[ImageRef],
    store: Directory,
    name: str,
    config: Config,
    weights_digest: str,
    readers: int,
    receipts: Directory | None,
) -> _BlockResult:
    """Extract one block, write its chunks, then its receipt; or check the chunks of a finished block.

    Once the compute threads have all its batches, the task lets its worker begin the next one, so that these threads
    stay busy while the last features are gathered and written.

    If an earlier attempt died in this block, or this one hangs in it, an image may be the cause. Every image is then
    decoded in a separate process first, and those that fail there are not decoded here.
    """
    worker = get_worker()

    def extract(poison: Mapping[int, str]) -> tuple[NDArray[Any], list[ImageOutcome]]:
        return extract_block(
            block,
            shared_extractor(config.features, weights_digest),
            inputs=config.input,
            features=config.features,
            readers=readers,
            on_batch=lambda count: worker.log_event(PROGRESS_TOPIC, count),
            on_last_batch=secede,
            poison=poison,
        )

    def find() -> dict[int, str]:
        return find_poison(block, config.input, config.features, processes=readers)

    with _live_blocks:
        array: Any = store.zarr_group("", "r+")[name]
        finished = None if receipts is None else find_finished(receipts, block, array)
        if finished is not None:
            worker.log_event(PROGRESS_TOPIC, len(block))
            return _BlockResult(finished, was_finished=True)
        died = receipts is not None and begin(receipts, block)
        try:
            features, outcomes = extract(find() if died else NO_POISON)
        except DecoderError:
            if died:
                raise
            if receipts is not None and worker.nanny:
                os._exit(EXIT_UNEXPECTED)  # the nanny starts a new worker, which has no stuck thread
            features, outcomes = extract(find())
        array[block[0].row : block[-1].row + 1] = features
        if receipts is not None:
            write_receipt(receipts, outcomes, features)
    return _BlockResult(outcomes, was_finished=False)


def _warm_up(config: Config, weights_digest: str) -> None:
    extractor: PatchExtractor = shared_extractor(config.features, weights_digest)
    extractor.extract(np.zeros((1, config.features.image_size, config.features.image_size, 3), np.float32))

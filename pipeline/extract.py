"""The second stage: workers turn images into patch features, one block of whole chunks per task."""

from threading import BoundedSemaphore

import numpy as np
import pandas as pd
from distributed import get_worker, secede
from zarr.codecs import ZstdCodec

from pipeline.cluster import Cluster
from pipeline.progress import Phase
from pipeline.tasks import TaskWindow
from schemas.config import Config
from schemas.errors import PaireError
from schemas.features import CHUNK_IMAGES, FeatureGeometry
from schemas.image import ImageOutcome
from schemas.names import storage_name
from workers.extract import ImageRef, extract_block
from workers.extractor import PatchExtractor, shared_extractor
from workers.storage import Directory, is_url

# Worker events that count images, so that progress moves between blocks.
PROGRESS_TOPIC = "paire-images"

# Blocks that a worker holds at once: one is extracted while another is written.
_live_blocks = BoundedSemaphore(2)


def check_extractor(cluster: Cluster, config: Config, weights_digest: str) -> None:
    """Build the extractor on every worker, so that what is missing there is missed before the first image.

    Raises
    ------
    PaireError
        What `workers.extractor.shared_extractor` raises on a worker, naming it where there are several.
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
) -> dict[str, list[ImageOutcome]]:
    """Write every group's features and report what became of each image.

    Parameters
    ----------
    cluster
        Where to run.
    catalog
        The inputs, sorted; skipped ones have no row.
    store
        The run's feature store; it is made anew.
    geometry
        The grid of positions.
    config
        The configuration.
    weights_digest
        The weights that every worker must have.
    phase
        Counts images.

    Returns
    -------
    dict
        Group to the outcomes of its candidates, in row order.
    """
    root = store.zarr_group("", "w")
    window = TaskWindow(cluster.client, cluster.workers)
    candidates = catalog[catalog["row"].notna()]
    blocks = []
    cluster.client.subscribe_topic(PROGRESS_TOPIC, lambda event: phase.advance(int(event[1])))
    try:
        for group, part in candidates.groupby("group", sort=True):
            name = storage_name(str(group))
            root.create_array(
                name,
                shape=geometry.array_shape(len(part)),
                chunks=geometry.chunk_shape(len(part)),
                dtype=config.features.dtype,
                compressors=_compressors(store),
                attributes={"group": str(group)},
            )
            refs = [ImageRef(int(row), path) for row, path in zip(part["row"], part["image_path"], strict=True)]
            for start in range(0, len(refs), CHUNK_IMAGES):
                block = refs[start : start + CHUNK_IMAGES]
                task = window.submit(_extract_task, block, store, name, config, weights_digest, cluster.threads)
                blocks.append((str(group), task))
        results = window.gather([task for _, task in blocks])
    finally:
        cluster.client.unsubscribe_topic(PROGRESS_TOPIC)
    phase.complete_to(len(candidates))
    outcomes: dict[str, list[ImageOutcome]] = {}
    for (group, _), result in zip(blocks, results, strict=True):
        outcomes.setdefault(group, []).extend(result)
    return outcomes


def _compressors(store: Directory) -> ZstdCodec | None:
    """Return no compression on disk, where it would cost more than it saves, and zstd-1 on object stores."""
    return ZstdCodec(level=1) if is_url(store.url) else None


def _extract_task(
    block: list[ImageRef], store: Directory, name: str, config: Config, weights_digest: str, readers: int
) -> list[ImageOutcome]:
    """Extract one block and write its chunks; the outcomes are the receipt.

    Once all its batches are with the compute threads the task lets its worker begin the next one, so that those threads
    go on while the last features are gathered and written.
    """
    extractor = shared_extractor(config.features, weights_digest)
    worker = get_worker()
    with _live_blocks:
        features, outcomes = extract_block(
            block,
            extractor,
            inputs=config.input,
            features=config.features,
            readers=readers,
            on_batch=lambda count: worker.log_event(PROGRESS_TOPIC, count),
            on_last_batch=secede,
        )
        array = store.zarr_group("", "r+")[name]
        array[block[0].row : block[-1].row + 1] = features  # type: ignore[index]
    return outcomes


def _warm_up(config: Config, weights_digest: str) -> None:
    extractor: PatchExtractor = shared_extractor(config.features, weights_digest)
    extractor.extract(np.zeros((1, config.features.image_size, config.features.image_size, 3), np.float32))

"""Check before the first image that the workers have the memory a run needs."""

from collections.abc import Sequence

from distributed import Worker

from pipeline.cluster.cluster import Cluster
from pipeline.costs.footprint import Layout
from pipeline.costs.working_memory import USABLE_MEMORY, extraction_memory, judging_memory
from schemas.config import Config
from schemas.errors import ClusterError
from schemas.stores.features import FeatureGeometry


def require_memory(
    cluster: Cluster, sizes: Sequence[int], geometry: FeatureGeometry, config: Config, *, extracts: bool = True
) -> None:
    """Check that every worker can hold what the largest task needs, besides what it holds already.

    Parameters
    ----------
    cluster
        Its workers have loaded the backbone, which counts as held already.
    sizes
        Images of each group.
    extracts
        False where the features are there already.

    Raises
    ------
    ClusterError
        When a worker's limit is too small. The message says how much it needs.
    """
    layout, largest = Layout.of(geometry, config), max(sizes, default=0)
    extraction = {
        f"extracting batches of {config.features.batch_size} images": extraction_memory(
            layout, batch_size=config.features.batch_size, image_size=config.features.image_size
        )
    }
    judging = {
        # Fitting all images is the worst case. A medium group can need more than the largest one.
        f"judging a group of {largest} images": max(
            (judging_memory(layout, size, size, threads=cluster.threads) for size in set(sizes)), default=0
        ),
    }
    purpose, needed = max({**(extraction if extracts else {}), **judging}.items(), key=lambda need: need[1])
    for address, (limit, held) in cluster.client.run(_limit_and_held).items():
        wanted = (held + needed) / USABLE_MEMORY
        if limit and limit < wanted:
            raise ClusterError(
                f"worker {address} may use {_gigabytes(limit)}, and libraries and backbone take {_gigabytes(held)} of "
                f"it; {purpose} on {cluster.threads} threads, with {geometry.channels} channels and "
                f"{geometry.columns} columns of positions, takes {_gigabytes(needed)} more. Give each worker "
                f"{_gigabytes(wanted)} or more: run fewer workers on the machine (--set cluster.workers=1) or fewer "
                "threads in each, or set features.batch_size or features.channels lower."
            )


def _limit_and_held(dask_worker: Worker) -> tuple[int, int]:
    """Return a worker's memory limit (0 without one) and what its process holds now, in bytes."""
    return int(dask_worker.memory_manager.memory_limit or 0), int(dask_worker.monitor.get_process_memory())


def _gigabytes(count: float) -> str:
    return f"{count / 1024**3:.2f} GiB"

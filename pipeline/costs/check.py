"""Whether the workers have the memory that a run needs, asked before the first image."""

from collections.abc import Sequence

from distributed import Worker

from pipeline.cluster.cluster import Cluster
from pipeline.costs.footprint import Layout
from pipeline.costs.working_memory import extraction_memory, judging_memory
from schemas.config import Config
from schemas.errors import ClusterError
from schemas.stores.features import FeatureGeometry

# Dask pauses a worker that holds more than this share of its limit, and kills it soon after.
USABLE_MEMORY = 0.8


def require_memory(cluster: Cluster, sizes: Sequence[int], geometry: FeatureGeometry, config: Config) -> None:
    """Check that every worker can hold what the largest task needs, beside what it holds already.

    Parameters
    ----------
    cluster
        The workers, which have loaded the backbone: that is part of what they hold.
    sizes
        Images of each group.
    geometry
        The grid of positions.
    config
        The configuration.

    Raises
    ------
    ClusterError
        When a worker's limit is too small; it says how much is needed.
    """
    layout, largest = Layout.of(geometry, config), max(sizes, default=0)
    needs = {
        f"extracting batches of {config.features.batch_size} images": extraction_memory(
            layout, batch_size=config.features.batch_size, image_size=config.features.image_size
        ),
        # All images fitted is the worst case; in a mixed archive a medium group can need more than the largest.
        f"judging a group of {largest} images": max(
            (judging_memory(layout, size, size, threads=cluster.threads) for size in set(sizes)), default=0
        ),
    }
    purpose, needed = max(needs.items(), key=lambda need: need[1])
    for address, (limit, held) in cluster.client.run(_limit_and_held).items():
        wanted = (held + needed) / USABLE_MEMORY
        if limit and limit < wanted:
            raise ClusterError(
                f"worker {address} may use {_gigabytes(limit)}, of which {_gigabytes(held)} are taken by libraries and "
                f"backbone; {purpose} on {cluster.threads} threads, {geometry.channels} channels and "
                f"{geometry.columns} columns of positions, takes {_gigabytes(needed)} more. Give each worker "
                f"{_gigabytes(wanted)} or more: fewer workers on the machine (--set cluster.workers=1), fewer threads "
                "of each, a smaller features.batch_size, or features.channels."
            )


def _limit_and_held(dask_worker: Worker) -> tuple[int, int]:
    """Return a worker's memory limit, 0 for none, and what its process holds now, in bytes."""
    return int(dask_worker.memory_manager.memory_limit or 0), int(dask_worker.monitor.get_process_memory())


def _gigabytes(count: float) -> str:
    return f"{count / 1024**3:.2f} GiB"

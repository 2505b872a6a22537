"""Clusters inside this process, and schedulers of others."""

from distributed import LocalCluster

from schemas.config import ClusterConfig


def config(**options: object) -> ClusterConfig:
    """Return options of a cluster inside this process."""
    return ClusterConfig.model_validate({"workers": 1, "threads_per_worker": 1, "processes": False, **options})


def scheduler_with(workers: int) -> LocalCluster:
    """Start what 'dask scheduler' and 'dask worker' would, reachable by its address."""
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=2,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    )

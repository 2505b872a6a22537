"""The compute resources of a worker process: its threads, which Dask's nannies leave at one, and its device."""

import torch
from threadpoolctl import threadpool_limits

from schemas.errors import DeviceError


def set_compute_threads(count: int) -> None:
    """Let torch and BLAS use ``count`` threads in this process from now on."""
    torch.set_num_threads(count)
    threadpool_limits(limits=count)


def resolve_device(requested: str) -> torch.device:
    """Return the device that ``features.device`` means here.

    Raises
    ------
    DeviceError
        When CUDA is requested and there is none.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "features.device = 'cuda', but this worker has no CUDA device. Start the worker on a GPU machine, "
            "or use --set features.device=auto."
        )
    return torch.device(requested)

"""The compute resources of a worker process: its threads, which Dask's nannies leave at one, and its device."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from schemas.errors import DeviceError

Item = TypeVar("Item")
Result = TypeVar("Result")

_pool = ThreadPoolExecutor(1, thread_name_prefix="compute")


def set_compute_threads(count: int) -> None:
    """Let torch and `map_in_threads` use ``count`` threads in this process from now on, and BLAS one.

    The statistics are many small factorisations: several at once on one thread each are faster than one at a time on
    several, and a result does not depend on the number of threads.
    """
    global _pool
    torch.set_num_threads(count)
    threadpool_limits(limits=1, user_api="blas")
    _pool = ThreadPoolExecutor(count, thread_name_prefix="compute")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function`` of each item, in order, computed on this process's compute threads.

    The function must release the interpreter's lock to gain anything, as NumPy and SciPy do, and not call this one.
    """
    return list(_pool.map(function, items))


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

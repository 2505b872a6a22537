"""The compute resources of a worker process: its threads, which Dask's nannies leave at one, its heap, its device.

Threads share work in whole pieces, each computed by one of them: several at once on one thread each are faster than one
at a time on several, which wait for the slowest of them after every operation, and a result can not depend on the
number of threads.
"""

import atexit
import ctypes
import gc
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import torch
from threadpoolctl import threadpool_limits

from schemas.errors import DeviceError

Item = TypeVar("Item")
Result = TypeVar("Result")

# glibc's parameters (malloc.h), and what they become: blocks up to the first number are cut from the heap and stay
# there when they are freed, until the second number of bytes is free at its end. The outputs of a backbone's layers are
# tens of megabytes, and Dask's setting (trim at 64 KB) would map and zero each of them anew.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_HEAP_BLOCK_BYTES = 64 * 2**20
_FREE_HEAP_BYTES = 256 * 2**20

# Pieces for each thread that many items are shared in: so many that no thread waits long for the last one, so few that
# handing them out costs nothing where an item takes less than a millisecond.
_PIECES = 8

_lock = Lock()
_threads: "_Threads | None" = None


class _Threads(NamedTuple):
    """The compute threads, and the number of them."""

    pool: ThreadPoolExecutor
    number: int

    @classmethod
    def start(cls, count: int) -> "_Threads":
        # torch counts threads for each calling thread: an operation called on one of these stays on it.
        pool = ThreadPoolExecutor(count, "compute", initializer=torch.set_num_threads, initargs=(1,))
        return cls(pool, count)


def set_compute_threads(count: int) -> None:
    """Compute on ``count`` threads in this process from now on; BLAS, which they call, uses one of its own."""
    global _threads
    torch.set_num_threads(count)
    threadpool_limits(limits=1, user_api="blas")
    with _lock:
        _threads = _Threads.start(count)


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function`` of each item, in order, computed on this process's compute threads.

    The function must release the interpreter's lock to gain anything, as NumPy, SciPy and torch do, and not call this
    one.
    """
    threads, all_items = _compute_threads(), list(items)
    if threads.number == 1:  # handing everything to another thread would cost a tenth where an item takes a millisecond
        return [function(item) for item in all_items]
    size = max(1, len(all_items) // (_PIECES * threads.number))

    def compute(start: int) -> list[Result]:
        return [function(item) for item in all_items[start : start + size]]

    return [result for piece in threads.pool.map(compute, range(0, len(all_items), size)) for result in piece]


def start_in_thread(function: Callable[..., Result], *args: Any) -> Future[Result]:
    """Start ``function(*args)`` on the next free compute thread of this process; as for `map_in_threads`."""
    return _compute_threads().pool.submit(function, *args)


def keep_freed_memory() -> None:
    """Let this process's heap keep what is freed, up to a bound; does nothing where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _HEAP_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _FREE_HEAP_BYTES)


def end_quickly() -> None:
    """Let this process end without searching its objects for garbage, which takes two seconds with those of torch."""
    atexit.register(gc.freeze)


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


def _compute_threads() -> _Threads:
    """Return the compute threads; outside a worker as many as torch would use."""
    global _threads
    with _lock:
        if _threads is None:
            _threads = _Threads.start(torch.get_num_threads())
        return _threads

"""The compute resources of a worker process: its threads, which Dask's nannies limit to one, its heap and its device.

Threads share work in whole pieces, and one thread computes each piece. This is faster than operations that several
threads share, where each waits for the slowest after every operation, and no result depends on the number of threads.
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

# Parameters of glibc's heap (malloc.h) and our values for them. Blocks up to the first size come from the heap and stay
# there when freed, until the second number of bytes is free at its end. The outputs of a backbone's layers take tens of
# megabytes; with Dask's setting (trim at 64 KB) the system would map and zero each of them again.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_HEAP_BLOCK_BYTES = 64 * 2**20
_FREE_HEAP_BYTES = 256 * 2**20

# Pieces per thread: enough that no thread waits long for the last piece, and few enough that handing them out is cheap
# even if an item takes less than a millisecond.
_PIECES = 8

_lock = Lock()
_threads: "_Threads | None" = None


class _Threads(NamedTuple):
    pool: ThreadPoolExecutor
    number: int

    @classmethod
    def start(cls, count: int) -> "_Threads":
        # torch counts threads per calling thread: with this, an operation stays on the thread that calls it.
        pool = ThreadPoolExecutor(count, "compute", initializer=torch.set_num_threads, initargs=(1,))
        return cls(pool, count)


def set_compute_threads(count: int) -> None:
    """Compute on ``count`` threads in this process from now on; each calls BLAS with a single thread."""
    global _threads
    torch.set_num_threads(count)
    threadpool_limits(limits=1, user_api="blas")
    with _lock:
        _threads = _Threads.start(count)


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function`` of each item, in order, computed on this process's compute threads.

    The function must release the interpreter's lock to gain anything, as NumPy, SciPy and torch do. It must not call
    `map_in_threads` itself.
    """
    threads, all_items = _compute_threads(), list(items)
    if threads.number == 1:  # another thread would cost 10 % more if an item takes a millisecond
        return [function(item) for item in all_items]
    size = max(1, len(all_items) // (_PIECES * threads.number))

    def compute(start: int) -> list[Result]:
        return [function(item) for item in all_items[start : start + size]]

    return [result for piece in threads.pool.map(compute, range(0, len(all_items), size)) for result in piece]


def start_in_thread(function: Callable[..., Result], *args: Any) -> Future[Result]:
    """Start ``function(*args)`` on the next free compute thread; the same conditions as in `map_in_threads`."""
    return _compute_threads().pool.submit(function, *args)


def keep_freed_memory() -> None:
    """Let this process's heap keep freed memory, up to a bound; does nothing without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _HEAP_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _FREE_HEAP_BYTES)


def end_quickly() -> None:
    """Let this process end without collecting garbage, which takes two seconds among the objects of torch."""
    atexit.register(gc.freeze)


def resolve_device(requested: str) -> torch.device:
    """Return the device that ``features.device`` means here; raises `DeviceError` for CUDA if there is none."""
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "features.device = 'cuda', but this worker has no CUDA device. Start the worker on a GPU machine, "
            "or use --set features.device=auto."
        )
    return torch.device(requested)


def _compute_threads() -> _Threads:
    """Return the compute threads; outside a worker, as many as torch uses."""
    global _threads
    with _lock:
        if _threads is None:
            _threads = _Threads.start(torch.get_num_threads())
        return _threads

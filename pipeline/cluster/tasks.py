"""Task submission with a bound on unfinished tasks, so that a scheduler never holds those of a whole archive."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from distributed import CancelledError, Client, Future, wait
from distributed.scheduler import KilledWorker

from pipeline.cluster.cluster import Cluster
from schemas.errors import ClusterError

# Enough that every worker always has a next task.
TASKS_PER_WORKER = 3

# Results that may wait for an earlier one: a slow task must not stop a cluster of several hundred workers.
RESULTS_AHEAD = 1024

# While tasks run, check this often whether there is still a worker.
GLANCE_S = 5.0


class Window(Protocol):
    """Runs tasks: on a cluster, or in the calling thread."""

    def submit(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        """Return a future of ``function(*args, **kwargs)``; arguments may be its futures, or lists of them."""

    def gather(self, futures: list[Any]) -> list[Any]:
        """Return the results in order."""


class TaskWindow:
    """Submits tasks in order, and waits while too many are unfinished.

    Tasks may take futures of earlier ones as arguments. `submit` and `gather` raise the first failure, as the exception
    that the task raised.

    Parameters
    ----------
    workers
        Number of workers; the bound is proportional to it.
    timeout_s
        Seconds to wait for a worker after all have left.

    Raises
    ------
    ClusterError
        From `submit` and `gather`, when no worker or no scheduler is left.
    """

    def __init__(self, client: Client, workers: int, timeout_s: float = 60.0) -> None:
        self._client, self._timeout_s = client, timeout_s
        self._limit = TASKS_PER_WORKER * workers + 1
        self._pending: set[Future] = set()

    def submit(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Future:
        """Submit ``function(*args, **kwargs)`` once fewer tasks than the bound are unfinished."""
        while len(self._pending) >= self._limit:
            done, self._pending = self._first_of(self._pending)
            for future in done:
                if future.status != "finished":
                    self.gather([future])
        future = self._client.submit(function, *args, pure=False, **kwargs)
        self._pending.add(future)
        return future

    def gather(self, futures: list[Future]) -> list[Any]:
        """Return the results in order once all tasks are done."""
        unfinished = {future for future in futures if not future.done()}
        while unfinished:
            done, unfinished = self._first_of(unfinished)
            if any(future.status != "finished" for future in done):
                break
        try:
            results: list[Any] = self._client.gather(futures)
        except KilledWorker as error:
            raise ClusterError(
                f"workers died {error.allowed_failures + 1} times on one task, most likely because memory ran out. "
                "Give each worker more memory, use fewer workers, or a smaller features.batch_size."
            ) from error
        except CancelledError as error:
            raise self._lost() from error
        self._pending.difference_update(futures)
        return results

    def _first_of(self, futures: set[Future]) -> tuple[set[Future], set[Future]]:
        """Return done and other tasks as soon as some are done; raise if no worker is left to do them."""
        alone_since: float | None = None
        while True:
            try:
                with self._client.as_current():
                    done, others = wait(futures, min(GLANCE_S, self._timeout_s), return_when="FIRST_COMPLETED")
                return done, others
            except CancelledError as error:
                raise self._lost() from error
            except TimeoutError:
                if self._client.scheduler_info(n_workers=0)["n_workers"]:
                    alone_since = None
                    continue
            alone_since = time.monotonic() if alone_since is None else alone_since
            if time.monotonic() - alone_since > self._timeout_s:
                raise ClusterError(
                    f"all workers of {self._address()} have left, and none has joined for cluster.timeout_s = "
                    f"{self._timeout_s:g} s. Start workers with 'dask worker {self._address()}', then run the same "
                    "command again to resume."
                )

    def _lost(self) -> ClusterError:
        return ClusterError(
            "the connection to the scheduler was lost. Check that 'dask scheduler' runs and can be reached, then run "
            "the same command again to resume."
        )

    def _address(self) -> str:
        return str(self._client.scheduler.address)


class Done:
    """The finished future of a task that `Here` computed."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def add_done_callback(self, callback: Callable[["Done"], Any]) -> None:
        """Call ``callback`` at once."""
        callback(self)


class Here:
    """Computes every task at once in the thread that submits it, for work that is itself one task of a cluster."""

    def submit(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Done:
        """Return a finished future of ``function(*args, **kwargs)``."""
        return Done(function(*map(_resolved, args), **{name: _resolved(value) for name, value in kwargs.items()}))

    def gather(self, futures: list[Done]) -> list[Any]:
        """Return the results."""
        return [future.result for future in futures]


def open_window(cluster: Cluster | None) -> Window:
    """Return a window onto a cluster; without a cluster, one that computes tasks in the calling thread."""
    return Here() if cluster is None else TaskWindow(cluster.client, cluster.workers, cluster.timeout_s)


def results_in_order(
    window: Window, function: Callable[..., Any], arguments: Iterable[tuple[object, ...]], done: Callable[[Any], None]
) -> Iterator[Any]:
    """Yield ``function(*each)`` for each of ``arguments`` in order, with a bound on tasks that are submitted or kept.

    Parameters
    ----------
    done
        Called with each future as soon as it is done, in any order.
    """
    pending: deque[Any] = deque()
    for each in arguments:
        future = window.submit(function, *each)
        future.add_done_callback(done)
        pending.append(future)
        if len(pending) > RESULTS_AHEAD:
            yield window.gather([pending.popleft()])[0]
    while pending:
        yield window.gather([pending.popleft()])[0]


def _resolved(value: object) -> object:
    if isinstance(value, Done):
        return value.result
    return [_resolved(item) for item in value] if isinstance(value, list) else value

"""Submitting tasks with a bound on how many are in flight, so that a scheduler never holds a whole archive's."""

from collections.abc import Callable
from typing import Any

from distributed import Client, Future, wait
from distributed.scheduler import KilledWorker

from schemas.errors import ClusterError

# Enough for every worker to have a next task at hand.
TASKS_PER_WORKER = 3


class TaskWindow:
    """Submits tasks in order, waiting whenever too many are unfinished.

    Tasks may take futures of earlier ones as arguments. The first failure is raised from `submit` or `gather`, as the
    exception that the task raised.
    """

    def __init__(self, client: Client, workers: int) -> None:
        self._client = client
        self._limit = TASKS_PER_WORKER * workers + 1
        self._pending: set[Future] = set()

    def submit(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Future:
        """Submit ``function(*args, **kwargs)`` once fewer than the bound are unfinished."""
        while len(self._pending) >= self._limit:
            with self._client.as_current():
                done, self._pending = wait(self._pending, return_when="FIRST_COMPLETED")
            for future in done:
                if future.status != "finished":
                    self.gather([future])
        future = self._client.submit(function, *args, pure=False, **kwargs)
        self._pending.add(future)
        return future

    def gather(self, futures: list[Future]) -> list[Any]:
        """Return the results in order once all are there."""
        try:
            results: list[Any] = self._client.gather(futures)
        except KilledWorker as error:
            raise ClusterError(
                f"workers died {error.allowed_failures + 1} times on one task, most likely for lack of memory. "
                "Give each worker more memory, use fewer workers, or a smaller features.batch_size."
            ) from error
        self._pending.difference_update(futures)
        return results

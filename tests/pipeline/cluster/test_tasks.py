"""Tasks computed in place or on a cluster: results in order, few in flight, and errors when no worker is left."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.tasks import (
    RESULTS_AHEAD,
    TASKS_PER_WORKER,
    Done,
    Here,
    TaskWindow,
    open_window,
    results_in_order,
)
from schemas.errors import ClusterError
from tests.support.archives import tiny_config
from tests.support.clusters import config, scheduler_with


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(tiny_config().cluster) as opened:
        yield opened


def total(numbers: list[int], *, factor: int = 1) -> int:
    return factor * sum(numbers)


def test_without_a_cluster_tasks_are_done_when_submitted() -> None:
    window = open_window(None)
    called: list[Any] = []
    one = window.submit(abs, -1)
    future = window.submit(total, [one, window.submit(abs, -2), 4], factor=window.submit(abs, -10))
    future.add_done_callback(called.append)
    assert called == [future]
    assert window.gather([future, one]) == [70, 1]


def test_the_same_tasks_have_the_same_results_on_a_cluster(cluster: Cluster) -> None:
    window = open_window(cluster)
    future = window.submit(total, [window.submit(abs, -1), 4], factor=window.submit(abs, -10))
    assert window.gather([future]) == [50]


def test_a_failure_is_raised_where_it_happens() -> None:
    with pytest.raises(ZeroDivisionError):
        open_window(None).submit(divmod, 1, 0)


class Counting(Here):
    """Counts what was submitted."""

    submitted = 0

    def submit(self, *args: Any, **kwargs: Any) -> Done:
        self.submitted += 1
        return super().submit(*args, **kwargs)


def test_many_results_come_in_order_and_only_some_are_kept_at_a_time() -> None:
    window, count = Counting(), 3 * RESULTS_AHEAD
    done: list[Any] = []
    results = results_in_order(window, abs, ((-number,) for number in range(count)), done.append)
    for number, result in enumerate(results):
        assert result == number
        assert window.submitted <= number + RESULTS_AHEAD + 1
    assert len(done) == window.submitted == count


def test_results_of_a_cluster_come_in_order(cluster: Cluster) -> None:
    tasks = ((-number,) for number in range(20))
    assert list(results_in_order(open_window(cluster), abs, tasks, lambda _: None)) == list(range(20))


# --- nobody there


def test_workers_that_have_all_left_end_the_wait_in_time() -> None:
    with scheduler_with(1) as serving, open_cluster(config(timeout_s=1), serving.scheduler_address) as found:
        window = TaskWindow(found.client, found.workers, found.timeout_s)
        assert window.gather([window.submit(abs, -1)]) == [1]
        serving.scale(0)
        serving.sync(serving._correct_state)
        tasks = [window.submit(abs, -number) for number in range(TASKS_PER_WORKER)]
        with pytest.raises(ClusterError, match=r"all workers of tcp://.* none has joined for cluster\.timeout_s = 1 s"):
            window.gather(tasks)
        with pytest.raises(ClusterError, match=f"dask worker {serving.scheduler_address}"):
            [window.submit(abs, -number) for number in range(TASKS_PER_WORKER + 1)]
        serving.scale(1)
        assert window.gather(tasks) == [0, 1, 2]


def test_a_scheduler_that_is_lost_is_an_error_that_says_so() -> None:
    with scheduler_with(1) as serving, open_cluster(config(timeout_s=1), serving.scheduler_address) as found:
        window = TaskWindow(found.client, found.workers, found.timeout_s)
        future = window.submit(time.sleep, 0.5)
        serving.close()
        with pytest.raises(ClusterError, match="connection to the scheduler was lost"):
            window.gather([future])


def test_a_worker_that_does_not_answer_is_replaced_and_its_task_done_by_another(tmp_path: Path) -> None:
    # Dask looks every second, and gives up a worker after 5 s of silence, not five minutes. So nothing here may let the
    # worker load torch, which takes longer.
    def stop_at_first(mark: Path) -> int:
        if not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return os.getpid()

    with (
        dask.config.set({"distributed.scheduler.worker-ttl": "1s"}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as serving,
        Client(serving) as client,
    ):
        pid = TaskWindow(client, 1).submit(stop_at_first, tmp_path / "stopped").result(timeout=90)
        stopped = int((tmp_path / "stopped").read_text())
        assert pid != stopped
        with pytest.raises(ProcessLookupError):
            os.kill(stopped, 0)

"""Tasks computed where they are submitted, and many results in order with few of them in flight."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.cluster import Cluster, open_cluster
from pipeline.tasks import RESULTS_AHEAD, Done, Here, open_window, results_in_order
from tests.archives import tiny_config


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

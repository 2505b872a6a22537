"""The cluster that a command runs on: local ones, named schedulers, and what is said when there is none."""

import gc
import logging
import os
from collections.abc import Iterator

import dask
import pytest
import threadpoolctl
import torch
from distributed import Client

from pipeline.cluster.cluster import Cluster, open_cluster, opening_cluster, workers_of
from pipeline.cluster.tasks import TaskWindow
from schemas.config import ClusterConfig
from schemas.errors import ClusterError
from tests.support.clusters import config, scheduler_with
from workers.compute import set_compute_threads

# The discard port: nothing listens there on any machine of ours.
NOBODY = "tcp://127.0.0.1:9"

UNREACHABLE = [
    pytest.param(NOBODY, id="nobody there"),
    pytest.param("tcp://127.0.0.1", id="no port"),
    pytest.param("nonsense://127.0.0.1:8786", id="unknown protocol"),
    pytest.param("127.0.0.1:nine", id="no number"),
    pytest.param("tcp://no-such-host.invalid:8786", id="unknown host"),
]


@pytest.fixture(autouse=True)
def _own_threads_and_log() -> Iterator[None]:
    """Undo what clusters inside this process do to its threads and loggers."""
    threads, level = torch.get_num_threads(), logging.getLogger("distributed").level
    yield
    set_compute_threads(threads)
    logging.getLogger("distributed").setLevel(level)
    # A client that never connected closes when it is collected, which inside the start of another one would deadlock.
    gc.collect()


@pytest.fixture(autouse=True)
def _no_scheduler_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    """Return the address of a scheduler that has two workers of two threads."""
    with scheduler_with(2) as cluster:
        yield cluster.scheduler_address


def opened(options: ClusterConfig, scheduler: str | None = None) -> str:
    """Open a cluster and return where its scheduler is."""
    with open_cluster(options, scheduler) as cluster:
        return str(cluster.client.scheduler.address)


def test_a_local_cluster_has_the_workers_and_threads_of_its_configuration() -> None:
    with open_cluster(config(workers=3, threads_per_worker=2)) as cluster:
        assert (cluster.workers, cluster.threads) == (3, 2)
        assert sum(cluster.hosts.values()) == 3
        assert cluster.client.submit(sum, [1, 2, 3]).result() == 6


def test_workers_are_counted_while_the_client_refreshes_what_it_knows() -> None:
    with dask.config.set({"distributed.client.scheduler-info-interval": "1ms"}), open_cluster(config()) as cluster:
        assert {len(workers_of(cluster.client)) for _ in range(1000)} == {1}


def test_workers_that_all_leave_again_are_an_error(running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.cluster.workers_of", lambda _: {})
    with pytest.raises(ClusterError, match="all workers left the scheduler tcp://"):
        opened(config(), running)


def test_a_worker_runs_one_task_at_a_time() -> None:
    with open_cluster(config(threads_per_worker=4)) as cluster:
        workers = workers_of(cluster.client)
        assert [worker["nthreads"] for worker in workers.values()] == [1]


def test_a_cluster_is_closed_after_its_block_however_that_ends() -> None:
    seen: list[Cluster] = []

    def failing() -> None:
        with open_cluster(config()) as cluster:
            seen.append(cluster)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert seen[0].client.status == "closed"


def test_two_clusters_at_once_do_not_disturb_each_other() -> None:
    with open_cluster(config()) as one, open_cluster(config()) as other:
        for cluster in (one, other):
            window = TaskWindow(cluster.client, cluster.workers)
            assert window.gather([window.submit(abs, -number) for number in range(12)]) == list(range(12))


def dashboard_of(cluster: Cluster) -> str:
    """Return the address that a cluster's dashboard listens at."""
    return str(cluster.client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.http_server.address))


def test_the_dashboard_of_a_cluster_inside_this_process_listens_on_this_machine_only() -> None:
    with open_cluster(config()) as cluster:
        assert dashboard_of(cluster) in {"127.0.0.1", "localhost"}


def test_a_cluster_opened_beside_other_work_has_processes_with_the_configured_threads_and_is_closed() -> None:
    with opening_cluster(config(workers=1, processes=True, threads_per_worker=2)) as coming:
        cluster = coming()
        assert cluster.workers == 1
        assert cluster.client.submit(sum, [1, 2, 3]).result() == 6
        assert dashboard_of(cluster) in {"127.0.0.1", "localhost"}
        assert list(cluster.client.run(torch.get_num_threads).values()) == [2]
        pools = cluster.client.run(threadpoolctl.threadpool_info).values()
        assert {pool["num_threads"] for worker in pools for pool in worker if pool["user_api"] == "blas"} == {1}
        assert os.getpid() not in cluster.client.run(os.getpid).values()
    assert cluster.client.status == "closed"


def test_workers_inside_this_process_compute_with_the_configured_threads() -> None:
    with open_cluster(config(threads_per_worker=2)) as cluster:
        assert list(cluster.client.run(torch.get_num_threads).values()) == [2]


def open_clients() -> set[int]:
    """Return the identities of the clients that are not closed."""
    return {id(found) for found in gc.get_objects() if type(found) is Client and found.status != "closed"}


@pytest.mark.parametrize("address", UNREACHABLE)
def test_a_scheduler_that_is_not_there_is_an_error_that_names_it(address: str) -> None:
    with pytest.raises(ClusterError, match="cannot be reached") as caught:
        opened(config(timeout_s=0.5), address)
    assert repr(address) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", UNREACHABLE)
def test_a_scheduler_that_is_not_there_leaves_no_open_client_behind(address: str) -> None:
    before = open_clients()
    with pytest.raises(ClusterError):
        opened(config(timeout_s=0.5), address)
    assert open_clients() == before


def test_a_running_scheduler_is_used_by_its_address(running: str) -> None:
    with open_cluster(config(), running) as cluster:
        assert cluster.client.scheduler.address == running
        assert (cluster.workers, cluster.threads) == (2, 2)
        assert cluster.hosts == {"127.0.0.1": 2}
        assert cluster.client.submit(sum, [1, 2, 3]).result() == 6


def test_a_running_scheduler_and_its_workers_stay_when_the_command_ends(running: str) -> None:
    assert opened(config(), running) == running
    with Client(running) as client:
        assert len(workers_of(client)) == 2


def test_workers_of_a_running_scheduler_compute_with_their_own_threads(running: str) -> None:
    with open_cluster(config(threads_per_worker=1), running) as cluster:
        assert set(cluster.client.run(torch.get_num_threads).values()) == {2}


def test_the_option_wins_over_the_environment_and_that_over_the_configuration(
    running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(config(scheduler=running)) == running
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", running)
    assert opened(config(scheduler=NOBODY, timeout_s=0.5)) == running
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", NOBODY)
    assert opened(config(timeout_s=5), running) == running


def test_a_cluster_that_must_be_local_asks_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", NOBODY)
    with opening_cluster(config(scheduler=NOBODY, workers=2), local_only=True) as coming:
        assert coming().workers == 2
    assert os.environ["DASK_SCHEDULER_ADDRESS"] == NOBODY


def test_a_scheduler_without_workers_is_an_error_that_says_how_to_start_some() -> None:
    with (
        scheduler_with(0) as cluster,
        pytest.raises(ClusterError, match=f"dask worker {cluster.scheduler_address}"),
    ):
        opened(config(timeout_s=0.5), cluster.scheduler_address)


def test_a_local_cluster_that_does_not_start_in_time_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ClusterError, match=r"1 worker processes did not start within cluster\.timeout_s = 0\.01 s"):
        opened(config(processes=True, timeout_s=0.01))


def test_a_cluster_is_open_once_it_is_wanted_and_closed_after_the_block() -> None:
    with opening_cluster(config(workers=2)) as coming:
        cluster = coming()
        assert cluster.workers == 2
        assert cluster.client.submit(sum, [1, 2, 3]).result() == 6
    assert cluster.client.status == "closed"


def test_a_cluster_that_nobody_waits_for_is_closed_too() -> None:
    before = open_clients()
    with pytest.raises(KeyError), opening_cluster(config(processes=True)):
        raise KeyError
    assert open_clients() == before


def test_a_cluster_inside_this_process_loads_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("pipeline.cluster.cluster.LocalCluster", lambda *_, **__: started.append(None))
    with opening_cluster(config()):
        pass
    assert not started
    with pytest.raises(AttributeError), opening_cluster(config()) as coming:
        coming()
    assert started


def test_a_named_scheduler_is_not_asked_before_the_cluster_is_wanted(running: str) -> None:
    with opening_cluster(config(timeout_s=0.5), NOBODY) as never:
        pass
    with (
        opening_cluster(config(timeout_s=0.5), NOBODY) as coming,
        pytest.raises(ClusterError, match="cannot be reached"),
    ):
        coming()
    with opening_cluster(config(), running) as coming:
        assert coming().client.scheduler.address == running
    assert callable(never)

"""The Dask cluster that a command runs on: the cluster of a named scheduler, or a local one that fits the machine."""

import importlib
import importlib.metadata
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import dask
from distributed import Client, LocalCluster, Security, Worker, WorkerPlugin
from distributed.comm import get_address_host_port

from schemas.config import ClusterConfig, StorageConfig
from schemas.errors import ClusterError
from workers.storage.settings import storage_in_use, use_storage

# Torch and BLAS of one worker use this many cores well; more cores mean more workers.
CORES_PER_WORKER = 4

# Dask's profiler lists the frames of all threads every few milliseconds. CPython before 3.12.1 can hang forever when
# that list makes it collect a dead thread-local (python/cpython#106883).
_NO_PROFILER = {"distributed.worker.profile.enabled": False}

# A local cluster that closes waits this long for workers that are still starting.
_CLOSING_S = 30.0

# A worker that an image kills counts as a failure of all blocks that it holds, and such images may lie close together.
_PATIENCE = {"distributed.scheduler.allowed-failures": 10}


class ComputeThreads(WorkerPlugin):  # type: ignore[misc]
    """Sets the threads of torch and of the statistics in every worker; Dask would leave them at one."""

    name = "paire-compute-threads"

    def __init__(self, threads: int | None) -> None:
        self._threads = threads

    def setup(self, worker: Worker) -> None:
        """Set the threads: as configured, else as many as the worker has Dask threads."""
        # Not at the top: torch takes seconds to load, and so the command and its workers load it at the same time.
        from workers.compute import end_quickly, keep_freed_memory, set_compute_threads

        end_quickly()
        keep_freed_memory()
        set_compute_threads(self._threads or worker.state.nthreads)


class StorageSettings(WorkerPlugin):  # type: ignore[misc]
    """Makes every worker reach object stores as the command does, also workers that join later."""

    name = "paire-storage-settings"

    def __init__(self, settings: StorageConfig) -> None:
        self._settings = settings

    def setup(self, worker: Worker) -> None:  # noqa: ARG002 - the signature is Dask's
        """Apply the settings to the worker's process."""
        use_storage(self._settings)


@dataclass(frozen=True)
class Cluster:
    """A connected cluster.

    Attributes
    ----------
    workers
        Number of workers when the cluster was opened.
    threads
        Compute threads of each worker.
    hosts
        Number of workers on each host.
    timeout_s
        Seconds to wait for a worker after all have left.
    """

    client: Client
    workers: int
    threads: int
    hosts: dict[str, int]
    timeout_s: float = 60.0


@contextmanager
def open_cluster(config: ClusterConfig, scheduler: str | None = None, *, local_only: bool = False) -> Iterator[Cluster]:
    """Connect to a scheduler, or start a local cluster, for as long as the block runs.

    Parameters
    ----------
    scheduler
        Address from the command line; it wins over DASK_SCHEDULER_ADDRESS, which wins over the configuration.
    local_only
        Start a local cluster even if the environment or the configuration names a scheduler.

    Raises
    ------
    ClusterError
        When the scheduler cannot be reached, no worker joins in time, a worker runs another version, or the
        certificates cannot be used.
    """
    address, security = None if local_only else _address(config, scheduler), _security(config)
    with _connected(address, config, security) if address else _local(config, security) as (client, threads):
        workers = workers_of(client)
        if not workers:
            raise ClusterError(
                f"all workers left the scheduler {client.scheduler.address} as soon as they had joined it. Read their "
                "logs and start them again, then run the same command again."
            )
        if address:
            _require_same_version(client)
            threads = min(worker["nthreads"] for worker in workers.values())
        client.register_plugin(ComputeThreads(None if address else threads))
        client.register_plugin(StorageSettings(storage_in_use()))
        hosts = Counter(str(worker["host"]) for worker in workers.values())
        yield Cluster(client, len(workers), threads, dict(hosts), config.timeout_s)


@contextmanager
def opening_cluster(
    config: ClusterConfig, scheduler: str | None = None, *, local_only: bool = False
) -> Iterator[Callable[[], Cluster]]:
    """Open a local cluster in the background, so that its processes start and load torch during other work.

    Other clusters open when they are asked for: that of a named scheduler runs already, and one inside this process
    would import in a second thread what this process imports, which can break both imports. Parameters are those of
    `open_cluster`.

    Yields
    ------
    callable
        Returns the cluster once it is open, or raises what `open_cluster` raises. The cluster closes when the block
        ends, whether or not it was asked for.
    """
    # Dask's client must be closed in the context that opened it, though any thread may do so.
    context, until_closed = copy_context(), ExitStack()

    def opened() -> Cluster:
        return until_closed.enter_context(open_cluster(config, scheduler, local_only=local_only))

    def opened_and_loading() -> Cluster:
        cluster = opened()
        cluster.client.run(_load_stages)
        return cluster

    with ThreadPoolExecutor(1, thread_name_prefix="open-cluster") as pool:
        is_waited_for = config.processes and (local_only or not _address(config, scheduler))
        coming = pool.submit(context.run, opened_and_loading) if is_waited_for else None
        try:
            yield coming.result if coming else lambda: context.run(opened)
        finally:
            pool.shutdown()
            context.run(until_closed.close)


def workers_of(client: Client) -> dict[str, dict[str, Any]]:
    """Return what the scheduler knows about each of its workers, by address."""
    # `Client.scheduler_info` answers from a cache that another thread empties of all workers every two seconds.
    workers: dict[str, dict[str, Any]] = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return workers


def _address(config: ClusterConfig, scheduler: str | None) -> str | None:
    return scheduler or os.environ.get("DASK_SCHEDULER_ADDRESS") or config.scheduler


def _security(config: ClusterConfig) -> Security:
    """Return the certificates of the configuration, else those of Dask's own configuration."""
    files: dict[str, str | None] = {}
    if config.tls_ca_file is not None:
        sides = ("client", "scheduler", "worker")
        files = {f"tls_{side}_{part}": getattr(config, f"tls_{part}") for side in sides for part in ("cert", "key")}
        files["tls_ca_file"] = config.tls_ca_file
    security = Security(require_encryption=True, **files) if files else Security()
    try:
        security.get_connection_args("client")
    except OSError as error:  # errors of the ssl module are some
        named = [f"cluster.{name} = {getattr(config, name)!r}" for name in ("tls_ca_file", "tls_cert", "tls_key")]
        raise ClusterError(
            f"{' and '.join(named) if files else 'distributed.comm.tls in the configuration of Dask'} cannot be used ("
            f"{' '.join(f'{type(error).__name__}: {error}'.split())}). Give readable PEM files, and the key of that "
            "certificate."
        ) from error
    return security


def _load_stages() -> None:
    for name in ("workers.features.extractor", "pipeline.judging.judge"):
        importlib.import_module(name)


@contextmanager
def _connected(address: str, config: ClusterConfig, security: Security) -> Iterator[tuple[Client, int]]:
    is_encrypted = address.startswith("tls://")
    if is_encrypted and not security.get_connection_args("client").get("ssl_context"):
        raise ClusterError(
            f"the scheduler {address!r} needs a certificate and none is configured. Set cluster.tls_ca_file, "
            "cluster.tls_cert and cluster.tls_key, or distributed.comm.tls in Dask's configuration."
        )
    if security.require_encryption and not is_encrypted:
        raise ClusterError(
            f"the scheduler {address!r} would be reached without encryption, but certificates are configured. Give an "
            "address like tls://host:8786, or leave the certificates out."
        )
    try:
        get_address_host_port(address, strict=True)  # on a bad address a client would fail too, but stay open
        client = Client(address, timeout=config.timeout_s, security=security)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"the scheduler {address!r} cannot be reached within {config.timeout_s:g} s ({type(error).__name__}). "
            "Check the address (like tcp://host:8786) and that 'dask scheduler' runs there"
            f"{', with certificates that the authority in cluster.tls_ca_file has signed.' if is_encrypted else '.'}"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=config.timeout_s)
        except TimeoutError as error:
            raise ClusterError(
                f"no worker joined the scheduler {client.scheduler.address} within cluster.timeout_s = "
                f"{config.timeout_s:g} s. Start workers with 'dask worker {client.scheduler.address}'."
            ) from error
        yield client, 1


@contextmanager
def _local(config: ClusterConfig, security: Security) -> Iterator[tuple[Client, int]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = config.workers or max(1, cores // CORES_PER_WORKER)
    threads = config.threads_per_worker or max(1, cores // workers)
    with _ignoring_sigint(), dask.config.set(_PATIENCE):
        cluster = LocalCluster(
            # Workers come later: Dask would wait for them without a limit. With a limit (death_timeout) it never closes
            # a nanny whose process is still starting when the time is up.
            n_workers=0,
            threads_per_worker=1,  # one task at a time: a task uses its threads itself
            processes=config.processes,
            host="127.0.0.1" if config.processes else None,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
            security=security,
        )
    try:
        # By its address: a client of the cluster object would wait for the workers.
        with Client(cluster.scheduler_address, security=security) as client:
            with dask.config.set(_NO_PROFILER):
                cluster.scale(workers)  # starts them in the cluster's own thread, which ignores SIGINT too
                _wait_for_local(client, workers, config.timeout_s)
            yield client, threads
    finally:
        with suppress(TimeoutError):
            cluster.close(timeout=_CLOSING_S)


def _wait_for_local(client: Client, workers: int, timeout_s: float) -> None:
    try:
        client.wait_for_workers(workers, timeout=timeout_s)
    except TimeoutError as error:
        raise ClusterError(
            f"the local cluster of {workers} worker processes did not start within cluster.timeout_s = "
            f"{timeout_s:g} s. Start fewer with --set cluster.workers=1, raise the time, or run without processes: "
            "--set cluster.processes=false."
        ) from error


@contextmanager
def _ignoring_sigint() -> Iterator[None]:
    """Make processes that start in the block ignore SIGINT: a terminal sends it to all, but the driver ends them."""
    # Otherwise the tracker starts with the first process, and then unblocks the signal.
    resource_tracker.ensure_running()
    # Threads and processes inherit the signal mask of the thread that starts them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _require_same_version(client: Client) -> None:
    mine = importlib.metadata.version("paire")
    try:
        theirs = client.run(importlib.metadata.version, "paire")
    except importlib.metadata.PackageNotFoundError as error:
        raise ClusterError(
            f"a worker of {client.scheduler.address} does not have paire installed. Install the same wheel "
            f"(paire {mine}) on every worker."
        ) from error
    others = {worker: version for worker, version in theirs.items() if version != mine}
    if others:
        worker, version = next(iter(others.items()))
        raise ClusterError(f"worker {worker} runs paire {version}, this is {mine}. Install the same wheel everywhere.")

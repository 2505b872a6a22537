"""A worker's threads and device."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from threading import Barrier

import pytest
import torch
from threadpoolctl import threadpool_info

from schemas.errors import DeviceError
from workers.compute import keep_freed_memory, map_in_threads, resolve_device, set_compute_threads, start_in_thread


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def _threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    set_compute_threads(before)


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.parametrize("count", [1, 2])
def test_torch_uses_the_threads_it_is_given_and_blas_one(count: int) -> None:
    set_compute_threads(3 - count)  # so that the setting under test changes something
    set_compute_threads(count)
    assert torch.get_num_threads() == count
    assert blas_threads() == {1}


@pytest.mark.usefixtures("_threads_put_back")
def test_as_many_threads_compute_at_once_in_order() -> None:
    set_compute_threads(3)
    barrier = Barrier(3, timeout=60)

    def compute(number: int) -> int:
        barrier.wait()  # passes only when three are here
        return number**2

    assert map_in_threads(compute, range(6)) == [0, 1, 4, 9, 16, 25]


@pytest.mark.usefixtures("_threads_put_back")
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 50])
def test_every_item_is_computed_once_in_order(count: int) -> None:
    set_compute_threads(2)
    assert map_in_threads(str, range(count)) == [str(number) for number in range(count)]


@pytest.mark.usefixtures("_threads_put_back")
def test_torch_stays_on_the_compute_thread_that_calls_it() -> None:
    set_compute_threads(2)
    assert start_in_thread(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == 2


def test_what_fails_on_a_compute_thread_fails_where_it_is_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        start_in_thread(divmod, 1, 0).result()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks to glibc only")
def test_a_worker_that_keeps_freed_memory_is_not_given_it_again() -> None:
    script = """
import resource
from workers.compute import keep_freed_memory
import numpy as np
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def faults_of_four():
    np.ones(2**22); before = faults()
    for _ in range(4): np.ones(2**22)
    return faults() - before
given_again = faults_of_four()
keep_freed_memory()
print(given_again, faults_of_four())
"""
    # As Dask's nannies set it.
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    given_again, kept = map(int, done.stdout.split())
    assert kept < given_again / 4


def test_keeping_freed_memory_does_nothing_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    keep_freed_memory()


def test_the_cpu_is_the_cpu() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("present", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch, present: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert resolve_device("auto").type == expected


def test_cuda_where_there_is_none_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"no CUDA device.*features\.device=auto"):
        resolve_device("cuda")

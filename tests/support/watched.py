"""What code does besides returning results: the tasks it submits, the chunks it reads, the memory it takes."""

import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from zarr.storage import LocalStore

import pipeline.judging.statistics
from pipeline.cluster.tasks import Here


def tasks_submitted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the tasks that passes over a group submit from now on, by the names of their functions."""
    counted: Counter[str] = Counter()

    class Counting(Here):
        def submit(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
            counted[function.__name__] += 1
            return super().submit(function, *args, **kwargs)

    monkeypatch.setattr(pipeline.judging.statistics, "open_window", lambda _: Counting())
    return counted


def chunks_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the keys of all chunks that are read from disk from now on."""
    read, get = [], LocalStore.get

    async def noting(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> Any:
        if "/c/" in f"/{key}":
            read.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "get", noting)
    return read


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most memory that some work holds at once."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most

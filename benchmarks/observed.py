"""Run a ``paire`` command and watch it: tasks submitted, chunks read and written, memory of its workers.

`benchmarks.plans` runs this in its own process, so that times are those of the command.
"""

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from distributed import Client
from zarr.storage import LocalStore

import pipeline.cluster.cluster
from pipeline.cli.main import cli
from pipeline.cluster.cluster import Cluster, open_cluster

# Chunks that this process read and wrote, and tasks that it submitted.
_counts: Counter[str] = Counter()


def main(arguments: list[str]) -> None:
    """Run a command, and write what was counted to the file that the first argument names."""
    seen, *command = arguments
    workers: dict[str, dict[str, int]] = {}

    @contextmanager
    def watched(*args: Any, **kwargs: Any) -> Iterator[Cluster]:
        with open_cluster(*args, **kwargs) as cluster:
            cluster.client.run(count_requests)
            yield cluster
            workers.update(cluster.client.run(seen_here))

    count_requests()
    submit = Client.submit

    @functools.wraps(submit)
    def counting(*args: Any, **kwargs: Any) -> Any:
        _counts["tasks"] += 1
        return submit(*args, **kwargs)

    with (
        mock.patch.object(pipeline.cluster.cluster, "open_cluster", watched),
        mock.patch.object(Client, "submit", counting),
    ):
        cli(command, standalone_mode=False)
    total = sum((Counter(found) for found in [dict(_counts), *workers.values()]), Counter())
    memory = max(found["memory"] for found in workers.values())
    Path(seen).write_text(json.dumps({**total, "memory": memory}), encoding="utf-8")


def count_requests() -> None:
    """Start to count the chunks that this process reads and writes."""
    for name in ("get", "set"):
        setattr(LocalStore, name, _counted(getattr(LocalStore, name), name))


def seen_here() -> dict[str, int]:
    """Return the counts, and the peak of this process's resident memory in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {**_counts, "memory": int(peak) * 1024}


def _counted(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    async def counting(self: LocalStore, key: str, *args: Any, **kwargs: Any) -> Any:
        _counts[name] += "/c/" in f"/{key}"
        return await method(self, key, *args, **kwargs)

    return counting


if __name__ == "__main__":
    # By module name, so that workers find the same functions.
    from benchmarks import observed

    observed.main(sys.argv[1:])

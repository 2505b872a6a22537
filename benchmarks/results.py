"""The results of benchmarks: kept as JSON, one record for each benchmark, and shown as Markdown tables.

Figures are ratios of two things measured in turns in one run, so that they mean the same on another machine. Each
record names the machine that it was measured on.
"""

import datetime
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from distributed import Client

RESULTS = Path(__file__).with_name("results.json")
TABLES = Path(__file__).with_name("RESULTS.md")

_HEAD = """# Benchmarks

Made by `python -m benchmarks`, never by hand: ratios of two sides measured in turns in one run, as the median
and, in brackets, the smallest and the largest of the rounds.
"""


@dataclass(frozen=True)
class Record:
    """One benchmark's result.

    Attributes
    ----------
    title
        What was compared.
    explanation
        How to read the table.
    rows
        The table: column to what is shown, the same columns in each row.
    machine
        The machine that it was measured on.
    command
        The command that measures it again.
    date
        The day, in ISO format.
    """

    title: str
    explanation: str
    rows: Sequence[Mapping[str, str]]
    machine: Mapping[str, Any]
    command: str
    date: str


def record(title: str, explanation: str, rows: Sequence[Mapping[str, str]], *, command: str) -> Record:
    """Return a result that was measured on this machine today."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Record(title, explanation, rows, machine(), command, today)


def machine() -> dict[str, Any]:
    """Describe this machine as far as it affects speed, and how busy it is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "torch": torch.__version__,
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "threads of torch": torch.get_num_threads(),
        "load of the last minute": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def cpu_seconds(client: Client) -> float:
    """Return the CPU seconds that this process and a cluster's workers have taken so far."""
    return time.process_time() + float(sum(client.run(time.process_time).values()))


def spread(values: Sequence[float]) -> str:
    """Return the median of some ratios, and the smallest and the largest."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def save(name: str, found: Record, path: Path = RESULTS, tables: Path = TABLES) -> None:
    """Replace a benchmark's last record, and write the tables again."""
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    records[name] = asdict(found)
    path.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    tables.write_text(render(records), encoding="utf-8")


def render(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all records as Markdown, in the order of their names."""
    return "\n".join([_HEAD, *(_section(records[name]) for name in sorted(records))])


def _section(found: Mapping[str, Any]) -> str:
    columns = list(found["rows"][0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row[column] for column in columns) + " |" for row in found["rows"]]
    on = ", ".join(f"{key} {value}" for key, value in found["machine"].items() if value is not None)
    parts = [f"## {found['title']}", found["explanation"], "\n".join(lines)]
    return "\n\n".join([*parts, f"`{found['command']}`, {found['date']}: {on}."]) + "\n"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""Progress for people: a bar with rate and ETA for each phase, or log lines without a terminal."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

logger = logging.getLogger("paire")

# Without a terminal, progress is logged at most this often.
LINE_INTERVAL_S = 10.0


class Phase:
    """One running phase; any thread may advance it."""

    def __init__(self, name: str, total: int, unit: str, progress: Progress | None) -> None:
        self._name, self._total, self._unit, self._progress = name, total, unit, progress
        self._lock = Lock()
        self._done = 0
        self._started = self._reported = time.monotonic()
        self._task = progress.add_task(name, total=total, unit=unit) if progress else None

    def advance(self, count: int = 1) -> None:
        """Count units as done."""
        with self._lock:
            self._done += count
            if self._progress is not None and self._task is not None:
                self._progress.update(self._task, advance=count)
            elif time.monotonic() - self._reported >= LINE_INTERVAL_S:
                self._reported = time.monotonic()
                logger.info("%s: %s", self._name, self._describe())

    def complete_to(self, count: int) -> None:
        """Count units as done until there are ``count``: the reports of some may be lost."""
        if count > self._done:
            self.advance(count - self._done)

    def summary(self) -> str:
        """Return how much was done and how fast."""
        elapsed = time.monotonic() - self._started
        return f"{self._name}: {self._done} {self._unit} in {elapsed:.1f} s, {self._rate():.1f} {self._unit}/s"

    def _rate(self) -> float:
        elapsed = time.monotonic() - self._started
        return self._done / elapsed if elapsed else 0.0

    def _describe(self) -> str:
        rate = self._rate()
        left = f"{(self._total - self._done) / rate:.0f} s" if rate else "unknown"
        share = 100 * self._done / self._total if self._total else 100.0
        return f"{self._done}/{self._total} {self._unit} ({share:.0f} %), {rate:.1f} {self._unit}/s, ETA {left}"


class Reporter:
    """Shows phases on a console."""

    def __init__(self, console: Console | None = None) -> None:
        """Show progress on ``console``; without one, write only log lines."""
        self._console = console

    @contextmanager
    def phase(
        self,
        name: str,
        total: int,
        unit: str = "images",
        *,
        kind: str = "",  # noqa: ARG002
        brief: bool = False,
    ) -> Iterator[Phase]:
        """Show a phase while the block runs.

        Parameters
        ----------
        kind
            The step of judging a group: "pass", "calibrate", "publish" or "examine". Reporters that time phases use it.
        brief
            Log no summary when the phase ends; for phases that are many.
        """
        if self._console is None or not self._console.is_terminal:
            phase = Phase(name, total, unit, None)
            yield phase
        else:
            columns = (
                TextColumn("{task.description:<10}", style="bold", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                _RateColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self._console, transient=True) as progress:
                phase = Phase(name, total, unit, progress)
                yield phase
        if not brief:
            logger.info("%s", phase.summary())


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "", style="progress.data.speed")

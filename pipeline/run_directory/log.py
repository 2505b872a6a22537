"""The run's log: lines for people on stderr, and all of them as JSON lines in the run directory.

A line about one group carries ``extra={"group": name}``. An archive may have thousands of groups, so people see the
lines of the first `GROUPS_SHOWN` only.
"""

import json
import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from rich.console import Console

from schemas.credentials import redacted
from schemas.errors import StorageError
from schemas.records.run import LOG
from workers.storage.directory import Directory

logger = logging.getLogger("paire")

GROUPS_SHOWN = 20


def one_line(text: str) -> str:
    """Return a text on one line, without credentials, and with control characters, as in file names, escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in redacted(text))


class _ConsoleHandler(logging.Handler):
    """Writes lines through the console, so that they do not tear a progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._groups: set[str] = set()
        self._says_that_there_are_more = True

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_of_further_group(record):
            if self._says_that_there_are_more:
                self._says_that_there_are_more = False
                self._show(logging.INFO, f"more than {GROUPS_SHOWN} groups: {LOG} has the lines about the others")
            return
        self._show(record.levelno, record.getMessage())

    def _is_of_further_group(self, record: logging.LogRecord) -> bool:
        group = getattr(record, "group", None)
        if group is None or group in self._groups:
            return False
        if len(self._groups) == GROUPS_SHOWN:
            return True
        self._groups.add(group)
        return False

    def _show(self, level: int, message: str) -> None:
        style = "yellow" if level >= logging.WARNING else None
        prefix = f"{logging.getLevelName(level).lower()}: " if level >= logging.WARNING else ""
        self._console.print(f"{prefix}{one_line(message)}", style=style, markup=False, highlight=False, soft_wrap=True)


class _JsonLines(logging.Handler):
    """Keeps every line as JSON; object stores cannot append, so the file is written as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        about = {"group": record.group} if hasattr(record, "group") else {}
        self.note(record.levelname.lower(), record.getMessage(), **about)

    def note(self, level: str, message: str, **details: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        shown = {name: redacted(text) for name, text in {"message": message, **details}.items()}
        self.lines.append(json.dumps({"time": now, "level": level, **shown}))

    def write(self, directory: Directory) -> None:
        directory.write(LOG, ("\n".join(self.lines) + "\n").encode())


def show_on(console: Console, *, quiet: bool = False) -> None:
    """Show the log on a console, only its errors if ``quiet``, without the chatter of the libraries."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Dask reads this on its first import, here and in the workers that this process starts.
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, _ConsoleHandler)]
    handler = _ConsoleHandler(console)
    handler.setLevel(logging.ERROR if quiet else logging.INFO)
    logger.addHandler(handler)
    for name in ("distributed", "asyncio", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def recorded(directory: Directory) -> Iterator[None]:
    """Record the log while the block runs, and write it to ``log.jsonl`` in a run directory however the block ends."""
    handler, level = _JsonLines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        handler.note("error", str(error), traceback=traceback.format_exc())
        with suppress(OSError, StorageError):  # if the disk is full, the command's own error says so
            handler.write(directory)
        raise
    else:
        handler.write(directory)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)

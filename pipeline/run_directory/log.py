"""The run's log: one line for people on stderr, and all of it as JSON lines in the run directory.

A line about one group carries ``extra={"group": name}``: people are shown those of the first groups, as an archive may
have thousands.
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

# Groups that people are shown lines about.
GROUPS_SHOWN = 20


def one_line(text: str) -> str:
    """Return a text on one line, without credentials and the control characters that a file name may well hold."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in redacted(text))


class _ConsoleHandler(logging.Handler):
    """Writes log lines through the console, so that they do not tear a progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._groups: set[str] = set()
        self._says_that_there_are_more = True

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_of_further_group(record):
            if self._says_that_there_are_more:
                self._says_that_there_are_more = False
                self._show(logging.INFO, f"more than {GROUPS_SHOWN} groups: all that is said of the others is in {LOG}")
            return
        self._show(record.levelno, record.getMessage())

    def _is_of_further_group(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is about a group beyond those that are shown."""
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
        """Keep one line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        shown = {name: redacted(text) for name, text in {"message": message, **details}.items()}
        self.lines.append(json.dumps({"time": now, "level": level, **shown}))

    def write(self, directory: Directory) -> None:
        """Write all lines into a run directory."""
        directory.write(LOG, ("\n".join(self.lines) + "\n").encode())


def show_on(console: Console, *, quiet: bool = False) -> None:
    """Send the log's lines to a console, only errors when quiet, and nothing of the libraries' own chatter."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Read when dask is first imported, here and in the workers that are started from here.
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, _ConsoleHandler)]
    handler = _ConsoleHandler(console)
    handler.setLevel(logging.ERROR if quiet else logging.INFO)
    logger.addHandler(handler)
    for name in ("distributed", "asyncio", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def recorded(directory: Directory) -> Iterator[None]:
    """Record the log into ``log.jsonl`` of this command's run directory while the block runs, however it ends."""
    handler, level = _JsonLines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        handler.note("error", str(error), traceback=traceback.format_exc())
        with suppress(OSError, StorageError):  # where the disk is full, what the command ends with says so
            handler.write(directory)
        raise
    else:
        handler.write(directory)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)

"""What a waiting person sees: a bar on a terminal, log lines elsewhere, and counts that are right in either case."""

import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import pytest
from rich.console import Console

from pipeline.cluster import progress
from pipeline.cluster.progress import Phase, Reporter
from pipeline.run_directory.log import show_on

SHOW_CURSOR = "\x1b[?25h"


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    """Undo what a test does to the log, whose settings outlive it."""
    names = ("paire", "distributed", "asyncio", "tornado")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers = handlers


@pytest.fixture
def lines() -> list[str]:
    """Return the list that the log's lines are added to."""
    handler, logger = Lines(), logging.getLogger("paire")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler.texts


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step be a line."""
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)


def terminal(**options: bool) -> Console:
    return Console(force_terminal=True, file=StringIO(), width=120, **options)  # type: ignore[arg-type]


def shown(console: Console) -> str:
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def consoles() -> list[object]:
    """Return a parameter for each kind of place to show progress on."""
    return [
        pytest.param(lambda: None, id="nowhere"),
        pytest.param(lambda: Console(file=StringIO()), id="a file"),
        pytest.param(terminal, id="a terminal"),
    ]


@pytest.mark.parametrize("make", consoles())
def test_a_phase_ends_with_one_line_of_what_was_done(lines: list[str], make: type[Console]) -> None:
    with Reporter(make()).phase("extract", 5) as phase:
        phase.advance(2)
        phase.advance()
    assert len(lines) == 1
    assert lines[0].startswith("extract: 3 images in ")
    assert lines[0].endswith(" images/s")


@pytest.mark.parametrize("make", consoles())
def test_a_brief_phase_leaves_no_line(lines: list[str], make: type[Console]) -> None:
    with Reporter(make()).phase("all: pass 1", 5, "rows", brief=True) as phase:
        phase.advance(5)
    assert lines == []


@pytest.mark.usefixtures("every_step")
def test_without_a_terminal_progress_is_a_line_with_share_rate_and_eta(lines: list[str]) -> None:
    with Reporter(Console(file=StringIO())).phase("extract", 8, brief=True) as phase:
        phase.advance(2)
        phase.advance(6)
    assert [line.split(",")[0] for line in lines] == ["extract: 2/8 images (25 %)", "extract: 8/8 images (100 %)"]
    assert all("images/s, ETA " in line for line in lines)


def test_lines_are_not_written_more_often_than_the_interval(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", math.inf)
    with Reporter().phase("extract", 100, brief=True) as phase:
        for _ in range(100):
            phase.advance()
    assert lines == []


@pytest.mark.usefixtures("every_step")
def test_nothing_to_do_is_not_a_division_by_zero(lines: list[str]) -> None:
    with Reporter().phase("extract", 0) as phase:
        phase.advance(0)
    assert lines[0].startswith("extract: 0/0 images (100 %)")
    assert lines[1].startswith("extract: 0 images in ")


@pytest.mark.usefixtures("every_step")
def test_a_terminal_shows_a_bar_with_count_unit_and_eta_and_no_lines(lines: list[str]) -> None:
    console = terminal()
    with Reporter(console).phase("extract", 4, "rows", brief=True) as phase:
        phase.advance(3)
    text = shown(console)
    assert all(part in text for part in ("extract", "3/4", "rows", "ETA"))
    assert lines == []


def test_a_console_that_is_not_a_terminal_shows_no_bar() -> None:
    console = Console(file=StringIO())
    with Reporter(console).phase("extract", 4) as phase:
        phase.advance(4)
    assert shown(console) == ""


def test_a_quiet_terminal_shows_nothing() -> None:
    console = terminal(quiet=True)
    with Reporter(console).phase("extract", 4) as phase:
        phase.advance(4)
    assert shown(console) == ""


@pytest.mark.parametrize("name", ["line [red] 1: pass 1", "a[/x]: pass 2", "[/]", "{task}", "größe\nzwei"])
def test_a_terminal_shows_a_name_as_it_is(name: str) -> None:
    console = terminal()
    with Reporter(console).phase(name, 2) as phase:
        phase.advance(2)
    assert all(part in shown(console) for part in name.split("\n"))


def test_an_error_inside_a_phase_passes_through_and_gives_the_terminal_back(lines: list[str]) -> None:
    def interrupted(console: Console) -> None:
        with Reporter(console).phase("extract", 2) as phase:
            phase.advance()
            raise KeyboardInterrupt

    console = terminal()
    with pytest.raises(KeyboardInterrupt):
        interrupted(console)
    assert SHOW_CURSOR in shown(console)
    assert lines == []


def test_phases_follow_each_other_on_one_terminal() -> None:
    console = terminal()
    reporter = Reporter(console)
    for name in ("first", "second"):
        with reporter.phase(name, 1) as phase:
            phase.advance()
    assert "first" in shown(console)
    assert "second" in shown(console)


@pytest.mark.parametrize("make", consoles())
def test_advances_from_many_threads_all_count(lines: list[str], make: type[Console]) -> None:
    def work(phase: Phase) -> None:
        for _ in range(250):
            phase.advance()

    with Reporter(make()).phase("extract", 4000) as phase, ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(work, phase) for _ in range(16)]:
            future.result()
    assert lines[-1].startswith("extract: 4000 images in ")


@pytest.mark.parametrize(
    ("before", "target", "after"),
    [
        pytest.param(3, 10, 10, id="reports were lost"),
        pytest.param(10, 10, 10, id="all came"),
        pytest.param(4, 2, 4, id="never backwards"),
        pytest.param(0, 0, 0, id="nothing"),
    ],
)
def test_completing_counts_up_to_the_target(lines: list[str], before: int, target: int, after: int) -> None:
    with Reporter().phase("extract", 10) as phase:
        phase.advance(before)
        phase.complete_to(target)
    assert lines[-1].startswith(f"extract: {after} images in ")


def test_completing_fills_the_bar() -> None:
    console = terminal()
    with Reporter(console).phase("extract", 7) as phase:
        phase.advance(1)
        phase.complete_to(7)
    assert "7/7" in shown(console)


def test_log_lines_reach_the_console_as_they_are_and_warnings_say_so() -> None:
    console = Console(file=StringIO(), width=20)
    show_on(console)
    logger = logging.getLogger("paire")
    logger.info("file [red]%s[/x] %d", "a" * 40, 1)
    logger.warning("careful")
    assert shown(console) == f"file [red]{'a' * 40}[/x] 1\nwarning: careful\n"


def test_the_log_goes_to_the_last_console_only() -> None:
    first, last = Console(file=StringIO()), Console(file=StringIO())
    show_on(first)
    show_on(last)
    logging.getLogger("paire").info("once")
    assert (shown(first), shown(last)) == ("", "once\n")

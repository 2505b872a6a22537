"""What people are shown of a run, and what its log keeps."""

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.run_directory.log import GROUPS_SHOWN, recorded, show_on
from schemas.records.run import LOG
from tests.support.loggers import restored_loggers
from workers.storage.directory import Directory

logger = logging.getLogger("paire")


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


def say_of_groups(number: int, message: str) -> None:
    for place in range(number):
        group = f"g{place:02d}"
        logger.warning("%s: %s", group, message, extra={"group": group})


def test_people_are_shown_lines_about_the_first_groups(shown: io.StringIO) -> None:
    with restored_loggers():
        show_on(Console(file=shown, width=200))
        say_of_groups(GROUPS_SHOWN + 10, "too few")
        say_of_groups(GROUPS_SHOWN + 10, "too dark")
        logger.warning("done")
    lines = shown.getvalue().splitlines()
    assert lines[0] == "warning: g00: too few"
    assert [line for line in lines if "more than" in line] == [
        f"more than {GROUPS_SHOWN} groups: log.jsonl has the lines about the others"
    ]
    assert len(lines) == 2 * GROUPS_SHOWN + 2
    assert lines[-1] == "warning: done"


def test_as_many_groups_as_are_shown_are_all_shown(shown: io.StringIO) -> None:
    with restored_loggers():
        show_on(Console(file=shown, width=200))
        say_of_groups(GROUPS_SHOWN, "too few")
    assert len(shown.getvalue().splitlines()) == GROUPS_SHOWN
    assert "more than" not in shown.getvalue()


def test_the_log_has_lines_about_every_group_under_its_name(tmp_path: Path) -> None:
    with restored_loggers(), recorded(Directory.at(tmp_path)):
        say_of_groups(GROUPS_SHOWN + 10, "too few")
        logger.info("done")
    entries = [json.loads(line) for line in (tmp_path / LOG).read_text(encoding="utf-8").splitlines()]
    assert [entry.get("group") for entry in entries] == [*(f"g{place:02d}" for place in range(GROUPS_SHOWN + 10)), None]

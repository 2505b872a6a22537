"""Says at the end how many inputs were tried, on all cores together."""

from typing import Any

import pytest

from tests.fuzz.mutations import tried

_KEY = "fuzz inputs tried"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what a process of pytest-xdist has tried."""
    tried.update(getattr(node, "workeroutput", {}).get(_KEY, {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what this process has tried to the one that started it, if one did."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_KEY] = dict(tried)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write how many inputs were tried of each kind."""
    for target, count in sorted(tried.items()):
        terminalreporter.write_line(f"fuzz: {count:7d} {target}")

"""Says at the end how many inputs were tried."""

import pytest

from tests.fuzz.mutations import tried


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for target, count in sorted(tried.items()):
        terminalreporter.write_line(f"fuzz: {count:7d} {target}")

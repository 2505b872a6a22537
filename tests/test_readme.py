"""The README says what the code says."""

from pathlib import Path

import pytest

from pipeline.cli.main import cli
from tests.support.readme import README, with_tables


def test_reference_tables_are_those_of_the_schemas() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run 'make docs'"


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"paire {command}" in README.read_text(encoding="utf-8")


def test_every_file_of_the_packages_is_on_the_map() -> None:
    root = README.parent
    contributing = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = [path for package in ("schemas", "workers", "pipeline") for path in (root / package).rglob("*.py")]
    missing = [path.name for path in files if path.name != "__init__.py" and f"`{path.name}`" not in contributing]
    assert files
    assert not missing


def test_no_file_of_the_packages_is_longer_than_a_house_allows() -> None:
    root: Path = README.parent
    long = {
        path.name: lines
        for package in ("schemas", "workers", "pipeline")
        for path in (root / package).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 420
    }
    assert not long

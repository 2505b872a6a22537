"""Every dependency has a lower bound that is met, and those that close a hole are not lowered; see SECURITY.md."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
ALL = [*NEEDED, *(Requirement(text) for texts in PROJECT["optional-dependencies"].values() for text in texts)]
# | package | at least | because below |
CLOSES_A_HOLE = dict(
    re.findall(r"^\| ([a-z]+) \| ([0-9.]+) \|", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)
)


def lower_bound(requirement: Requirement) -> Version:
    (only,) = requirement.specifier
    assert only.operator == ">=", f"{requirement}: a lower bound and nothing else"
    return Version(only.version)


@pytest.mark.parametrize("requirement", ALL, ids=lambda requirement: requirement.name)
def test_a_dependency_has_a_lower_bound_alone_and_what_is_installed_meets_it(requirement: Requirement) -> None:
    bound = lower_bound(requirement)
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        assert requirement not in NEEDED
        return
    assert Version(installed) >= bound


def test_bounds_that_close_a_hole_are_kept() -> None:
    bounds = {requirement.name: lower_bound(requirement) for requirement in NEEDED}
    assert {"torch", "pillow", "pyarrow"} <= CLOSES_A_HOLE.keys()
    for name, bound in CLOSES_A_HOLE.items():
        assert bounds[name] >= Version(bound), name

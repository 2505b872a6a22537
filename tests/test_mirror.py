"""Every module of the packages has tests of its own, at the same path below ``tests/``."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("paire", "pipeline", "schemas", "workers")

# Modules without tests of their own, and why.
WITHOUT = {
    "paire/version.py": "one constant, read from the installed package",
    "schemas/arrays.py": "names of types only",
    "schemas/tables/iterations.py": "columns only: schemas/tables/test_columns.py tests all tables",
    "schemas/tables/manifest.py": "columns only: schemas/tables/test_columns.py tests all tables",
    "schemas/tables/scores.py": "columns only: schemas/tables/test_columns.py tests all tables",
}

# Modules whose laws are tested through those that call them, and in which file. A file of their own takes them off.
THROUGH_OTHERS = {
    "pipeline/cli/plan_table.py": "pipeline/commands/plan/test_plan.py",
    "pipeline/commands/plan/forecast.py": "pipeline/commands/plan/test_plan.py",
    "pipeline/commands/plan/rehearsal.py": "pipeline/commands/plan/test_plan.py",
    "pipeline/commands/plan/sample.py": "pipeline/commands/plan/test_plan.py",
    "pipeline/judging/distances.py": "scenarios/test_resume.py",
    "pipeline/judging/statistics.py": "pipeline/judging/test_passes.py",
}

# Tests of a second side of a module that has tests of its own, or of a law of many modules.
SECOND_SIDES = {
    "paire/test_guide.py": "docs/python.md, which explains the package",
    "paire/test_surface.py": "paire/__init__.py, which has no module name",
    "pipeline/commands/evaluate/test_evaluate_scores.py": "evaluate.py, of scored test sets",
    "pipeline/run_directory/test_clock.py": "every module: no decision depends on a wall clock",
    "workers/storage/test_backends.py": "directory.py, on real object stores",
}


def modules() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }


def files_of_tests() -> set[str]:
    return {
        path.relative_to(ROOT / "tests").as_posix()
        for package in PACKAGES
        for path in (ROOT / "tests" / package).rglob("test_*.py")
    }


def mirrored(module: str) -> str:
    """Return the path, below ``tests/``, of a module's tests."""
    return Path(module).with_name(f"test_{Path(module).name}").as_posix()


def test_every_module_has_a_test_file_at_the_mirrored_path_or_a_reason() -> None:
    assert modules()
    without = {module for module in modules() if mirrored(module) not in files_of_tests()}
    assert without == WITHOUT.keys() | THROUGH_OTHERS.keys()


def test_the_tests_of_other_modules_that_are_named_instead_exist() -> None:
    for module, name in THROUGH_OTHERS.items():
        assert (ROOT / "tests" / name).is_file(), module


def test_every_test_file_is_at_the_path_of_its_module() -> None:
    assert files_of_tests() - {mirrored(module) for module in modules()} == SECOND_SIDES.keys()

"""The order of the folders, as ``pyproject.toml`` declares it, holds for every file; and what it cannot say."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("paire", "pipeline", "workers", "schemas")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_every_file_imports_only_from_its_folder_and_those_below() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout


def test_no_package_imports_tests_studies_or_benchmarks() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                assert module, f"{path} has a relative import, which the order of the folders does not follow"
                assert module.partition(".")[0] not in {"tests", "studies", "benchmarks", "deploy"}, path


def test_csv_is_written_where_it_is_made_safe_for_spreadsheets() -> None:
    # The lists of dirty sets are read by commands, which must find the groups as they are.
    writers = {path.relative_to(ROOT).as_posix() for path in FILES if ".to_csv(" in path.read_text("utf-8")}
    assert writers == {"schemas/tables/columns.py", "pipeline/commands/dirty.py"}


def test_schemas_load_without_dask_and_torch() -> None:
    # Also what their imports import: a consumer of a run directory needs none of it.
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES if "schemas" in path.parts]
    script = f"import sys, {', '.join(names)}; print(sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert "'pydantic'" in done.stdout
    assert not set(ast.literal_eval(done.stdout)) & {"dask", "distributed", "torch", "torchvision", "zarr", "fsspec"}

"""The layers: ``schemas <- workers <- pipeline``, and stages of the pipeline that do not know one another."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCHEMAS, WORKERS, PIPELINE = (
    sorted((ROOT / package).glob("**/*.py")) for package in ("schemas", "workers", "pipeline")
)
CLUSTER = {"dask", "distributed"}
STAGES = ("catalog", "extract", "statistics", "trim", "manifest", "publish", "score")
# What strings stages together: the judging that jobs share, and the jobs.
JUDGE, JOBS = "pipeline.judge", ("run", "recut", "scoring", "trust", "plan")
COMMANDS = {"pipeline.cli", "pipeline.demo"}


def imported(path: Path) -> set[str]:
    """Return every module that a file imports anywhere, functions and type checking included, as dotted names."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import, which this test does not follow"
            # "from pipeline import extract" imports the module pipeline.extract.
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
            modules.add(str(node.module))
    return modules


def packages(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imported(path)}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_three_packages_are_found() -> None:
    assert {named(path) for path in (*SCHEMAS, *WORKERS, *PIPELINE)} >= {
        "schemas/config.py",
        "workers/gaussian.py",
        "pipeline/run.py",
    }


@pytest.mark.parametrize("path", SCHEMAS, ids=named)
def test_schemas_import_no_cluster_no_torch_and_no_other_layer(path: Path) -> None:
    assert not packages(path) & {*CLUSTER, "torch", "torchvision", "workers", "pipeline"}


@pytest.mark.parametrize("path", WORKERS, ids=named)
def test_workers_import_no_cluster_and_not_the_pipeline(path: Path) -> None:
    assert not packages(path) & {*CLUSTER, "pipeline"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_of_the_pipeline_imports_no_other_stage_nor_what_strings_them_together(stage: str) -> None:
    others = {f"pipeline.{other}" for other in (*STAGES, *JOBS)} - {f"pipeline.{stage}"}
    modules = imported(ROOT / "pipeline" / f"{stage}.py")
    assert not modules & {*others, JUDGE, *COMMANDS}


@pytest.mark.parametrize("job", ["judge", *JOBS])
def test_a_job_imports_no_other_job_and_what_jobs_share_imports_none(job: str) -> None:
    others = {f"pipeline.{other}" for other in JOBS} - {f"pipeline.{job}"}
    assert not imported(ROOT / "pipeline" / f"{job}.py") & {*others, *COMMANDS}


def test_what_jobs_share_knows_nothing_of_where_features_come_from() -> None:
    assert not imported(ROOT / "pipeline" / "judge.py") & {"pipeline.catalog", "pipeline.extract", "pipeline.score"}


@pytest.mark.parametrize("path", [*SCHEMAS, *WORKERS, *PIPELINE], ids=named)
def test_no_layer_imports_tests_or_deployment(path: Path) -> None:
    assert not packages(path) & {"tests", "deploy"}


def test_csv_is_written_where_it_is_made_safe_for_spreadsheets() -> None:
    # The lists of dirty sets are read by commands, which must find the groups as they are.
    writers = {named(path) for path in (*SCHEMAS, *WORKERS, *PIPELINE) if ".to_csv(" in path.read_text("utf-8")}
    assert writers == {"schemas/tables.py", "pipeline/dirty.py"}


def test_schemas_load_without_dask_and_torch() -> None:
    # Also what their imports import: a consumer of a run directory needs none of it.
    names = [f"schemas.{path.stem}" for path in SCHEMAS if path.stem != "__init__"]
    script = f"import sys, {', '.join(names)}; print(sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert "'pydantic'" in done.stdout
    assert not set(ast.literal_eval(done.stdout)) & {*CLUSTER, "torch", "torchvision", "zarr", "fsspec"}

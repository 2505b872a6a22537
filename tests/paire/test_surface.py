"""What ``import paire`` offers, and what it does not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import paire
from schemas import errors

HEAVY = {"torch", "torchvision", "dask", "distributed", "zarr", "fsspec", "pandas", "pyarrow", "numpy", "scipy"}
# Each takes a tenth of a second.
SLOW = {"pydantic", "yaml", "rich", "click", "PIL"}


def modules_after(script: str) -> set[str]:
    """Return the top-level packages that a fresh process has loaded after a script."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}\nprint(sorted({{m.partition('.')[0] for m in sys.modules}}))"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(ast.literal_eval(done.stdout))


def test_importing_loads_nothing_that_takes_time() -> None:
    loaded = modules_after("import paire; dir(paire); paire.PaireError")
    assert "paire" in loaded
    assert not loaded & (HEAVY | SLOW)


def test_options_load_without_what_computes() -> None:
    loaded = modules_after("import paire; paire.Config(trim={'eta': 2.6})")
    assert "pydantic" in loaded
    assert not loaded & HEAVY


def test_reading_a_run_loads_neither_torch_nor_dask_clusters() -> None:
    loaded = modules_after("import paire; paire.open_run")
    assert "pandas" in loaded
    assert not loaded & {"torch", "torchvision", "distributed"}


@pytest.mark.parametrize("name", paire.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(paire, name)
    assert name in dir(paire)
    assert value is getattr(paire, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__doc__


def test_names_are_sorted_and_imported_by_star() -> None:
    assert paire.__all__ == sorted(paire.__all__) == dir(paire)
    names: dict[str, object] = {}
    exec("from paire import *", names)
    assert set(paire.__all__) <= set(names)


def test_every_kind_of_error_is_public() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert kinds == {name for name in paire.__all__ if name.endswith("Error")}
    assert all(getattr(paire, name) is getattr(errors, name) for name in kinds)


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse(Path(paire.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == vars(paire)["_HOMES"]


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'paire' has no attribute 'claen'"):
        paire.claen  # type: ignore[attr-defined]  # noqa: B018

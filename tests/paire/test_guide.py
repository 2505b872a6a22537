"""``docs/python.md`` says what the package offers: its code compiles, and names and options exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import paire
from paire.options import config_from
from schemas.tables import manifest as manifest_table

GUIDE = Path(__file__).parents[2] / "docs" / "python.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
# The objects that the guide's variables are.
INSTANCES: dict[str, set[str]] = {
    "paire": set(dir(paire)),
    "run": {*dir(paire.Run), "url", "run_id", "config"},
    "scorer": set(dir(paire.ImageScorer)),
    "scores": {*dir(paire.Scores), *paire.Scores.__dataclass_fields__},
}


def nodes(block: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(block))


def test_the_guide_is_one_page_with_code() -> None:
    assert len(TEXT.splitlines()) <= 120
    assert len(BLOCKS) == TEXT.count("```python") >= 5


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_compiles_and_imports_what_it_uses(block: str) -> None:
    compile(block, GUIDE.name, "exec")
    assert block.startswith("import paire\n")


@pytest.mark.parametrize("block", BLOCKS)
def test_every_attribute_exists(block: str) -> None:
    for node in nodes(block):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in INSTANCES:
            assert node.attr in INSTANCES[node.value.id], f"{node.value.id}.{node.attr}"


def test_every_name_in_the_text_exists() -> None:
    named = set(re.findall(r"\bpaire\.(\w+)", TEXT)) - {"yaml"}  # paire.yaml is a file
    assert {"clean", "open_run", "Config", "GaussianMap", "ImageScorer", "PaireError"} <= named <= set(paire.__all__)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_option_is_valid(block: str) -> None:
    arguments = {"out", "progress"}
    for node in nodes(block):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "paire.clean":
            config_from(
                {
                    word.arg: ast.literal_eval(word.value)
                    for word in node.keywords
                    if word.arg and word.arg not in arguments
                }
            )


@pytest.mark.parametrize("block", BLOCKS)
def test_scripts_that_clean_have_a_main_guard(block: str) -> None:
    top = [node for node in ast.parse(block).body if not isinstance(node, ast.If)]
    assert not any("paire.clean" in ast.unparse(node) for node in top)


def test_every_column_exists() -> None:
    columns = {column.name for column in manifest_table.COLUMNS}
    for block in BLOCKS:
        for names in re.findall(r"\[\[(.*?)\]\]", block):
            assert set(re.findall(r'"(\w+)"', names)) <= columns


def test_a_score_has_the_shapes_that_the_guide_says() -> None:
    maps = np.zeros((2, 3, 4))
    flat = np.zeros(2)
    small = flat.astype(np.int16)
    scores = paire.Scores(flat, flat, flat.astype(np.bool_), small, small, maps)
    assert scores.pixel_maps(320, 240).shape == (2, 240, 320)

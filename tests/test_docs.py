"""The documents say what the code says: README.md, CONTRIBUTING.md, SECURITY.md and ``docs/``."""

import ast
import re
from pathlib import Path

import pytest

import paire
from pipeline.cli.main import cli
from tests.support.tables_of_docs import ROOT, TABLES, with_tables

PACKAGES = ("paire", "pipeline", "workers", "schemas")
OTHER_FOLDERS_OF_CODE = ("benchmarks", "studies", "tests")
MOST_WORDS = 900
MOST_LINES = 420
LARGEST_PICTURE = 300_000
# Files that CONTRIBUTING.md names and that the present restructuring is about to make.

DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(DOCS.rglob("*.md"))
PICTURES = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
LINKS = re.compile(r"\]\(([^)\s]+)\)")
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """Return a page without its blocks of code."""
    return BLOCKS.sub("", text_of(page))


def anchor(heading: str) -> str:
    """Return what a heading is called in a link, as GitHub calls it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    return {anchor(heading.strip()) for heading in re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)}


def imported(code: str) -> set[str]:
    """Return the top-level names of the packages that a piece of Python imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


# --- the README


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").split()) <= MOST_WORDS


def test_the_readme_begins_with_a_small_picture() -> None:
    lines = [line for line in text_of(ROOT / "README.md").splitlines() if line]
    (picture,) = PICTURES.findall(lines[1])
    assert (ROOT / picture).stat().st_size < LARGEST_PICTURE


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_readme_names_the_commands_of_a_fresh_machine(target: str) -> None:
    assert f"make {target}" in text_of(ROOT / "README.md")
    assert re.search(rf"^{target}:", text_of(ROOT / "Makefile"), re.MULTILINE)


# --- what comes from the code


@pytest.mark.parametrize("page", TABLES)
def test_reference_tables_are_those_of_the_schemas(page: str) -> None:
    text = text_of(ROOT / page)
    assert with_tables(page, text) == text, "run 'make docs'"


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_has_a_section(command: str) -> None:
    assert f"\n## paire {command}\n" in text_of(DOCS / "commands.md")


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_option_of_a_command_is_named(command: str) -> None:
    text = text_of(DOCS / "commands.md")
    options = {name for parameter in cli.commands[command].params for name in parameter.opts if name.startswith("--")}
    assert not {name for name in options if f"`{name}" not in text and f" {name}" not in text}


def test_every_folder_of_the_packages_is_on_the_map() -> None:
    contributing = text_of(ROOT / "CONTRIBUTING.md")
    packages = [path for name in PACKAGES for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    folders = [str(path.relative_to(ROOT)) for path in packages if (path / "__init__.py").exists()]
    # A folder that is one command is named by its parent.
    shown = [name if "pipeline/commands/" not in name else Path(name).name for name in folders]
    assert len(shown) > len(PACKAGES)
    assert not [name for name in (*shown, *OTHER_FOLDERS_OF_CODE) if f"`{name}/`" not in contributing]


# --- links and code


@each_page
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    targets = [link.partition("#") for link in LINKS.findall(prose_of(page)) if "://" not in link]
    assert not [name for name, _, _ in targets if not (page.parent / name).exists()]
    headings = [(page.parent / name if name else page, part) for name, _, part in targets if part]
    assert not [(str(to), part) for to, part in headings if to.suffix == ".md" and part not in anchors_of(to)]


def test_every_page_is_in_the_index() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINKS.findall(text_of(DOCS / "index.md"))}
    assert not {str(page) for page in DOCS.rglob("*.md")} - {str(path) for path in linked} - {str(DOCS / "index.md")}


@each_page
def test_python_code_imports_the_public_package_only(page: Path) -> None:
    for language, code in BLOCKS.findall(text_of(page)):
        if language == "python":
            ours = imported(code) & {*PACKAGES, *OTHER_FOLDERS_OF_CODE}
            assert ours <= {"paire"}, code


@each_page
def test_python_code_uses_names_that_the_public_package_has(page: Path) -> None:
    if not hasattr(paire, "__all__"):
        pytest.skip("the public package has no names yet")
    for language, code in BLOCKS.findall(text_of(page)):
        if language == "python":
            used = {
                node.attr
                for node in ast.walk(ast.parse(code))
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "paire"
            }
            assert not {name for name in used if not hasattr(paire, name)}


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:paire|pipeline|workers|schemas|tests|studies|benchmarks)/[\w/.]*)`", prose_of(page))
    assert not {name for name in named if not (ROOT / name).exists()}


# --- files


def test_no_file_of_the_packages_is_longer_than_a_house_allows() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(text_of(path).splitlines())) > MOST_LINES
    }
    assert not long

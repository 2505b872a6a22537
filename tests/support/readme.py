"""The README's reference tables, made from the schemas: ``python -m tests.support.readme`` writes them."""

import re
from pathlib import Path

from schemas import config
from schemas.tables import catalog, iterations, manifest, scores
from schemas.tables.columns import reference

README = Path(__file__).parents[2] / "README.md"

TABLES = {
    "configuration": config.reference(),
    "manifest": reference(manifest.COLUMNS),
    "catalog": reference(catalog.COLUMNS),
    "iterations": reference(iterations.COLUMNS),
    "scores": reference(scores.COLUMNS),
}


def with_tables(text: str) -> str:
    """Return the README with every table between its markers brought up to date."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{README.name} has no markers {start} ... {end}")
        text = pattern.sub(lambda _, block=f"{start}\n{table}{end}": block, text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")

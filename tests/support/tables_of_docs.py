"""The tables in ``docs/``, made from the schemas: ``python -m tests.support.tables_of_docs`` writes them."""

import re
from pathlib import Path

from schemas import config
from schemas.tables import catalog, iterations, manifest, scores
from schemas.tables.columns import reference

ROOT = Path(__file__).parents[2]

TABLES = {
    "docs/options.md": {"configuration": config.reference()},
    "docs/tables.md": {
        "manifest": reference(manifest.COLUMNS),
        "catalog": reference(catalog.COLUMNS),
        "iterations": reference(iterations.COLUMNS),
        "scores": reference(scores.COLUMNS),
    },
}


def with_tables(page: str, text: str) -> str:
    """Return the text of a page with every table between its markers brought up to date."""
    for name, table in TABLES[page].items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{page} has no markers {start} ... {end}. Put them back where the table belongs.")
        text = pattern.sub(lambda _, block=f"{start}\n{table}{end}": block, text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    for page in TABLES:
        path = ROOT / page
        path.write_text(with_tables(page, path.read_text(encoding="utf-8")), encoding="utf-8")

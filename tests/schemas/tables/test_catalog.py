"""The catalog's digest: what makes two archives the same."""

import pandas as pd
import pytest

from schemas.tables.catalog import catalog_digest

CATALOG = pd.DataFrame(
    {
        "sample_id": ["1", "2", "3"],
        "image_path": ["here/a", "here/b", "here/c"],
        "file_name": ["a", "b", "c"],
        "group": ["g", "g", "Ünï"],
        "row": [0, 1, None],
        "reason": ["", "", "no image"],
    }
)


def test_the_digest_is_a_sha256_of_any_text() -> None:
    assert len(catalog_digest(CATALOG)) == 64


def test_the_digest_does_not_depend_on_where_the_archive_lies() -> None:
    moved = CATALOG.assign(image_path=["there/a", "there/b", "there/c"])
    assert catalog_digest(moved) == catalog_digest(CATALOG)


@pytest.mark.parametrize(
    "changed",
    [
        CATALOG.assign(sample_id=["1", "2", "4"]),
        CATALOG.assign(group=["g", "h", "g"]),
        CATALOG.assign(reason=["", "", ""]),
        CATALOG.iloc[:2],
        CATALOG.iloc[[1, 0, 2]],
        CATALOG.assign(sample_id=["12", "", "3"]),
    ],
    ids=["id", "group", "reason", "fewer", "order", "boundary"],
)
def test_the_digest_depends_on_ids_groups_reasons_and_order(changed: pd.DataFrame) -> None:
    assert catalog_digest(changed) != catalog_digest(CATALOG)

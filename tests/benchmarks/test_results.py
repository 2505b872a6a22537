"""What benchmarks keep, and the tables made of it."""

import json
from pathlib import Path

from benchmarks.results import RESULTS, TABLES, record, render, save, spread


def test_a_record_takes_the_place_of_its_last_one_and_leaves_the_others(tmp_path: Path) -> None:
    path, tables = tmp_path / "results.json", tmp_path / "RESULTS.md"
    for name, value in (("speed", "1"), ("memory", "2"), ("speed", "3")):
        save(name, record(name.title(), "How to read it.", [{"ratio": value}], command=f"run {name}"), path, tables)
    kept = json.loads(path.read_text())
    assert {name: found["rows"] for name, found in kept.items()} == {
        "memory": [{"ratio": "2"}],
        "speed": [{"ratio": "3"}],
    }
    assert kept["speed"]["machine"]["cores"] >= 1
    text = tables.read_text()
    assert text.index("## Memory") < text.index("## Speed")
    assert "| ratio |\n|---|\n| 3 |" in text
    assert "`run speed`" in text


def test_a_spread_is_the_median_and_the_extremes() -> None:
    assert spread([0.9, 0.7, 0.8]) == "0.80 (0.70 to 0.90)"


def test_the_tables_are_those_of_the_records() -> None:
    assert TABLES.read_text(encoding="utf-8") == render(json.loads(RESULTS.read_text(encoding="utf-8")))

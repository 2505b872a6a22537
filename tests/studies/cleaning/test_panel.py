"""The panel: sets are found by their names, others made from them, backbones are those that can be built."""

from pathlib import Path

import pytest

from schemas.config import parse_config
from schemas.errors import SourceError
from studies.cleaning.archives import write_category
from studies.cleaning.panel import ALL, BACKBONES, MADE, RANDOM, SETS, find_sets, origins_of
from workers.features.extractor import PatchExtractor


def test_sets_are_found_and_made(tmp_path: Path) -> None:
    for number, name in enumerate(("mvtec_bottle", "transistor")):
        write_category(tmp_path / name, first_seed=500 * number)
    found = find_sets(tmp_path, ["bottle", "bottle-turned", "bottle-transistor"], tmp_path / "made")
    assert found == {
        "bottle": tmp_path / "mvtec_bottle",
        "bottle-turned": tmp_path / "made" / "bottle-turned" / "labels.csv",
        "bottle-transistor": tmp_path / "made" / "bottle-transistor" / "labels.csv",
    }
    assert all(path.exists() for path in found.values())


@pytest.mark.parametrize("name", ["casting", "transistor-turned"])
def test_a_missing_set_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"(casting|transistor).*--sets"):
        find_sets(tmp_path, [name], tmp_path / "made")


def test_what_is_made_of_a_set_shares_its_images() -> None:
    assert origins_of("casting") == {"casting"}
    assert origins_of("bottle-transistor") == {"bottle", "transistor"}
    assert all(origins_of(name) <= set(SETS) for name in MADE)
    assert len(set(ALL)) == len(SETS) + len(MADE)


def test_settings_name_the_file_of_the_weights() -> None:
    for backbone in BACKBONES.values():
        assert parse_config(None, backbone.settings("folder")).features.weights == f"folder/{backbone.weights}"
        assert parse_config(None, backbone.settings(RANDOM)).features.weights == "random"


@pytest.mark.parametrize("name", BACKBONES)
def test_real_weights_fit(shared: Path, name: str) -> None:
    config = parse_config(None, BACKBONES[name].settings(str(shared / "weights")))
    geometry = PatchExtractor(config.features).geometry
    assert (geometry.rows, geometry.columns) == (14, 14)

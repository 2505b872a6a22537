"""An archive with odd files and a quick configuration, for all tests of the command line."""

from pathlib import Path

import pytest
import yaml

from tests.support.archives import part_pixels, png, tiny_config, write_parts

LINES = "two\nlines.png"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a configuration of 2 x 2 positions inside one process, as a file."""
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    config = tiny_config("features.pool_kernel=16", "features.pool_stride=16").model_dump(mode="json")
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_parts(folder, 7, 1)
    (folder / LINES).write_bytes(png(part_pixels(77)))
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return folder

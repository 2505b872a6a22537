"""Nothing that is read can execute anything: data with a planted call is refused in a sentence, and never called."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commands.clean import clean
from pipeline.commands.recut import recut
from pipeline.commands.score import score
from pipeline.intake.catalog import build_catalog
from pipeline.run_directory.journal import Journal, StaleJournalError
from schemas.config import InputConfig, parse_config
from schemas.errors import PaireError
from tests.support.archives import write_parts
from tests.support.runs import CLUSTER, quick_config
from workers.storage.directory import Directory


class Payload:
    """Pickles as a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    """Return what is there once a payload has run, which the fixture shows that it would."""
    folder = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(folder)))
    folder.rmdir()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pickles")
    write_parts(folder / "archive", 4)
    clean(str(folder / "archive"), str(folder / "run"), quick_config())
    return folder / "run"


def as_version_2(array: Path, payload: bytes) -> None:
    """Put an array of Zarr's old format into an array's place, whose filter unpickles."""
    described = json.loads((array / "zarr.json").read_text())
    shutil.rmtree(array)
    array.mkdir()
    old = {"zarr_format": 2, "shape": described["shape"], "chunks": described["shape"], "dtype": "|O", "order": "C"}
    (array / ".zarray").write_text(
        json.dumps({**old, "fill_value": None, "compressor": None, "filters": [{"id": "pickle"}]})
    )
    (array / ".zattrs").write_text("{}")
    (array / ".".join("0" * len(described["shape"]))).write_bytes(payload)


def described_by(**changes: Any) -> Callable[[Path, bytes], None]:
    """Return what changes an array's description and puts a payload into all of its chunks."""

    def change(array: Path, payload: bytes) -> None:
        described = json.loads((array / "zarr.json").read_text())
        (array / "zarr.json").write_text(json.dumps({**described, **changes}))
        for chunk in (array / "c").rglob("*"):
            if chunk.is_file():
                chunk.write_bytes(payload)

    return change


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
PLANTED = {
    "old format": as_version_2,
    "codec": described_by(codecs=[BYTES, {"name": "numcodecs.pickle"}]),
    "codec alone": described_by(codecs=[{"name": "pickle"}]),
    "type": described_by(data_type="object"),
    "type with a name": described_by(data_type={"name": "numpy.object", "configuration": {}}),
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_code_in_a_map_is_refused(
    run: Path, executed: Path, tmp_path: Path, planted: Callable[[Path, bytes], None]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    planted(tmp_path / "run" / "model" / "all" / "factor", pickle.dumps(Payload(executed)))
    model, out = str(tmp_path / "run" / "model"), str(tmp_path / "scores")
    with pytest.raises(PaireError, match=r"rows 0 to 1 of group 'all' in the Gaussian map .* cannot be read"):
        score(model, str(run.parent / "archive"), out, parse_config(None, CLUSTER))
    assert not executed.exists()


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_code_in_features_is_refused(
    run: Path, executed: Path, tmp_path: Path, planted: Callable[[Path, bytes], None]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    planted(tmp_path / "run" / "features" / "all", pickle.dumps(Payload(executed)))
    with pytest.raises(PaireError, match="features of group 'all'"):
        recut(str(tmp_path / "run"), parse_config(None, (*CLUSTER, "trim.strategy=none")))
    assert not executed.exists()


def test_code_in_a_journal_is_refused(executed: Path, tmp_path: Path) -> None:
    content = BytesIO()
    np.savez(content, _key=np.array([Payload(executed)], dtype=object))
    journal = Directory.at(tmp_path / "journal")
    journal.write("0001.npz", content.getvalue())
    with pytest.raises(StaleJournalError):
        Journal(journal, "group").recall("score", np.ones(3, bool))
    assert not executed.exists()


@pytest.mark.parametrize("kind", ["arrow.py_extension_type", "pandas.object"])
def test_code_in_a_parquet_index_is_not_executed(executed: Path, tmp_path: Path, kind: str) -> None:
    payload = pickle.dumps(Payload(executed), protocol=0)
    metadata = {"ARROW:extension:name": kind, "ARROW:extension:metadata": payload}
    schema = pa.schema([pa.field("image_path", pa.string(), metadata=metadata)], metadata={"pandas": payload})
    content = BytesIO()
    with pq.ParquetWriter(content, schema) as writer:
        writer.write_table(pa.Table.from_arrays([pa.array(["a.png"])], schema=schema))
    (tmp_path / "index.parquet").write_bytes(content.getvalue())
    with suppress(PaireError):
        assert build_catalog(str(tmp_path / "index.parquet"), InputConfig())["file_name"].tolist() == ["a.png"]
    assert not executed.exists()


def test_no_module_can_unpickle() -> None:
    root = Path(__file__).parents[1]
    for path in (path for package in ("schemas", "workers", "pipeline") for path in (root / package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for call in ("import pickle", "cloudpickle", "import dill", "joblib", "allow_pickle=True", "yaml.load("):
            assert call not in text, path
        assert text.count("torch.load(") == text.count("weights_only=True)")
        assert text.count("np.load(") == text.count("allow_pickle=False)")

"""Whole runs that tests share: how they are made, what lies in them, and what their books say."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from pipeline.commands.clean import CleanResult, clean
from schemas.config import Config
from tests.support.archives import tiny_config

ALL_OF_A_RUN = {
    "run.json",
    "config.yaml",
    "catalog.parquet",
    "features",
    "iterations.parquet",
    "distances",
    "manifest.parquet",
    "clean.csv",
    "model",
    "ledger.json",
    "log.jsonl",
    "_SUCCESS",
}
ALL_OF_A_VERSION = (ALL_OF_A_RUN - {"features"}) | {"changes.parquet", "changes.csv", "changes.json"}
DECISIONS = ("clean", "anomalous", "duplicate", "unreadable", "skipped")

# Of the command that scores, whose features are those of the map.
CLUSTER = ("cluster.workers=1", "cluster.threads_per_worker=1", "cluster.processes=false")

# Until the clean set is unchanged, so that the published Gaussians are those of the last pass.
SETTLED = "trim.stop_fraction=1"


@dataclass(frozen=True)
class Run:
    """A finished run and what it was made of."""

    path: Path
    source: Path
    result: CleanResult

    @property
    def manifest(self) -> pd.DataFrame:
        return pd.read_parquet(self.path / "manifest.parquet")

    @property
    def iterations(self) -> pd.DataFrame:
        return pd.read_parquet(self.path / "iterations.parquet")

    @property
    def decisions(self) -> dict[str, str]:
        """The decision of each input by its name."""
        return dict(zip(self.manifest["file_name"], self.manifest["decision"], strict=True))

    def array(self, name: str) -> NDArray[Any]:
        return np.asarray(zarr.open_array(self.path / name, mode="r")[:])


def config(*settings: str) -> Config:
    """Return a configuration of 4 x 4 positions."""
    return tiny_config("features.pool_kernel=8", "features.pool_stride=8", *settings)


def quick_config(*settings: str) -> Config:
    """Return a configuration of 2 x 2 positions, where it is not the evidence that matters."""
    return config("features.pool_kernel=16", "features.pool_stride=16", *settings)


def run_on(source: Path, out: Path, *settings: str) -> Run:
    return Run(out, source, clean(str(source), str(out), config(*settings)))


def quick_run_on(source: Path, out: Path, *settings: str) -> Run:
    return Run(out, source, clean(str(source), str(out), quick_config(*settings)))


def assert_balanced(run: Run) -> None:
    """Check the ledger against the manifest and the manifest against the files."""
    ledger = json.loads((run.path / "ledger.json").read_text())
    assert ledger == run.result.ledger
    for books, part in [
        (ledger["total"], run.manifest),
        *((entry, run.manifest[run.manifest["group"] == group]) for group, entry in ledger["groups"].items()),
    ]:
        assert {name: books[name] for name in DECISIONS} == {
            name: int((part["decision"] == name).sum()) for name in DECISIONS
        }
        assert books["inputs"] == len(part) == sum(books[name] for name in DECISIONS)
    if run.source.is_dir():
        assert sorted(run.manifest["file_name"]) == sorted(
            path.relative_to(run.source).as_posix()
            for path in run.source.rglob("*")
            if path.is_file() or path.is_symlink()
        )


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def state_of(run: Path) -> tuple[str, bool]:
    """Return the state of a run, and whether it was published though it is not to be trusted."""
    record = json.loads((run / "run.json").read_text())
    return record["state"], record["accepted_untrustworthy"]

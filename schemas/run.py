"""The run directory: what lies where, and the record that says whose it is."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

RUN_RECORD: Final = "run.json"
CONFIG: Final = "config.yaml"
CATALOG: Final = "catalog.parquet"
FEATURES: Final = "features"
ITERATIONS: Final = "iterations.parquet"
DISTANCES: Final = "distances"
MANIFEST: Final = "manifest.parquet"
CLEAN_LIST: Final = "clean.csv"
MODEL: Final = "model"
LEDGER: Final = "ledger.json"
LOG: Final = "log.jsonl"
SUCCESS: Final = "_SUCCESS"

# Arrays of a product group's node in distances/.
DISTANCE: Final = "distance"
THRESHOLD: Final = "threshold"
CLEAN_SETS: Final = "clean"

RUNNING: Final = "running"
DONE: Final = "done"


@dataclass(frozen=True)
class RunRecord:
    """Whose run directory this is; ``run.json``.

    Attributes
    ----------
    run_id
        UTC start time and a random part.
    state
        ``running`` or ``done``.
    source
        The archive, as given.
    options
        The options that the result depends on, flattened to ``section.key``.
    config_digest, catalog_digest, weights_digest
        sha256 of those options, of the inputs, of the backbone's weights.
    versions
        Versions of the packages that the result depends on.
    hosts
        Workers per host.
    """

    run_id: str
    state: str
    source: str
    options: dict[str, Any]
    config_digest: str
    catalog_digest: str
    weights_digest: str
    versions: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-ready data."""
        return asdict(self)

    def differences(self, other: "RunRecord") -> list[str]:
        """Name what distinguishes two runs' inputs, as ``name: mine -> other's``; empty for the same job."""
        mine = {"source": self.source, **self.options}
        theirs = {"source": other.source, **other.options}
        lines = [
            f"{name}: {mine.get(name)!r} -> {theirs.get(name)!r}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]
        for name in ("catalog_digest", "weights_digest"):
            if getattr(self, name) != getattr(other, name):
                what = "archive" if name == "catalog_digest" else "backbone weights"
                lines.append(f"{what}: {getattr(self, name)[:12]} -> {getattr(other, name)[:12]}")
        return lines

"""The run directory: the names in it, and the record that says which run it belongs to."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

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

# Only unfinished runs have these, so that the same command can finish them: receipts of extracted blocks, outcomes of
# passes and groups, and the lease.
RECEIPTS: Final = "receipts"
JOURNAL: Final = "journal"
LEASE: Final = "lease"

# Later verdicts from the same features: RECUTS/0001, RECUTS/0002, ..., each a run directory that has a list of changes
# instead of features.
RECUTS: Final = "recuts"
CHANGES: Final = "changes.parquet"
CHANGES_LIST: Final = "changes.csv"
CHANGES_SUMMARY: Final = "changes.json"

# The default place for the result of a trust test.
TRUST: Final = "trust"

# Arrays of a product group in distances/.
DISTANCE: Final = "distance"
THRESHOLD: Final = "threshold"
CLEAN_SETS: Final = "clean"
REPRESENTATIVE: Final = "representative"

# Everything that a run makes except its record, its lease and _SUCCESS; first what an unfinished run continues from.
MADE_BY_RUNS: Final = (
    RECEIPTS,
    JOURNAL,
    MANIFEST,
    CLEAN_LIST,
    LEDGER,
    MODEL,
    RECUTS,
    TRUST,
    ITERATIONS,
    DISTANCES,
    FEATURES,
    CATALOG,
    CONFIG,
    LOG,
)

RUNNING: Final = "running"
# Ended by a signal; the same command continues it. A run that was killed stays ``running``.
INTERRUPTED: Final = "interrupted"
DONE: Final = "done"
# Everything but _SUCCESS is written: the breakdown guard found reasons to stop, and nobody has accepted them.
UNTRUSTWORTHY: Final = "untrustworthy"


@dataclass(frozen=True)
class RunRecord:
    """The run that a run directory belongs to; ``run.json``."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    run_id: str  # UTC start time and a random part
    state: str  # ``running``, ``interrupted``, ``done`` or ``untrustworthy``
    source: str  # the archive, as given
    options: dict[str, Any]  # the options that the result depends on, as ``section.key``
    config_digest: str  # sha256 of those options
    catalog_digest: str  # sha256 of the inputs
    weights_digest: str  # sha256 of the backbone's weights
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that the result depends on
    hosts: dict[str, int] = field(default_factory=dict)  # workers per host
    base: str = ""  # run whose features were judged again; empty if this run extracted its own
    accepted_untrustworthy: bool = False  # published although the guard found reasons to stop (ledger.json)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_bytes(cls, content: bytes) -> "RunRecord":
        """Read a record back; raises `ValueError` if the bytes are not a record."""
        try:
            return _RECORDS.validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error

    def differences(self, other: "RunRecord") -> list[str]:
        """Return what differs between the inputs of two runs, as ``name: mine -> other's``; empty for the same job."""
        mine = {"source": self.source, **self.options}
        theirs = {"source": other.source, **other.options}
        lines = [
            f"{name}: {mine.get(name)!r} -> {theirs.get(name)!r}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]
        if self.base != other.base:
            lines.append(f"cut from the features of run: {self.base!r} -> {other.base!r}")
        for name in ("catalog_digest", "weights_digest"):
            if getattr(self, name) != getattr(other, name):
                what = "archive" if name == "catalog_digest" else "backbone weights"
                lines.append(f"{what}: {getattr(self, name)[:12]} -> {getattr(other, name)[:12]}")
        return lines


_RECORDS: Final = TypeAdapter(RunRecord)


def version_name(number: int) -> str:
    """Return the directory of a version below ``recuts/``; numbers above 9999 have more digits."""
    return f"{number:04d}"


def version_number(name: str) -> int | None:
    """Return the number of the version in a directory below ``recuts/``; None if the name is not a version's."""
    is_number = name.isascii() and name.isdigit() and int(name) > 0
    return int(name) if is_number and version_name(int(name)) == name else None

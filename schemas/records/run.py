"""The run directory: what lies where, and the record that says whose it is."""

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

# What only unfinished runs have, so that the same command finishes them: receipts of extracted blocks, the outcomes of
# passes and groups, and who is at work.
RECEIPTS: Final = "receipts"
JOURNAL: Final = "journal"
LEASE: Final = "lease"

# Later verdicts from the same features: RECUTS/0001, RECUTS/0002, ..., each a run directory without features, with
# what changed.
RECUTS: Final = "recuts"
CHANGES: Final = "changes.parquet"
CHANGES_LIST: Final = "changes.csv"
CHANGES_SUMMARY: Final = "changes.json"

# What a trust test found, where it is not told to write elsewhere.
TRUST: Final = "trust"

# Arrays of a product group's node in distances/.
DISTANCE: Final = "distance"
THRESHOLD: Final = "threshold"
CLEAN_SETS: Final = "clean"
REPRESENTATIVE: Final = "representative"

# All that a run makes but its record, its lease and _SUCCESS; first what unfinished runs go on from.
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
# Ended by a signal; the same command goes on with it. One that was killed stays ``running``.
INTERRUPTED: Final = "interrupted"
DONE: Final = "done"
# Judged and written, but for _SUCCESS: the breakdown guard found reasons to stop, and nobody has accepted them.
UNTRUSTWORTHY: Final = "untrustworthy"


@dataclass(frozen=True)
class RunRecord:
    """Whose run directory this is; ``run.json``.

    Attributes
    ----------
    run_id
        UTC start time and a random part.
    state
        ``running``, ``interrupted``, ``done`` or ``untrustworthy``.
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
    base
        The run whose features were judged anew; empty for a run that extracted its own.
    accepted_untrustworthy
        It was published although the breakdown guard found reasons to stop; they are in ``ledger.json``.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    run_id: str
    state: str
    source: str
    options: dict[str, Any]
    config_digest: str
    catalog_digest: str
    weights_digest: str
    versions: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)
    base: str = ""
    accepted_untrustworthy: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_bytes(cls, content: bytes) -> "RunRecord":
        """Read a record back.

        Raises
        ------
        ValueError
            When it is none.
        """
        try:
            return _RECORDS.validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error

    def differences(self, other: "RunRecord") -> list[str]:
        """Name what distinguishes two runs' inputs, as ``name: mine -> other's``; empty for the same job."""
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
    """Return the directory of a version below ``recuts/``; a number of more digits just takes them."""
    return f"{number:04d}"


def version_number(name: str) -> int | None:
    """Return the version that a directory below ``recuts/`` is; None for a name that is no version's."""
    is_number = name.isascii() and name.isdigit() and int(name) > 0
    return int(name) if is_number and version_name(int(name)) == name else None

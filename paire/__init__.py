"""Clean image archives from Python: ``docs/python.md`` shows how.

``import paire`` takes milliseconds: every name that needs torch, Dask, pandas or pydantic loads on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from schemas.errors import (
    ClusterError,
    ConfigError,
    DamagedArrayError,
    DecoderError,
    DeviceError,
    FeatureRangeError,
    GaussianMapError,
    LedgerError,
    PaireError,
    RunConflictError,
    SingularCovarianceError,
    SourceError,
    StorageError,
    UnreadableBudgetError,
    UntrustworthyError,
    WeightsError,
)

__all__ = [
    "ClusterError",
    "Config",
    "ConfigError",
    "DamagedArrayError",
    "DecoderError",
    "DeviceError",
    "FeatureRangeError",
    "GaussianMap",
    "GaussianMapError",
    "ImageScorer",
    "LedgerError",
    "PaireError",
    "Run",
    "RunConflictError",
    "Scores",
    "SingularCovarianceError",
    "SourceError",
    "StorageError",
    "UnreadableBudgetError",
    "UntrustworthyError",
    "WeightsError",
    "__version__",
    "clean",
    "open_run",
]

if TYPE_CHECKING:
    from paire.job import clean
    from paire.run import Run, open_run
    from paire.version import __version__
    from schemas.config import Config
    from workers.map.reader import GaussianMap
    from workers.map.scorer import ImageScorer, Scores
else:
    # A type checker must not see __getattr__: it would accept every misspelt name.
    _HOMES = {
        "Config": "schemas.config",
        "GaussianMap": "workers.map.reader",
        "ImageScorer": "workers.map.scorer",
        "Run": "paire.run",
        "Scores": "workers.map.scorer",
        "__version__": "paire.version",
        "clean": "paire.job",
        "open_run": "paire.run",
    }

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)

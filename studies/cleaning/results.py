"""The results of a study, one row for each dirty set and method, kept so that a study can be cut short and taken up.

A row says what it was made of. A study takes over the rows of an earlier one that it would compute again as they are,
and computes the others: those of a strategy whose code has changed since, for example.
"""

import ast
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from schemas.config import Config
from studies.cleaning.dirty_sets import Case
from studies.cleaning.methods import CONCENTRATE, GROW, Method

ROOT = Path(__file__).parents[2]

_STRATEGY_FILES = {GROW: "pipeline/judging/strategies/grow.py", CONCENTRATE: "pipeline/judging/strategies/grow.py"}
_OWN_FILES = (
    *(f"studies/cleaning/{name}.py" for name in ("dirty_sets", "gram", "images", "judge", "passes")),
    "workers/features/block.py",
)
# What configures is in the digest as it was resolved; what decides lies in these packages.
_DECIDING = ("pipeline", "workers")


@dataclass(frozen=True)
class Result:
    """What a method made of a dirty set.

    Attributes
    ----------
    archive, protocol, noise, seed, method, setting
        Which set, which method.
    made_of
        Digest of the images, the weights, the options and the code.
    images, anomalies
        Of the training set without byte-identical copies.
    kept, kept_anomalies
        Of those.
    purity, kept_share
        Share of true normals among the kept; of the true normals that are kept.
    passes, stop_reason, floor_applied
        How the iteration went.
    history
        Kept images and kept anomalies after each pass, as ``21:0 116:0``.
    test_normals, test_anomalies
        Of the test set.
    auroc
        Of the largest distance of each test image under the map fitted on the kept images.
    auroc_smoothed
        The same after averaging over neighbouring positions as `grow` does.
    seconds
        Of one core, for all of it.
    """

    archive: str
    protocol: str
    noise: float
    seed: int
    method: str
    setting: str
    made_of: str
    images: int
    anomalies: int
    kept: int
    kept_anomalies: int
    purity: float
    kept_share: float
    passes: int
    stop_reason: str
    floor_applied: bool
    history: str
    test_normals: int
    test_anomalies: int
    auroc: float
    auroc_smoothed: float
    seconds: float


_NAMES = [field.name for field in fields(Result)]
_KEY = ["archive", "protocol", "noise", "seed", "method", "setting"]
_TEXTS = {"archive", "protocol", "method", "setting", "made_of", "stop_reason", "history"}
_SHARES = ("purity", "kept_share", "auroc", "auroc_smoothed")
# More than N images can tell apart.
_DECIMALS = dict.fromkeys((*_SHARES, "seconds"), 6)


class ResultsFile:
    """The rows so far, in a CSV that always holds whole ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.table = self._read()

    def lacks(self, case: Case, method: Method, made_of: str) -> bool:
        """Tell whether there is no row of this method on this set, made of the same."""
        rows = self.table
        return not (_is_of(rows, case, method) & (rows["made_of"] == made_of)).any()

    def add(self, results: Iterable[Result]) -> None:
        """Add rows, in the place of earlier ones of the same methods on the same sets."""
        new = pd.DataFrame([asdict(result) for result in results], columns=_NAMES).round(_DECIMALS)
        table = pd.concat([self.table, new]) if len(self.table) else new
        self.table = table.drop_duplicates(_KEY, keep="last").sort_values(_KEY, ignore_index=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        self.table.to_csv(part, index=False)
        part.replace(self._path)

    def rows_of(self, wanted: Iterable[tuple[Case, Method]]) -> pd.DataFrame:
        """Return the rows of these methods on these sets."""
        keys = pd.DataFrame(
            [(*asdict(case).values(), method.name, method.setting) for case, method in wanted], columns=_KEY
        )
        return self.table.merge(keys, on=_KEY)

    def _read(self) -> pd.DataFrame:
        if not self._path.is_file():
            return pd.DataFrame(columns=_NAMES)
        texts = dict.fromkeys(_TEXTS, str)
        # A method may be called none, and an area under a curve may not be defined.
        undefined = {name: [""] for name in _SHARES}
        table = pd.read_csv(self._path, dtype=texts, keep_default_na=False, na_values=undefined)
        # A file of another version of the study has nothing that can be taken over.
        return table if list(table.columns) == _NAMES else pd.DataFrame(columns=_NAMES)


def _is_of(rows: pd.DataFrame, case: Case, method: Method) -> pd.Series:
    same: pd.Series = (
        (rows["archive"] == case.archive)
        & (rows["protocol"] == case.protocol)
        & (rows["noise"] == case.noise)
        & (rows["seed"] == case.seed)
        & (rows["method"] == method.name)
        & (rows["setting"] == method.setting)
    )
    return same


def digest_of(images: str, weights: str, config: Config, method: Method) -> str:
    """Return the digest of what a row is made of.

    Parameters
    ----------
    images, weights
        Digests of the dirty set and of the backbone's weights.
    config, method
        The method with its configuration; its code is followed through the packages.
    """
    made_of = {
        "images": images,
        "weights": weights,
        "options": {section: _options(config, section) for section in ("input", "features", "gaussian", "trim")},
        "method": method.name,
        "code": code_digest((_STRATEGY_FILES.get(method.name, "pipeline/judging/strategies/paire.py"), *_OWN_FILES)),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _options(config: Config, section: str) -> dict[str, Any]:
    options: dict[str, Any] = getattr(config, section).model_dump(mode="json")
    return {key: value for key, value in options.items() if key not in {"weights", "device"}}


@cache
def code_digest(files: tuple[str, ...]) -> str:
    """Return the sha256 of what files, and all that they import from the deciding packages, do.

    Comments, docstrings and layout are not part of it.
    """
    code = "\n".join(_behaviour(path) for path in _closure(files))
    return hashlib.sha256(code.encode()).hexdigest()


def _closure(files: Iterable[str]) -> list[Path]:
    """Return files and all that they import from the deciding packages, however far."""
    known: set[Path] = set()
    waiting = [ROOT / name for name in files]
    while waiting:
        path = waiting.pop()
        if path not in known:
            known.add(path)
            waiting += _imported(path)
    return sorted(known)


def _imported(path: Path) -> list[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.partition(".")[0] in _DECIDING]
    return [path for path in paths if path.is_file()]


def _behaviour(path: Path) -> str:
    """Return a file's syntax tree without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
            ]
    return ast.dump(tree)


def passes_of(history: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (passes, 2) int64 of a ``history``: kept images and kept anomalies after each pass."""
    return np.array([[int(part) for part in step.split(":")] for step in history.split()], np.int64).reshape(-1, 2)

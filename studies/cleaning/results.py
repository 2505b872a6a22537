"""The results of a study: one row for each dirty set and method, so that an interrupted study can go on.

A row has a digest of everything that it was computed from. A study keeps the rows whose digest is still the same, and
computes the others again, such as those of a strategy whose code has changed.
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
from studies.cleaning.methods import CONCENTRATE, GROW, PAIRE, Method

ROOT = Path(__file__).parents[2]

_STRATEGIES = "pipeline/judging/strategies"
_STRATEGY_FILES = {name: f"{_STRATEGIES}/{name}.py" for name in (PAIRE, CONCENTRATE, GROW)}
# The oracle fits as `none` does.
_ABLATIONS = f"{_STRATEGIES}/ablations.py"
_OWN_FILES = (
    *(f"studies/cleaning/{name}.py" for name in ("dirty_sets", "gram", "images", "judge", "passes")),
    "workers/features/block.py",
)
# The digest has the resolved configuration. The code that decides is in these packages.
_DECIDING = ("pipeline", "workers")


@dataclass(frozen=True)
class Result:
    """How one method cleaned one dirty set.

    Attributes
    ----------
    archive, protocol, noise, seed, method, setting
        The set and the method.
    made_of
        Digest of the images, the weights, the options and the code.
    images, anomalies
        In the training set, without byte-identical copies.
    kept, kept_anomalies
        How many of them were kept.
    purity, kept_share
        Share of true normals among the kept images; share of the true normals that were kept.
    passes, stop_reason, floor_applied
        How the iteration ended.
    history
        Kept images and kept anomalies after each pass, as ``21:0 116:0``.
    test_normals, test_anomalies
        Images of the test set.
    auroc
        By the largest distance of each test image, under the map fitted on the kept images.
    auroc_smoothed
        The same after averaging over neighbouring positions as `grow` does.
    seconds
        Of one core, for everything.
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
# More decimals than N images can distinguish.
_DECIMALS = dict.fromkeys((*_SHARES, "seconds"), 6)


class ResultsFile:
    """The rows so far, in a CSV file that always holds whole rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.table = self._read()

    def lacks(self, case: Case, method: Method, made_of: str) -> bool:
        """Tell whether no row of this method on this set has this digest."""
        rows = self.table
        return not (_is_of(rows, case, method) & (rows["made_of"] == made_of)).any()

    def add(self, results: Iterable[Result]) -> None:
        """Add rows, and replace earlier rows of the same methods on the same sets."""
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
        # A method is called "none", which is not a missing value, and an AUROC may be undefined.
        undefined = {name: [""] for name in _SHARES}
        table = pd.read_csv(self._path, dtype=texts, keep_default_na=False, na_values=undefined)
        # The rows of another version of the study cannot be used.
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
    """Return the digest of everything that a row is computed from, with the method's code through all packages.

    Parameters
    ----------
    images, weights
        Digests of the dirty set and of the backbone's weights.
    """
    made_of = {
        "images": images,
        "weights": weights,
        "options": {section: _options(config, section) for section in ("input", "features", "gaussian", "trim")},
        "method": method.name,
        "code": code_digest((_STRATEGY_FILES.get(method.name, _ABLATIONS), *_OWN_FILES)),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _options(config: Config, section: str) -> dict[str, Any]:
    options: dict[str, Any] = getattr(config, section).model_dump(mode="json")
    return {key: value for key, value in options.items() if key not in {"weights", "device"}}


@cache
def code_digest(files: tuple[str, ...]) -> str:
    """Return the sha256 of the code of files, and of all that they import from the deciding packages.

    Comments, docstrings and layout do not count.
    """
    code = "\n".join(_behaviour(path) for path in _closure(files))
    return hashlib.sha256(code.encode()).hexdigest()


def _closure(files: Iterable[str]) -> list[Path]:
    """Return files and all that they import from the deciding packages, directly or not."""
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

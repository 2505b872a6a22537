"""The results of a study: one row for each dirty set, backbone and method, so that an interrupted study can go on.

A row has a digest of everything that it was computed from. A study keeps the rows whose digest is still the same, and
computes the others again, such as those of a strategy whose file has changed.
"""

import ast
import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipeline.judging.strategies.registry import strategy_of
from schemas.config import Config
from studies.cleaning.dirty_sets import Case
from studies.cleaning.methods import Method

ROOT = Path(__file__).parents[2]

# What computes a row, besides the strategy's own file; folders with all their files. A change of the options changes
# the resolved configuration, which is part of the digest too.
CODE = (
    "workers/features",
    "workers/gaussian",
    "workers/guard",
    "workers/images",
    "workers/passes",
    "workers/trust",
    "workers/verdict",
    "pipeline/judging/examination.py",
    "pipeline/judging/strategies/base.py",
    *(f"studies/cleaning/{name}.py" for name in ("dirty_sets", "gram", "guard", "images", "judge", "passes")),
)


class Result(NamedTuple):
    """How one method cleaned one dirty set, seen by one backbone.

    Attributes
    ----------
    archive, backbone, protocol, noise, seed, method, setting
        The set, the backbone and the method.
    made_of
        Digest of the images, the weights, the options and the code.
    images, anomalies
        In the training set, without byte-identical copies.
    kept, kept_anomalies
        How many of them were kept.
    purity, kept_share
        Share of true normals among the kept images; share of the true normals that were kept.
    passes, stop_reason
        How the search ended.
    stops, said
        Whether the guard stops the run; conditions of its findings, and beginnings of all warnings.
    failed, silent
        Whether purity is below .98; whether it is, and nothing is said.
    contamination, lower, upper, covered
        The guard's estimate, its 95 % interval, and 1 if that covers the truth, else 0.
    test_normals, test_anomalies
        Images of the test set.
    auroc, oracle_auroc
        By the largest distance of each test image, under the published map, and under a map of the true normals with
        the same estimator.
    oracle_cut
        Share of the true normals that the oracle's ranking of the training set keeps at purity .995.
    seconds
        Of one core, for everything; what several sets share is divided between them.
    """

    archive: str
    backbone: str
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
    stops: bool
    said: str
    failed: bool
    silent: bool
    contamination: float
    lower: float
    upper: float
    covered: float
    test_normals: int
    test_anomalies: int
    auroc: float
    oracle_auroc: float
    oracle_cut: float
    seconds: float


Key = tuple[Case, str, Method]  # set, backbone, method

_NAMES = list(Result._fields)
_KEY = ["archive", "backbone", "protocol", "noise", "seed", "method", "setting"]
_TEXTS = {"archive", "backbone", "protocol", "method", "setting", "made_of", "stop_reason", "said"}
_SHARES = (
    *("purity", "kept_share", "contamination", "lower", "upper", "covered"),
    *("auroc", "oracle_auroc", "oracle_cut"),
)
# More decimals than N images can distinguish.
_DECIMALS = {**dict.fromkeys(_SHARES, 5), "seconds": 3}


class ResultsFile:
    """The rows so far, in a CSV file that always holds whole rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.table = self._read()

    @property
    def digests(self) -> dict[tuple[Any, ...], str]:
        """The key of each row to the digest of what it was made of."""
        keys = self.table[_KEY].itertuples(index=False, name=None)
        return dict(zip(keys, self.table["made_of"], strict=True))

    def add(self, results: Iterable[Result]) -> None:
        """Add rows, and replace earlier rows of the same methods on the same sets."""
        new = pd.DataFrame(list(results), columns=_NAMES).round(_DECIMALS)
        table = pd.concat([self.table, new]) if len(self.table) else new
        self.table = table.drop_duplicates(_KEY, keep="last").sort_values(_KEY, ignore_index=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        self.table.to_csv(part, index=False)
        part.replace(self._path)

    def rows_of(self, wanted: Iterable[Key]) -> pd.DataFrame:
        """Return the rows of these methods on these sets."""
        return self.table.merge(pd.DataFrame([key_of(*one) for one in wanted], columns=_KEY), on=_KEY)

    def _read(self) -> pd.DataFrame:
        if not self._path.is_file():
            return pd.DataFrame(columns=_NAMES)
        texts = dict.fromkeys(_TEXTS, str)
        # A method is called "none", which is not a missing value, and an AUROC may be undefined.
        undefined = {name: [""] for name in _SHARES}
        table = pd.read_csv(self._path, dtype=texts, keep_default_na=False, na_values=undefined)
        # The rows of another version of the study cannot be used.
        return table if list(table.columns) == _NAMES else pd.DataFrame(columns=_NAMES)


def key_of(case: Case, backbone: str, method: Method) -> tuple[Any, ...]:
    """Return what tells a row from others, in the order of its columns."""
    archive, protocol, noise, seed = asdict(case).values()
    return (archive, backbone, protocol, noise, seed, method.name, method.setting)


def digest_of(images: str, weights: str, config: Config, method: Method) -> str:
    """Return the digest of everything that a row is computed from.

    Parameters
    ----------
    images, weights
        Digests of the dirty set and of the backbone's weights.
    """
    strategy = inspect.getsourcefile(type(strategy_of(config)))
    assert strategy is not None
    made_of = {
        "images": images,
        "weights": weights,
        "options": {section: _options(config, section) for section in ("input", "features", "gaussian", "trim")},
        "method": method.name,
        "code": code_digest((strategy, *CODE)),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _options(config: Config, section: str) -> dict[str, Any]:
    options: dict[str, Any] = getattr(config, section).model_dump(mode="json")
    return {key: value for key, value in options.items() if key not in {"weights", "device"}}


@cache
def code_digest(places: tuple[str, ...]) -> str:
    """Return the sha256 of the code of files and folders; comments, docstrings and layout do not count."""
    files = sorted({path for place in places for path in _files(ROOT / place)})
    return hashlib.sha256("\n".join(_behaviour(path) for path in files).encode()).hexdigest()


def _files(place: Path) -> list[Path]:
    return list(place.rglob("*.py")) if place.is_dir() else [place]


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

"""How well the strategies clean large groups and near-duplicates: synthetic features through the production path.

Features of archives with known truth (`studies.synthetic_features`) are written into a feature store and judged by
`pipeline.judging.judge`, like those of `paire clean`. One axis varies at a time around a centre. Every case is a row of
`results.csv`. Rows that exist are not computed again, so an interrupted study goes on. After a change of a strategy,
``--again STRATEGY`` repeats its rows.

    python -m studies.large_groups
    python -m studies.large_groups --series copies --strategies grow --again grow
"""

import argparse
import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.judging.judge import Judge
from pipeline.run_directory.record import new_record
from schemas.config import Config, parse_config
from schemas.names import DEFAULT_GROUP
from schemas.records import run as layout
from studies.large_groups_report import DOCUMENT, RESULTS, SERIES, STRATEGIES, write_report
from studies.synthetic_features import (
    SHIFTS,
    Archive,
    Truth,
    catalog_and_outcomes,
    plan,
    write_features,
)
from workers.storage.directory import Directory

# The most bytes of features that a case may have; its float64 distances come on top.
MAX_FEATURE_BYTES = 1_500_000_000
# Free space must hold the features, the distances and the Gaussian map.
SPACE_FACTOR = 2


def main() -> None:
    """Compute the cases that are missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV that rows are appended to")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES), help="which axes to vary")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--again", nargs="+", default=[], metavar="STRATEGY", help="compute these anew")
    parser.add_argument("--max-images", type=int, default=None, help="leave out larger archives")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    cases: dict[Archive, dict[str, None]] = {}
    for series in (SERIES[name] for name in arguments.series):
        wanted = [strategy for strategy in series.strategies if strategy in arguments.strategies]
        for archive in series.archives:
            if arguments.max_images is None or archive.images <= arguments.max_images:
                cases.setdefault(archive, {}).update(dict.fromkeys(wanted))
    settings = [*arguments.settings, "cluster.workers=1", "cluster.processes=false"]
    settings.append(f"cluster.threads_per_worker={arguments.threads}")
    forget(arguments.results, cases, arguments.again)
    with open_cluster(parse_config(None, settings).cluster) as cluster:
        for archive, strategies in cases.items():
            study(archive, strategies, settings, cluster, arguments.results)
    if arguments.results == RESULTS:
        write_report(pd.read_csv(RESULTS), DOCUMENT)


def study(
    archive: Archive, strategies: Iterable[str], settings: Iterable[str], cluster: Cluster, results: Path
) -> None:
    """Judge one archive by the strategies whose rows are missing, and append their rows."""
    missing = [strategy for strategy in strategies if not _rows(results, archive, strategy).any()]
    if not missing:
        return
    configs = {strategy: parse_config(None, [*settings, *STRATEGIES[strategy]]) for strategy in missing}
    dtype = configs[missing[0]].features.dtype
    require_space(archive, dtype, Path(tempfile.gettempdir()))
    truth = plan(archive)
    with tempfile.TemporaryDirectory() as folder:
        store = Directory.at(Path(folder) / layout.FEATURES)
        write_features(archive, truth, store, dtype)
        for strategy, config in configs.items():
            row = judge(archive, truth, store, Path(folder) / strategy, config, cluster)
            shutil.rmtree(Path(folder) / strategy)
            row = {**dataclasses.asdict(archive), "strategy": strategy, **row}
            pd.DataFrame([row]).to_csv(results, mode="a", header=not results.exists(), index=False)
            print({key: value for key, value in row.items() if value}, flush=True)


def judge(
    archive: Archive, truth: Truth, store: Directory, run: Path, config: Config, cluster: Cluster
) -> dict[str, Any]:
    """Judge stored features into a run directory and compare the manifest with the truth."""
    catalog, outcomes = catalog_and_outcomes(archive, truth)
    # There are features only, no images to plant defects into.
    config = config.model_copy(update={"guard": config.guard.model_copy(update={"power_images": 0})})
    record = new_record("synthetic", catalog, config, "none")
    started = time.monotonic()
    with _log_lines() as lines:
        ledger = Judge(Directory.at(run), store, archive.geometry, config, record, cluster, Reporter()).judge(
            catalog, outcomes
        )
    seconds = time.monotonic() - started
    manifest = pd.read_parquet(run / layout.MANIFEST)
    passes = pd.read_parquet(run / layout.ITERATIONS)
    group = ledger["groups"][DEFAULT_GROUP]
    found = {
        finding["condition"] + (" (stops)" if finding["stops"] else ""): finding["sentence"]
        for finding in group["findings"]
    }
    return {
        **compare(manifest, truth, config.trim.target_false_reject),
        "passes": len(passes),
        "floor_passes": int(passes["floor_applied"].sum()),
        "floor_logged": sum("floor applied" in line for line in lines),
        "floor_in_ledger": group["floor_applied"],
        "stop_reason": group["stop_reason"],
        "warnings": "; ".join(text.partition(":")[0] for text in group["warnings"] if text not in found.values()),
        "guard": ", ".join(found),
        "seconds": round(seconds, 1),
    }


def compare(manifest: pd.DataFrame, truth: Truth, false_reject: float) -> dict[str, Any]:
    """Return how many good and defective images were kept; near-copies share their original's label.

    ``below_target`` separates a poor ranking from a poor threshold: it counts the defective images that one threshold
    on the margins would keep if it rejected exactly the wanted share of the good images.

    Parameters
    ----------
    manifest
        One row for each image, in the archive's order.
    truth
        What each image of the archive is.
    false_reject
        The wanted share.
    """
    kept, bad = (manifest["label"] == "normal").to_numpy(), truth.is_defective
    judged = manifest["margin"].notna().to_numpy()
    margin = manifest["margin"].to_numpy(dtype=float)
    limit = np.quantile(margin[judged & ~bad], 1 - false_reject)
    two_kinds = bad[judged].any() and not bad[judged].all()
    return {
        "good": int((~bad).sum()),
        "good_kept": int((kept & ~bad).sum()),
        "defective": int(bad.sum()),
        "defects_kept": int((kept & bad).sum()),
        **{f"kept_at_{shift:g}": int((kept & bad & (truth.shift == shift)).sum()) for shift in SHIFTS},
        "purity": round(float((~bad[kept]).mean()), 4) if kept.any() else np.nan,
        "margin_auroc": round(float(roc_auc_score(bad[judged], margin[judged])), 4) if two_kinds else np.nan,
        "below_target": int((margin[judged & bad] < limit).sum()),
    }


def require_space(archive: Archive, dtype: str, folder: Path) -> None:
    """Refuse an archive that is too large for this study or for the disk.

    Raises
    ------
    SystemExit
        With one line that says what is too large.
    """
    needed, free = archive.stored_bytes(dtype), shutil.disk_usage(folder).free
    if needed > MAX_FEATURE_BYTES:
        raise SystemExit(f"{archive} has {needed:.2g} bytes of features; this study writes {MAX_FEATURE_BYTES:.2g}.")
    if SPACE_FACTOR * needed > free:
        raise SystemExit(
            f"{archive} needs {SPACE_FACTOR * needed:.2g} bytes in {folder}, where {free:.2g} are free. Make room, or "
            "set TMPDIR to a larger disk; rows that are there are not computed again."
        )


def forget(results: Path, archives: Iterable[Archive], strategies: Iterable[str]) -> None:
    """Remove the rows of these archives and strategies from the results."""
    for archive in archives:
        for strategy in strategies:
            found = _rows(results, archive, strategy)
            if found.any():
                pd.read_csv(results, keep_default_na=False)[~found.to_numpy()].to_csv(results, index=False)


def _rows(results: Path, archive: Archive, strategy: str) -> "pd.Series[bool]":
    """Return the rows of this case in the results; none where the file does not exist yet."""
    if not results.exists():
        return pd.Series(dtype=bool)
    table = pd.read_csv(results)
    same = table["strategy"] == strategy
    for name, value in dataclasses.asdict(archive).items():
        same &= table[name] == value
    return same


@contextmanager
def _log_lines() -> Iterator[list[str]]:
    """Collect the lines of the run's log as log.jsonl and the terminal get them."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, collector = logging.getLogger("paire"), Collector()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(collector)
    try:
        yield lines
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)


if __name__ == "__main__":
    main()

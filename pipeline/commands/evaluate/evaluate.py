"""The evaluation job: a finished run, or the scores of a test set, against true labels."""

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.commands.evaluate.curves import draw_curves
from pipeline.commands.evaluate.evaluation import AnomalyMaps, Evaluation, evaluate_comparison
from pipeline.commands.evaluate.truth import compare
from pipeline.run_directory.finished import require_judged, warn_if_untrustworthy
from pipeline.run_directory.tables import read_table
from schemas.arrays import Mask
from schemas.errors import SourceError
from schemas.names import storage_name
from schemas.records import run as layout
from schemas.tables import catalog as catalog_table
from schemas.tables import manifest as manifest_table
from schemas.tables import scores as scores_table
from schemas.tables.columns import csv_for_people
from schemas.tables.manifest import CLEAN, DUPLICATE, SKIPPED, UNREADABLE
from workers.features.arrays import read_stored
from workers.storage.directory import Directory


def evaluate(result: str, labels: str, *, masks: str | None = None, out: str | None = None) -> Evaluation:
    """Compare a finished run, or the scores of a test set, with the truth.

    Parameters
    ----------
    result
        A run directory, or a directory that ``paire score`` has written; path or URL.
    labels, masks
        As for `evaluate_run`.
    out
        Directory for ``evaluation.json``, ``evaluation.csv`` and ``curves.png``; None writes no files.

    Raises
    ------
    SourceError
        As `evaluate_run` and `evaluate_scores`, and when ``result`` is neither a run nor scores.
    """
    directory = Directory.at(result)
    if directory.exists(layout.SUCCESS) or directory.exists(layout.RUN_RECORD):
        evaluation = evaluate_run(directory, labels, masks=masks)
    elif directory.exists(scores_table.SCORES):
        evaluation = evaluate_scores(directory, labels, masks=masks)
    else:
        raise SourceError(
            f"{directory.url} is neither a finished run nor a directory of scores: it has no {layout.SUCCESS} and no "
            f"{scores_table.SCORES}. Give the --out directory of `paire clean` or of `paire score`."
        )
    if out is not None:
        _write(evaluation, Directory.at(out))
    return evaluation


def _write(evaluation: Evaluation, directory: Directory) -> None:
    directory.write("evaluation.json", json.dumps(evaluation.to_json(), indent=2).encode())
    directory.write("evaluation.csv", csv_for_people(evaluation.table()))
    directory.write("curves.png", draw_curves(evaluation))


def evaluate_run(run: Directory, labels: str, *, masks: str | None = None) -> Evaluation:
    """Compare a finished run with the truth; a warning says why an unpublished run must not be trusted.

    Parameters
    ----------
    run
        The run directory; published, or found untrustworthy.
    labels
        CSV with ``image_path`` (relative to the CSV, absolute, or like the manifest's ``image_path`` or ``file_name``),
        ``label_index`` (0 normal, 1 anomalous) and optionally ``mask_path``; or any other data set that
        `workers.sources.labelled.read_labelled` reads.
    masks
        Folder or URL of masks for labels that name none: ``<stem>_mask.png``, ``<stem>_GT.png`` or ``<stem>.png``, if
        possible in a folder with the name of the image's folder (MVTec: ``ground_truth/<defect>/<stem>_mask.png``).
        Pixels that are not zero are anomalous; a normal image needs no mask.

    Raises
    ------
    SourceError
        When the run is not finished, the labels or masks cannot be read, or no label matches an input.
    """
    require_judged(run)
    warn_if_untrustworthy(run)
    manifest = read_table(run, layout.MANIFEST, manifest_table.COLUMNS)
    catalog = read_table(run, layout.CATALOG, catalog_table.COLUMNS)
    rows = catalog.set_index("sample_id")["row"]
    decision = manifest["decision"]
    inputs = pd.DataFrame(
        {
            "image_path": manifest["image_path"],
            "file_name": manifest["file_name"],
            "group": manifest["group"],
            "score": manifest["anomaly_score"],
            "is_clean": decision == CLEAN,
            "is_duplicate": decision == DUPLICATE,
            "left_out": decision.where(decision.isin([UNREADABLE, SKIPPED]), ""),
            # A duplicate has the distances of the image that it equals.
            "row": manifest["duplicate_of"].fillna(manifest["sample_id"]).map(rows),
            "width": manifest["width"],
            "height": manifest["height"],
        }
    )
    return evaluate_comparison(
        compare(inputs, labels, masks),
        lambda group: _stored_maps(_group_array(run, group, layout.DISTANCE)),
        lambda group: _stored_clean_sets(run, group),
    )


def evaluate_scores(directory: Directory, labels: str, *, masks: str | None = None) -> Evaluation:
    """Compare the scores that ``paire score`` has written with the truth.

    Parameters
    ----------
    directory
        Holds ``scores.parquet`` and, for the pixel metrics, ``anomaly_maps/``.
    labels, masks
        As for `evaluate_run`. Masks that the labels name are used only for images with a stored anomaly map.

    Raises
    ------
    SourceError
        As `evaluate_test`, and when the scores cannot be read, or anomaly maps are missing.
    """
    scores = _read_scores(directory)
    rows = scores["row"] if "row" in scores.columns else pd.Series(np.nan, index=scores.index)
    if masks is not None and not rows.notna().any():
        raise SourceError(
            f"{directory.url} holds no anomaly maps, which the pixel metrics need. Score the images again with "
            "--anomaly-maps, or leave out --masks."
        )
    with_maps = rows.notna()
    stored = {
        str(group): _maps_of_scores(directory, str(group), int(of_group.max()))
        for group, of_group in rows[with_maps].groupby(scores.loc[with_maps, "group"])
    }

    def stored_map(position: int) -> NDArray[np.float64] | None:
        row = rows.iloc[position]
        return None if pd.isna(row) else stored[str(scores["group"].iloc[position])](int(row))

    return evaluate_test(scores, stored_map, labels, masks=masks)


def _maps_of_scores(directory: Directory, group: str, last_row: int) -> AnomalyMaps:
    """Return the maps of a group after a check that they reach the last row that the scores name."""
    array = _node_array(directory / scores_table.ANOMALY_MAPS, storage_name(group))
    if array is None or last_row >= array.shape[0]:
        raise SourceError(
            f"{directory.url}/{scores_table.ANOMALY_MAPS} lacks maps of group {group!r} that {scores_table.SCORES} "
            "names. Score the images again with --anomaly-maps."
        )
    return _stored_maps(array)


def _read_scores(directory: Directory) -> pd.DataFrame:
    needed = ("image_path", "group", "anomaly_score", "is_anomalous")
    scores = read_table(directory, scores_table.SCORES, advice="Score the images again.")
    missing = [name for name in needed if name not in scores.columns]
    if missing:
        raise SourceError(
            f"{directory.url}/{scores_table.SCORES} has no column {missing[0]!r}, so it is not what `paire score` "
            "writes. Score the images again."
        )
    return scores


def evaluate_test(scores: pd.DataFrame, maps: AnomalyMaps, labels: str, *, masks: str | None = None) -> Evaluation:
    """Compare the scores of a test set with the truth.

    The clean images of a test set are those that exceed no threshold of the map (``is_anomalous`` is false).

    Parameters
    ----------
    scores
        With the columns of ``schemas.tables.scores``. Images without a score are left out and count as unreadable.
    maps
        Takes the position of a row of ``scores``; returns that image's distances (rows, columns) float64, or None if
        they are unknown. Called twice for each image with a known mask, and never without masks.
    labels, masks
        As for `evaluate_run`.

    Raises
    ------
    SourceError
        When the labels or masks cannot be read, or no label matches an image.
    """
    is_scored = scores["anomaly_score"].notna()
    inputs = pd.DataFrame(
        {
            "image_path": scores["image_path"].array,
            "file_name": scores["image_path"].array,
            "group": scores["group"].array,
            "score": scores["anomaly_score"].astype(float).array,
            "is_clean": scores["is_anomalous"].eq(False).fillna(False).array,
            "is_duplicate": False,
            "left_out": np.where(is_scored, "", UNREADABLE),
            "row": np.arange(len(scores)),
            "width": scores["width"].array if "width" in scores.columns else None,
            "height": scores["height"].array if "height" in scores.columns else None,
        }
    )
    return evaluate_comparison(compare(inputs, labels, masks), lambda _: maps, lambda _: None)


def _stored_maps(array: Any | None) -> AnomalyMaps:
    """Return the maps in an array. One block of chunks is in memory, so ask in the order of rows."""
    if array is None:
        return lambda _: None
    block_rows = array.chunks[0]

    @lru_cache(maxsize=1)
    def block(number: int) -> NDArray[np.float64]:
        return read_stored(array, slice(number * block_rows, (number + 1) * block_rows))

    def stored_map(row: int) -> NDArray[np.float64] | None:
        number, place = divmod(row, block_rows)
        anomaly_map: NDArray[np.float64] = block(number)[place]
        return None if np.isnan(anomaly_map).any() else anomaly_map

    return stored_map


def _stored_clean_sets(run: Directory, group: str) -> Mask | None:
    array = _group_array(run, group, layout.CLEAN_SETS)
    return None if array is None else read_stored(array).astype(bool)


def _group_array(run: Directory, group: str, name: str) -> Any | None:
    return _node_array(run / layout.DISTANCES / storage_name(group), name)


def _node_array(directory: Directory, name: str) -> Any | None:
    """Return an array of a Zarr group, or None if it does not exist."""
    try:
        node = directory.zarr_group("")
    except FileNotFoundError:
        return None
    return node.get(name)

"""A judged run, opened to be judged again: what is known of its images, and whether its features are complete.

A run that the breakdown guard does not trust is judged too: everything but ``_SUCCESS`` is written. Nobody may train on
it, but a person may look at it or judge its features with other options, and is warned.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd
import zarr

from pipeline.run_directory.record import read_record
from pipeline.run_directory.tables import read_ledger, read_table
from schemas.config import Config, parse_config
from schemas.errors import ConfigError, SourceError
from schemas.names import storage_name
from schemas.records import run as layout
from schemas.records.image import ImageOutcome
from schemas.records.ledger import stopping_sentences
from schemas.records.run import RunRecord
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from schemas.tables import catalog as catalog_table
from schemas.tables import manifest as manifest_table
from schemas.tables.catalog import catalog_digest
from schemas.tables.manifest import UNREADABLE
from workers.map.reader import GaussianMap
from workers.storage.directory import Directory

logger = logging.getLogger("paire")


class OptionChange(NamedTuple):
    """An option whose wanted value is not the one that a run was made with."""

    name: str  # ``section.key``
    was: Any
    wanted: Any


@dataclass(frozen=True)
class FinishedRun:
    """A run that has judged its images: published, or found untrustworthy."""

    directory: Directory
    record: RunRecord
    config: Config

    @classmethod
    def open(cls, location: str) -> "FinishedRun":
        """Open a run directory, path or URL.

        Raises
        ------
        SourceError
            If there is no judged run, or its record cannot be read.
        ConfigError
            If another version of paire wrote its configuration.
        """
        directory = Directory.at(location)
        try:
            require_judged(directory)
        except ValueError as error:
            raise SourceError(f"run {location!r}: {error}. Give the directory of a finished run.") from error
        try:
            record = read_record(directory)
            text = directory.read(layout.CONFIG).decode()
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{directory.url} is not a readable run ({error}). Give the directory of a finished run."
            ) from error
        try:
            return cls(directory, record, parse_config(text, origin=f"{directory.url}/{layout.CONFIG}"))
        except ConfigError as error:
            raise ConfigError(
                f"{directory.url}/{layout.CONFIG} was written by another version of paire: {error} Use the version "
                f"that made the run ({record.versions.get('paire', 'unknown')}), or clean the archive again."
            ) from error

    @property
    def features(self) -> Directory:
        """The feature store."""
        return self.directory / layout.FEATURES

    @cached_property
    def catalog(self) -> pd.DataFrame:
        """The inputs, see ``schemas.tables.catalog``; raises SourceError if the record has another digest."""
        catalog = read_table(self.directory, layout.CATALOG, catalog_table.COLUMNS)
        catalog["row"] = catalog["row"].astype("Int64")
        if catalog_digest(catalog) != self.record.catalog_digest:
            raise SourceError(
                f"{self.directory.url}/{layout.CATALOG} is not the catalog that the run was made of: "
                f"{layout.RUN_RECORD} has another digest. Restore it, or clean the archive again."
            )
        return catalog

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """The manifest."""
        return read_table(self.directory, layout.MANIFEST, manifest_table.COLUMNS)

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """The counts of decisions, see ``schemas.records.ledger``."""
        return read_ledger(self.directory)

    @cached_property
    def outcomes(self) -> dict[str, list[ImageOutcome]]:
        """What extraction reported of each image: group to outcomes in row order."""
        return read_outcomes(self.manifest, self.catalog)

    @cached_property
    def geometry(self) -> FeatureGeometry:
        """The grid of positions of the features, as the map states it; raises GaussianMapError without a map."""
        return self.gaussian_map.description.geometry

    @cached_property
    def gaussian_map(self) -> GaussianMap:
        """The run's map, published or not; raises GaussianMapError if it is missing or incomplete."""
        return GaussianMap.open((self.directory / layout.MODEL).url, published_only=False)

    def changed_options(self, wanted: Config, sections: Collection[str]) -> Iterator[OptionChange]:
        """Yield the options of these sections that ``wanted`` sets to another value than the run's.

        Options that ``wanted`` leaves at their defaults do not count.
        """
        for section in sections:
            mine, theirs = getattr(self.config, section), getattr(wanted, section)
            for key in sorted(theirs.model_fields_set):
                if getattr(mine, key) != getattr(theirs, key):
                    yield OptionChange(f"{section}.{key}", getattr(mine, key), getattr(theirs, key))

    def require_features(self) -> None:
        """Raise SourceError unless all features of every group are stored, in the shape that catalog and map give."""
        try:
            store = self.directory.zarr_group(layout.FEATURES)
        except (FileNotFoundError, ValueError) as error:
            raise SourceError(
                f"{self.features.url} is missing, and nothing can be judged without features. Restore it, or make a "
                "new run with `paire clean`."
            ) from error
        for group, outcomes in self.outcomes.items():
            problem = self._problem(store, group, outcomes)
            if problem:
                raise SourceError(
                    f"{self.features.url}: the features of group {group!r} {problem}. Restore them, or make a new run "
                    "with `paire clean`."
                )

    def _problem(self, store: zarr.Group, group: str, outcomes: list[ImageOutcome]) -> str:
        """Say what is wrong with one group's features; empty when nothing is."""
        try:
            array = store.get(storage_name(group))
        except ValueError as error:  # not a format that Zarr reads
            return f"cannot be read ({type(error).__name__}: {error})"
        if not isinstance(array, zarr.Array):
            return "are missing"
        expected = self.geometry.array_shape(len(outcomes))
        if array.shape != expected:
            return f"have shape {array.shape}, but its images and the Gaussian map say {expected}"
        # Zarr reads a missing chunk as zeros; it writes every chunk that holds anything else.
        readable = {outcome.row // CHUNK_IMAGES for outcome in outcomes if outcome.is_readable}
        chunks = len(readable) * self.geometry.rows
        if array.nchunks_initialized < chunks:
            return f"are incomplete: {array.nchunks_initialized} chunks are stored, at least {chunks} expected"
        return ""


def require_judged(run: Directory) -> None:
    """Raise SourceError unless a run is published or found untrustworthy."""
    if not run.exists(layout.SUCCESS) and not is_untrustworthy(run):
        raise SourceError(
            f"{run.url} is not a finished run: {layout.SUCCESS} is missing. Finish it with the command that began it, "
            "or give another run directory."
        )


def is_untrustworthy(run: Directory) -> bool:
    """Return whether the breakdown guard refused to publish a run; everything but ``_SUCCESS`` is written then."""
    if run.exists(layout.SUCCESS):
        return False
    try:
        return read_record(run).state == layout.UNTRUSTWORTHY
    except (OSError, ValueError):
        return False


def warn_if_untrustworthy(run: Directory) -> None:
    """Log why the breakdown guard does not trust a run; raise SourceError if its ledger gives no reason."""
    if not is_untrustworthy(run):
        return
    ledger = read_ledger(run)
    found = stopping_sentences(ledger)
    if not found:
        raise SourceError(
            f"{run.url}/{layout.LEDGER} gives no reason why the run is untrustworthy, but {layout.RUN_RECORD} says "
            "that it is. Restore both, or clean the archive again."
        )
    group, sentences = next(iter(found.items()))
    logger.warning(
        "%s is not published: %d of %d groups are untrustworthy; group %r: %s",
        run.url,
        len(found),
        len(ledger["groups"]),
        group,
        sentences[0],
    )


def read_outcomes(manifest: pd.DataFrame, catalog: pd.DataFrame) -> dict[str, list[ImageOutcome]]:
    """Return what extraction reported, from the manifest that was built of it: group to outcomes in row order.

    Only unreadable images keep a reason: the reasons of other decisions come from judging.

    Raises
    ------
    SourceError
        If a candidate has no row in the manifest, or several.
    """
    candidates = catalog.loc[catalog["row"].notna(), ["sample_id", "group", "row"]]
    rows = candidates.merge(manifest.drop(columns="group"), on="sample_id")
    if len(rows) != len(candidates) or rows["sample_id"].duplicated().any():
        raise SourceError(
            f"the manifest has {len(rows)} rows for the catalog's {len(candidates)} candidates; expected one for each. "
            "One of the two files was changed after publication: restore both, or clean the archive again."
        )
    return {
        str(group): [_outcome(row) for row in part.sort_values("row").to_dict("records")]
        for group, part in rows.groupby("group", sort=True)
    }


def _outcome(row: Mapping[Any, Any]) -> ImageOutcome:
    return ImageOutcome(
        row=int(row["row"]),
        content_sha256=row["content_sha256"] if pd.notna(row["content_sha256"]) else "",
        byte_count=_count_or_none(row["bytes"]),
        width=_count_or_none(row["width"]),
        height=_count_or_none(row["height"]),
        reason=row["reason"] if row["decision"] == UNREADABLE else "",
    )


def _count_or_none(value: float | None) -> int | None:
    return None if value is None or pd.isna(value) else int(value)

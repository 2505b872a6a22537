"""The first stage: list every input of a source, give it a stable id, a group and a row."""

import posixpath
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from schemas.config import InputConfig
from schemas.credentials import has_credentials, redacted
from schemas.errors import ConfigError, SourceError
from schemas.names import DEFAULT_GROUP, sample_id
from schemas.tables.catalog import COLUMNS
from workers.sources.index_file import IndexFormat, folder_of, read_index, resolve
from workers.sources.listing import list_files
from workers.sources.roots import Roots
from workers.storage.directory import is_url, split_location

INDEX_EXTENSIONS = (".csv", ".parquet")

_INDEX = IndexFormat(
    kind="index",
    required=("image_path",),
    optional=("group",),
    advice="Write a UTF-8 CSV or a parquet file whose column 'image_path' holds the paths; an optional column 'group' "
    "names the product group.",
)


class _Listed(NamedTuple):
    """One input as the source names it; ``group`` is None if the source names none."""

    file_name: str
    image_path: str
    group: str | None = None
    reason: str = ""


def build_catalog(source: str, inputs: InputConfig) -> pd.DataFrame:
    """List a source's inputs, sorted by group and file name.

    Parameters
    ----------
    source
        A folder or fsspec URL, listed recursively, or a ``.csv`` or ``.parquet`` index with ``image_path`` and
        optionally ``group``, whose paths are relative to the index.
    inputs
        Extensions, grouping, and where images may lie.

    Returns
    -------
    pandas.DataFrame
        With the columns of ``schemas.tables.catalog``, one row per input, skipped ones included.

    Raises
    ------
    SourceError
        When the source is missing, cannot be read, is empty or malformed.
    ConfigError
        When the path template is malformed.
    """
    fs, folder = _located(source)
    is_index = source.lower().endswith(INDEX_EXTENSIONS)
    roots = Roots(folder_of(source) if is_index else source, inputs.roots)
    template = _compile_template(inputs.group_by) if inputs.group_by else None
    seen: set[str] = set()
    records = []
    rows = _from_index(source, roots) if is_index else _from_folder(source, fs, folder, inputs.extensions, roots)
    for number, listed in enumerate(rows):
        group, reason, identity = listed.group, listed.reason, listed.file_name
        if template is not None:
            group = _group_of(listed.file_name, template)
            if group is None and not reason:
                reason = f"its path does not match input.group_by = {inputs.group_by!r}"
        if not listed.image_path or identity in seen:
            reason = reason or "listed more than once in the index"
            identity = f"{identity}\0{number}"  # no file name holds a NUL, so this is never the id of a file
        seen.add(identity)
        records.append((sample_id(identity), listed.image_path, listed.file_name, group or DEFAULT_GROUP, reason))
    if not records:
        raise SourceError(f"{source} holds no files. Give a folder of images or an index that lists some.")
    catalog = pd.DataFrame(records, columns=["sample_id", "image_path", "file_name", "group", "reason"])
    if (catalog["reason"] != "").all():
        raise SourceError(
            f"none of the {len(catalog)} files of {source} is an input; the first: {catalog['file_name'][0]!r}: "
            f"{catalog['reason'][0]}. Check the source, input.extensions, input.group_by and input.roots."
        )
    catalog = catalog.sort_values(["group", "file_name", "sample_id"], ignore_index=True)
    candidates = catalog["reason"] == ""
    catalog["row"] = candidates.groupby(catalog["group"]).cumsum().sub(1).where(candidates).astype("Int64")
    return catalog[[column.name for column in COLUMNS]]


def _from_folder(source: str, fs: Any, folder: str, extensions: tuple[str, ...], roots: Roots) -> Iterator[_Listed]:
    try:
        is_there = fs.exists(folder)
    except PermissionError as error:
        raise SourceError(
            f"access to source {source!r} is denied. Grant it, or use other credentials (storage.profile)."
        ) from error
    if not is_there:
        raise SourceError(
            f"source {source!r} does not exist. Give a folder, an fsspec URL, or a .csv or .parquet index."
        )
    if fs.isfile(folder):
        raise SourceError(
            f"source {source!r} is a file. Give a folder of images, or an index ending in .csv or .parquet."
        )
    wanted = {f".{extension.lower().lstrip('.')}" for extension in extensions}
    for file in list_files(source):
        reason, extension = file.fault, posixpath.splitext(file.name)[1].lower()
        if not reason and extension not in wanted:
            reason = f"not an image file by its extension {extension!r}"
        if not reason and file.may_lead_away:
            reason = roots.departure(file.location)
        yield _Listed(file.name, file.location, reason=reason)


def _from_index(source: str, roots: Roots) -> Iterator[_Listed]:
    frame, folder = read_index(source, _INDEX), folder_of(source)
    groups = frame["group"] if "group" in frame.columns else [None] * len(frame)
    for position, (path, group) in enumerate(zip(frame["image_path"], groups, strict=True)):
        if not isinstance(path, str) or not path:
            name = f"(index row {position})"
            yield _Listed(name, "", _text_or_none(group), reason="image_path is empty")
            continue
        if has_credentials(path):
            raise SourceError(
                f"row {position} of the index {source!r} has credentials in its image_path {redacted(path)!r}, which "
                "the manifest would show to everybody. Use URLs without credentials, like s3://bucket/key."
            )
        file_name = path if is_url(path) else posixpath.normpath(path)
        location = resolve(folder, path)
        yield _Listed(file_name, location, _text_or_none(group), roots.departure(location))


def _located(source: str) -> tuple[Any, str]:
    try:
        return split_location(source)
    except ValueError as error:
        raise SourceError(
            f"source {source!r}: {error}. Give a folder, an fsspec URL like s3://bucket/prefix, or an index."
        ) from error


def _text_or_none(value: object) -> str | None:
    return str(value) if value is not None and value == value and str(value) else None


def _compile_template(template: str) -> re.Pattern[str]:
    """Turn ``{line}/{camera}/**`` into a pattern with a named group for each part.

    ``{name}`` and ``*`` match inside one path component, ``**`` across them.
    """
    pieces = re.split(r"(\{[^{}]*\}|\*\*/?|\*)", template)
    names = [piece[1:-1] for piece in pieces if piece.startswith("{")]
    literals = "".join(piece for piece in pieces if not piece.startswith("{"))
    if not names or len(set(names)) != len(names) or not all(map(str.isidentifier, names)) or set(literals) & set("{}"):
        raise ConfigError(
            f"input.group_by = {template!r} needs one or more different names in braces, like '{{line}}/{{camera}}/**'."
        )

    def translate(piece: str) -> str:
        if piece.startswith("{"):
            return f"(?P<{piece[1:-1]}>[^/]+)"
        return {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*"}.get(piece, re.escape(piece))

    return re.compile("".join(map(translate, pieces)), re.DOTALL)


def _group_of(file_name: str, template: re.Pattern[str]) -> str | None:
    match = template.fullmatch(file_name)
    return "/".join(match.groups()) if match else None

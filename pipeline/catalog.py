"""The first stage: list every input of a source, give it a stable id, a group and a row."""

import csv
import os
import posixpath
import re
from collections.abc import Iterator
from io import BytesIO, StringIO
from typing import Any, NamedTuple

import pandas as pd

from schemas.catalog import COLUMNS
from schemas.config import InputConfig
from schemas.errors import ConfigError, SourceError
from schemas.names import DEFAULT_GROUP, sample_id
from workers.storage import is_url, split_location

INDEX_EXTENSIONS = (".csv", ".parquet")


class _Listed(NamedTuple):
    """One input as the source names it; ``group`` None means that the source does not say."""

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
        Extensions and grouping.

    Returns
    -------
    pandas.DataFrame
        With the columns of ``schemas.catalog``, one row per input, skipped ones included.

    Raises
    ------
    SourceError
        When the source is missing, can not be read, is empty or malformed.
    ConfigError
        When the path template is malformed.
    """
    is_index = source.lower().endswith(INDEX_EXTENSIONS)
    template = _compile_template(inputs.group_by) if inputs.group_by else None
    seen: set[str] = set()
    records = []
    for number, listed in enumerate(_from_index(source) if is_index else _from_folder(source, inputs.extensions)):
        group, reason, identity = listed.group, listed.reason, listed.file_name
        if template is not None:
            group = _group_of(listed.file_name, template)
            if group is None and not reason:
                reason = f"its path does not match input.group_by = {inputs.group_by!r}"
        if not listed.image_path or identity in seen:
            reason = reason or "listed more than once in the index"
            identity = f"{identity}\0{number}"  # no file's name holds a NUL: the row has an id that is no file's
        seen.add(identity)
        records.append((sample_id(identity), listed.image_path, listed.file_name, group or DEFAULT_GROUP, reason))
    if not records:
        raise SourceError(f"{source} holds no files. Give a folder of images or an index that lists some.")
    catalog = pd.DataFrame(records, columns=["sample_id", "image_path", "file_name", "group", "reason"])
    if (catalog["reason"] != "").all():
        raise SourceError(
            f"none of the {len(catalog)} files of {source} is an input; the first: {catalog['file_name'][0]!r}: "
            f"{catalog['reason'][0]}. Check the source, input.extensions and input.group_by."
        )
    catalog = catalog.sort_values(["group", "file_name", "sample_id"], ignore_index=True)
    candidates = catalog["reason"] == ""
    catalog["row"] = candidates.groupby(catalog["group"]).cumsum().sub(1).where(candidates).astype("Int64")
    return catalog[[column.name for column in COLUMNS]]


def _from_folder(source: str, extensions: tuple[str, ...]) -> Iterator[_Listed]:
    fs, root = _located(source)
    if not fs.exists(root):
        raise SourceError(
            f"source {source!r} does not exist. Give a folder, an fsspec URL, or a .csv or .parquet index."
        )
    if fs.isfile(root):
        raise SourceError(
            f"source {source!r} is a file. Give a folder of images, or an index ending in .csv or .parquet."
        )
    wanted = {f".{extension.lower().lstrip('.')}" for extension in extensions}
    for path, fault in _remote_files(fs, root) if is_url(source) else _local_files(root):
        file_name = posixpath.relpath(path, root)
        image_path = fs.unstrip_protocol(path) if is_url(source) else path
        extension = posixpath.splitext(file_name)[1].lower()
        if not _is_text(file_name):
            readable = file_name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            clean_path = image_path.encode(errors="surrogateescape").decode(errors="backslashreplace")
            yield _Listed(readable, clean_path, reason="its file name is not valid UTF-8; rename it")
        elif fault:
            yield _Listed(file_name, image_path, reason=fault)
        elif extension in wanted:
            yield _Listed(file_name, image_path)
        else:
            yield _Listed(file_name, image_path, reason=f"not an image file by its extension {extension!r}")


def _remote_files(fs: Any, root: str) -> Iterator[tuple[str, str]]:
    """Yield the path of every file of a URL, and nothing against it."""
    for path in sorted(fs.find(root)):
        yield path, ""


def _local_files(root: str) -> Iterator[tuple[str, str]]:
    """Yield the path of everything in a folder that is no folder, and why it is no file; empty for a file."""
    found, folders = [], [root]
    while folders:
        for entry in _entries(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_dir():
                found.append((entry.path, "a link to a folder, which is not followed"))
            elif entry.is_file() or entry.is_symlink():  # a broken link too: reading it says so
                found.append((entry.path, ""))
            else:
                found.append((entry.path, "neither a file nor a folder, but a pipe, socket or device"))
    yield from sorted(found)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """List a folder, or refuse the archive: better none than a smaller one."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise SourceError(
            f"{folder!r} can not be listed ({type(error).__name__}), so images would be lost. Grant access, or give an "
            "index of the images."
        ) from error


def _from_index(source: str) -> Iterator[_Listed]:
    frame = _read_index(source)
    if "image_path" not in frame.columns:
        raise SourceError(
            f"the index {source!r} has columns {', '.join(map(repr, frame.columns))} but no 'image_path'. "
            "Name the column of paths 'image_path'; an optional column 'group' names the product group."
        )
    base = posixpath.dirname(split_location(source)[1] if not is_url(source) else source)
    groups = frame["group"] if "group" in frame.columns else [None] * len(frame)
    for position, (path, group) in enumerate(zip(frame["image_path"], groups, strict=True)):
        if not isinstance(path, str) or not path:
            name = f"(index row {position})"
            yield _Listed(name, "", _text_or_none(group), reason="image_path is empty")
            continue
        file_name = path if is_url(path) else posixpath.normpath(path)
        image_path = path if is_url(path) else posixpath.normpath(posixpath.join(base, path))
        if is_url(base) and not is_url(path):
            image_path = f"{base}/{posixpath.normpath(path)}"
        yield _Listed(file_name, image_path, _text_or_none(group))


def _read_index(source: str) -> pd.DataFrame:
    fs, path = _located(source)
    try:
        content: bytes = fs.cat_file(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"the index {source!r} can not be read ({type(error).__name__}). Check the path.") from error
    try:
        return _parse_csv(content) if source.lower().endswith(".csv") else pd.read_parquet(BytesIO(content))
    except (ValueError, OSError, csv.Error) as error:
        detail = " ".join(str(error).split())
        raise SourceError(
            f"the index {source!r} is not a readable table ({detail}). Write a UTF-8 CSV or a parquet file with a "
            "column 'image_path'."
        ) from error


def _parse_csv(content: bytes) -> pd.DataFrame:
    """Parse a CSV strictly and as text: a file or a group may well be called 'NA' or '007'."""
    rows = csv.reader(StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    header = next(rows, None)
    if header is None:
        raise ValueError("it is empty")
    records = []
    for row in rows:
        if len(row) > len(header):
            raise ValueError(f"line {rows.line_num} has {len(row)} fields, the header {len(header)}")
        if row:
            records.append(row + [""] * (len(header) - len(row)))
    return pd.DataFrame(records, columns=header, dtype="str")


def _located(source: str) -> tuple[Any, str]:
    try:
        return split_location(source)
    except ValueError as error:
        raise SourceError(
            f"source {source!r}: {error}. Give a folder, an fsspec URL like s3://bucket/prefix, or an index."
        ) from error


def _text_or_none(value: object) -> str | None:
    return str(value) if value is not None and value == value and str(value) else None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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

"""List every file in a folder, or refuse the folder.

An archive, a labelled set or a folder of masks must not become smaller because a folder in it cannot be read, so all
code that lists files uses this file.
"""

import os
import posixpath
from collections.abc import Iterator
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from schemas.errors import SourceError
from workers.storage.directory import is_url, split_location

NO_FILE = "neither a file nor a folder, but a pipe, socket or device"


class ListedFile(NamedTuple):
    """Anything in a folder that is not a folder itself."""

    name: str  # path relative to the folder
    location: str  # absolute path or URL
    fault: str = ""  # why it cannot be used as a file; empty for a file
    may_lead_away: bool = False  # it is a link, or the file system does not tell


def list_files(folder: str) -> list[ListedFile]:
    """List everything in a folder (path or URL) and below it that is not a folder, sorted by path.

    A link to a file counts as a file, even a broken one: reading it will fail. A link to a folder is not followed,
    because it may form a cycle. A name that is not text has a fault, and its bytes are escaped.

    Raises `SourceError` if the folder or one in it cannot be listed, and `ValueError` if the protocol cannot be used.
    """
    fs, root = split_location(folder)
    found = _remote_files(fs, root) if is_url(folder) else _local_files(root)
    return [_as_text(entry._replace(name=_below(root, entry.name))) for entry in found]


def list_sound_files(folder: str) -> list[ListedFile]:
    """List a folder like `list_files`, but raise `SourceError` if any entry has a fault."""
    files = list_files(folder)
    for file in files:
        if file.fault:
            raise SourceError(
                f"{file.name!r} in {folder!r} cannot be used: {file.fault}. Files would be missing, so correct or "
                "remove it."
            )
    return files


def _below(root: str, path: str) -> str:
    """Return a path relative to a folder; keys of objects keep every character, because 'a//b' is not 'a/b'."""
    prefix = f"{root.rstrip('/')}/"
    return path.removeprefix(prefix) if path.startswith(prefix) else posixpath.relpath(path, root)


def _as_text(file: ListedFile) -> ListedFile:
    """Return an entry whose name and location can be written to any file."""
    try:
        file.name.encode()
    except UnicodeEncodeError:
        return ListedFile(_escaped(file.name), _escaped(file.location), "its file name is not valid UTF-8; rename it")
    return file


def _escaped(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _remote_files(fs: Any, root: str) -> Iterator[ListedFile]:
    """Yield every file below a URL, without the empty objects that storage consoles create for folders."""
    try:
        paths = sorted(path for path in fs.find(root) if not path.endswith("/"))
    except (OSError, ValueError) as error:
        raise _refusal(fs.unstrip_protocol(root), error) from error
    is_disk = isinstance(fs, LocalFileSystem)  # its `find` follows links to folders
    for path in paths:
        yield ListedFile(path, fs.unstrip_protocol(path), may_lead_away=is_disk)


def _local_files(root: str) -> Iterator[ListedFile]:
    """Yield everything below a folder that is not a folder, sorted by path."""
    found: list[ListedFile] = []
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            raise _refusal(folder, error) from error
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_dir():
                found.append(ListedFile(entry.path, entry.path, "a link to a folder, which is not followed"))
            elif entry.is_file() or entry.is_symlink():
                found.append(ListedFile(entry.path, entry.path, may_lead_away=entry.is_symlink()))
            else:
                found.append(ListedFile(entry.path, entry.path, NO_FILE))
    yield from sorted(found)


def _refusal(folder: str, error: Exception) -> SourceError:
    return SourceError(
        f"{folder!r} cannot be listed ({type(error).__name__}), so files would be missing. Check the path and grant "
        "access to it, or name the files in an index or labels file instead."
    )

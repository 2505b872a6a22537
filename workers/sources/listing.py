"""Everything in a folder that is no folder: listed whole, or refused.

An archive, a labelled set and a folder of masks must not become smaller because a folder in them may not be read, so
whoever lists files lists them here.
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
    """Something in a folder that is no folder.

    Attributes
    ----------
    name
        Path relative to the folder.
    location
        Absolute path or URL.
    fault
        Why it can not be taken as a file, in words; empty for a file.
    may_lead_away
        Whether it lies elsewhere than its name says, or may: it is a link, or what lists it does not tell.
    """

    name: str
    location: str
    fault: str = ""
    may_lead_away: bool = False


def list_files(folder: str) -> list[ListedFile]:
    """List everything in a folder and below it that is no folder, sorted by path.

    A link to a file is a file, and so is one to nowhere, which reading will say. A link to a folder is not followed,
    because it may lead back. A name that is not text has a fault, and its bytes escaped.

    Parameters
    ----------
    folder
        Path or URL.

    Raises
    ------
    SourceError
        When the folder, or one in it, can not be listed.
    ValueError
        When the location's protocol can not be used.
    """
    fs, root = split_location(folder)
    found = _remote_files(fs, root) if is_url(folder) else _local_files(root)
    return [_as_text(entry._replace(name=_below(root, entry.name))) for entry in found]


def list_sound_files(folder: str) -> list[ListedFile]:
    """List a folder as `list_files`, and refuse it when something in it is no file."""
    files = list_files(folder)
    for file in files:
        if file.fault:
            raise SourceError(
                f"{file.name!r} in {folder!r} can not be taken: {file.fault}. Files would be missing: correct or "
                "remove it."
            )
    return files


def _below(root: str, path: str) -> str:
    """Return a path relative to a folder; of an object's key every character, for 'a//b' is another one than 'a/b'."""
    prefix = f"{root.rstrip('/')}/"
    return path.removeprefix(prefix) if path.startswith(prefix) else posixpath.relpath(path, root)


def _as_text(file: ListedFile) -> ListedFile:
    """Return an entry whose texts can be written anywhere."""
    try:
        file.name.encode()
    except UnicodeEncodeError:
        return ListedFile(_escaped(file.name), _escaped(file.location), "its file name is not valid UTF-8; rename it")
    return file


def _escaped(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _remote_files(fs: Any, root: str) -> Iterator[ListedFile]:
    """Yield every file of a URL, by its path there, and nothing against it.

    Empty objects whose name ends in a slash stand for folders, as storage consoles make them.
    """
    try:
        paths = sorted(path for path in fs.find(root) if not path.endswith("/"))
    except (OSError, ValueError) as error:
        raise _refusal(fs.unstrip_protocol(root), error) from error
    is_disk = isinstance(fs, LocalFileSystem)  # which follows links to folders
    for path in paths:
        yield ListedFile(path, fs.unstrip_protocol(path), may_lead_away=is_disk)


def _local_files(root: str) -> Iterator[ListedFile]:
    """Yield everything in a folder that is no folder, by its path, and why it is no file."""
    found: list[ListedFile] = []
    folders = [root]
    while folders:
        for entry in _entries(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_dir():
                found.append(ListedFile(entry.path, entry.path, "a link to a folder, which is not followed"))
            elif entry.is_file() or entry.is_symlink():
                found.append(ListedFile(entry.path, entry.path, may_lead_away=entry.is_symlink()))
            else:
                found.append(ListedFile(entry.path, entry.path, NO_FILE))
    yield from sorted(found)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise _refusal(folder, error) from error


def _refusal(folder: str, error: Exception) -> SourceError:
    return SourceError(
        f"{folder!r} can not be listed ({type(error).__name__}), so files would be missing. Check the path and grant "
        "access to it, or name the files in an index or labels file instead."
    )

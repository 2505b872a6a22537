"""Where images may lie: the folders and URLs that a source must stay in.

An index may name whatever a worker can read, and an archive may hold links that lead out of it: another customer's
images, a device that never ends, an address inside the network. Whoever writes an archive need not be whoever runs the
command, so what leaves the roots is not opened.
"""

import os
import stat
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import unquote

from schemas.errors import ConfigError
from workers.sources.listing import NO_FILE
from workers.storage.directory import is_url, split_location

ANYWHERE = "any"

# Folders that are remembered: inputs come folder by folder.
_FOLDERS = 65_536

_ADVICE = "outside of the source's folder and of input.roots; to allow it, set input.roots to a folder that holds it"
OUTSIDE = f"lies {_ADVICE}"
LINK_OUTSIDE = f"a link to a file {_ADVICE}"

_LOCAL_PROTOCOLS = ("file", "local")
_WEB_PROTOCOLS = ("http", "https")
_SAME_PROTOCOL = {"s3a": "s3"}

# What can be opened without harm; 0 is what is not there, and a link that remains is one to itself.
_READABLE = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, 0)

Parts = tuple[str, ...]


class Roots:
    """The folders and URLs that images may lie in.

    Parameters
    ----------
    home
        The source's own folder or URL.
    others
        Folders and URLs besides it; ``any`` allows everything.

    Raises
    ------
    ConfigError
        When one of the others is no folder, or a URL that can not be used.
    """

    def __init__(self, home: str, others: Collection[str] = ()) -> None:
        self._anywhere = ANYWHERE in others
        self._roots = [_parts(home), *(_checked_parts(other) for other in others if other != ANYWHERE)]
        # The links of a folder are followed once, not once for each of its files.
        self._holds_folder = lru_cache(_FOLDERS)(lambda folder: self._holds(_local_parts(folder)))

    def departure(self, location: str) -> str:
        """Return why a file is not to be opened, in words; empty where it may be.

        A local file lies where its links lead. What is not there departs from nothing: reading it will say so.

        Parameters
        ----------
        location
            Absolute path or URL.
        """
        if not _is_local(location):
            return "" if self._holds(_url_parts(location)) else OUTSIDE
        path = split_location(location)[1] if is_url(location) else os.path.normpath(location)
        reason = OUTSIDE
        mode = _mode(path)
        if stat.S_ISLNK(mode):
            path, reason = os.path.realpath(path), LINK_OUTSIDE
            mode = _mode(path)
        try:
            is_inside = self._holds_folder(os.path.dirname(path))  # noqa: PTH120 - pathlib takes long for millions
        except ValueError:  # a null byte, or what the file system's encoding has no bytes for
            return ""
        if not is_inside:
            return reason
        return "" if stat.S_IFMT(mode) in _READABLE else NO_FILE

    def _holds(self, parts: Parts) -> bool:
        return self._anywhere or (".." not in parts and any(parts[: len(root)] == root for root in self._roots))


def _checked_parts(location: str) -> Parts:
    try:
        fs, path = split_location(location)
    except ValueError as error:
        raise ConfigError(f"input.roots: {location!r}: {error}. Give folders, or URLs like s3://bucket.") from error
    if _is_local(location) and not fs.isdir(path):
        raise ConfigError(
            f"input.roots: {location!r} is no folder. Give folders or URLs that images may lie in, or {ANYWHERE!r} for "
            "no limit."
        )
    return _parts(location)


def _parts(location: str) -> Parts:
    return _local_parts(split_location(location)[1]) if _is_local(location) else _url_parts(location)


def _local_parts(folder: str) -> Parts:
    """Return the parts of an absolute path, all of whose links are followed."""
    return ("file", *filter(None, os.path.realpath(folder).split("/")))


def _url_parts(url: str) -> Parts:
    """Return the parts of a URL as its server may read it."""
    protocol, rest = _protocol(url), url.partition("://")[2]
    if protocol in _WEB_PROTOCOLS:
        rest = unquote(rest).replace("\\", "/")
    rest = rest.strip("/")
    return (_SAME_PROTOCOL.get(protocol, protocol), *(rest.split("/") if rest else ()))


def _is_local(location: str) -> bool:
    return not is_url(location) or _protocol(location) in _LOCAL_PROTOCOLS


def _protocol(url: str) -> str:
    return url.partition("://")[0].lower()


def _mode(path: str) -> int:
    """Return the mode of what is at a path, itself a link or not; 0 where that can not be said."""
    try:
        return os.lstat(path).st_mode
    except (OSError, ValueError):
        return 0

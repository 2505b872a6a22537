"""The folders and URLs that the images of a source must lie in.

An index can name anything that a worker can read, and an archive can hold links that lead out of it: to another
customer's images, to a device that never ends, to an address inside the network. The writer of an archive may be a
stranger, so workers open nothing outside these roots.
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

# Folders to remember; inputs arrive folder by folder.
_FOLDERS = 65_536

_ADVICE = "outside the source's folder and input.roots; to allow it, set input.roots to a folder that holds it"
OUTSIDE = f"lies {_ADVICE}"
LINK_OUTSIDE = f"a link to a file {_ADVICE}"

_LOCAL_PROTOCOLS = ("file", "local")
_WEB_PROTOCOLS = ("http", "https")
_SAME_PROTOCOL = {"s3a": "s3"}

# These can be opened without harm. 0 means that nothing exists there; a link that is still a link points to itself.
_READABLE = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, 0)

Parts = tuple[str, ...]


class Roots:
    """The folders and URLs that images may lie in: the source's own, and others; ``any`` allows everything.

    Raises `ConfigError` if one of the others is not a folder, or a URL that cannot be used.
    """

    def __init__(self, home: str, others: Collection[str] = ()) -> None:
        self._anywhere = ANYWHERE in others
        self._roots = [_parts(home), *(_checked_parts(other) for other in others if other != ANYWHERE)]
        # Resolves the links of a folder once, not once per file.
        self._holds_folder = lru_cache(_FOLDERS)(lambda folder: self._holds(_local_parts(folder)))

    def departure(self, location: str) -> str:
        """Return why a file (absolute path or URL) must not be opened; empty if it may be.

        A local file counts as lying where its links lead. A missing file inside the roots has no reason against it:
        reading it will fail.
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
            is_inside = self._holds_folder(os.path.dirname(path))  # noqa: PTH120 - pathlib is slow for millions
        except ValueError:  # a null byte, or a character that the file system cannot encode
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
            f"input.roots: {location!r} is not a folder. Give folders or URLs that images may lie in, or {ANYWHERE!r} "
            "for no limit."
        )
    return _parts(location)


def _parts(location: str) -> Parts:
    return _local_parts(split_location(location)[1]) if _is_local(location) else _url_parts(location)


def _local_parts(folder: str) -> Parts:
    """Return the parts of an absolute path after following all links."""
    return ("file", *filter(None, os.path.realpath(folder).split("/")))


def _url_parts(url: str) -> Parts:
    """Return the parts of a URL as its server may interpret it."""
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
    """Return the mode of a path without following links; 0 if there is none."""
    try:
        return os.lstat(path).st_mode
    except (OSError, ValueError):
        return 0

"""Directories on any fsspec file system, as a recipe: pickles as its URL, opens its file system where it is used."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.storage import FsspecStore, LocalStore


def is_url(location: str) -> bool:
    """Tell whether a location names a protocol, like ``s3://bucket/key``; anything else is a local path."""
    return "://" in location


def split_location(location: str | os.PathLike[str]) -> tuple[Any, str]:
    """Return the file system of a location and the path on it; a local path becomes absolute.

    Raises
    ------
    ValueError
        When the protocol is unknown or its package is not installed.
    """
    text = os.fspath(location)
    if not is_url(text):
        # Not through url_to_fs: local names may hold '::' or '~', which mean something to it.
        return LocalFileSystem(), os.path.abspath(text)  # noqa: PTH100 - resolve() would follow links
    try:
        if "::" in text:  # part of a name; url_to_fs would take it for a chain of file systems
            fs = fsspec.filesystem(text.partition("://")[0])
            return fs, fs._strip_protocol(text)
        fs, path = fsspec.core.url_to_fs(text)
    except ImportError as error:
        raise ValueError(str(error)) from error
    return fs, path


def read_bytes(location: str) -> bytes:
    """Return a whole file.

    Raises
    ------
    OSError
        When it can not be read, whatever its file system raises.
    ValueError
        When the location's protocol can not be used.
    """
    fs, path = split_location(location)
    try:
        content: bytes = fs.cat_file(path)
    except (OSError, ValueError):
        raise
    except Exception as error:
        # Clients of remote stores have errors of their own, such as an HTTP client's for status 403.
        raise OSError(" ".join(f"{type(error).__name__}: {error}".split())) from error
    return content


@dataclass(frozen=True)
class Directory:
    """A directory on disk or in an object store.

    Attributes
    ----------
    url
        Absolute path or URL, without a trailing slash.
    """

    url: str

    @classmethod
    def at(cls, location: str | os.PathLike[str]) -> "Directory":
        """Return the directory at a path or URL; nothing is created."""
        text = os.fspath(location)
        return cls(text.rstrip("/")) if is_url(text) else cls(split_location(text)[1])

    def __truediv__(self, name: str) -> "Directory":
        return Directory(f"{self.url}/{name}")

    def exists(self, name: str = "") -> bool:
        """Tell whether a file or directory is there."""
        fs, path = self._locate(name)
        return bool(fs.exists(path))

    def is_empty(self) -> bool:
        """Tell whether nothing is in it, or it is not there."""
        fs, path = self._locate("")
        return not fs.exists(path) or not fs.ls(path, detail=False)

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        fs, path = self._locate(name)
        content: bytes = fs.cat_file(path)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file, replacing it."""
        fs, path = self._locate(name)
        fs.makedirs(fs._parent(path), exist_ok=True)
        fs.pipe_file(path, content)

    def create(self, name: str, content: bytes) -> None:
        """Write a file that must not be there yet.

        Raises
        ------
        FileExistsError
            When it is; then it is left as it is.
        """
        fs, path = self._locate(name)
        fs.makedirs(fs._parent(path), exist_ok=True)
        with fs.open(path, "xb") as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Remove a file or a directory tree, if it is there."""
        fs, path = self._locate(name)
        if fs.exists(path):
            fs.rm(path, recursive=True)

    def zarr_group(self, name: str, mode: Literal["r", "r+", "a", "w"] = "r") -> zarr.Group:
        """Open the Zarr v3 group below this directory.

        Raises
        ------
        FileNotFoundError
            When it is to be read and is not there.
        ValueError
            When the location's protocol can not be used.
        """
        self._locate(name)  # refuses a protocol that can not be used, in our words
        url = f"{self.url}/{name}" if name else self.url
        store = (
            FsspecStore.from_url(url, read_only=mode == "r")
            if is_url(url)
            else LocalStore(Path(url), read_only=mode == "r")
        )
        return zarr.open_group(store=store, mode=mode, zarr_format=3, use_consolidated=False)

    def _locate(self, name: str) -> tuple[Any, str]:
        return split_location(f"{self.url}/{name}" if name else self.url)

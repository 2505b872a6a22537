"""Directories on any fsspec file system: a directory pickles as its URL and opens its file system where it is used."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.core.buffer import Buffer
from zarr.storage import FsspecStore, LocalStore

from schemas.credentials import refuse_credentials
from schemas.errors import StorageError
from workers.storage.local_files import create_file, replace_file
from workers.storage.settings import storage_in_use

# The settings of object stores apply to these URLs.
S3_PROTOCOLS = ("s3", "s3a")


def is_url(location: str) -> bool:
    """Tell whether a location starts with a protocol, like ``s3://bucket/key``; anything else is a local path."""
    return "://" in location


def split_location(location: str | os.PathLike[str]) -> tuple[Any, str]:
    """Return the file system of a location, and the path on it; a local path becomes absolute.

    Raises `ValueError` for a protocol that is unknown or not installed, `ConfigError` for a URL with credentials.
    """
    text = os.fspath(location)
    if not is_url(text):
        # Not with url_to_fs, which gives '::' and '~' in local names a meaning.
        return LocalFileSystem(), os.path.abspath(text)  # noqa: PTH100 - resolve() would follow links
    refuse_credentials(text, "the URL")
    if _is_s3(text):
        store = _object_store()
        return store, store._strip_protocol(text)
    try:
        if "::" in text:  # part of a name, not a chain of file systems as in url_to_fs
            fs = fsspec.filesystem(text.partition("://")[0])
            return fs, fs._strip_protocol(text)
        fs, path = fsspec.core.url_to_fs(text)
    except ImportError as error:
        raise ValueError(str(error)) from error
    return fs, path


def read_bytes(location: str) -> bytes:
    """Return the content of a file.

    Raises `OSError` if it cannot be read, on any file system, and `ValueError` if the protocol cannot be used.
    """
    fs, path = split_location(location)
    try:
        content: bytes = fs.cat_file(path)
    except (OSError, ValueError, StorageError):
        raise
    except Exception as error:
        # Clients of remote stores raise errors of their own, such as an HTTP client for status 403.
        raise OSError(" ".join(f"{type(error).__name__}: {error}".split())) from error
    return content


@dataclass(frozen=True)
class Directory:
    """A directory on disk or in an object store."""

    url: str  # absolute path or URL, without a trailing slash

    @classmethod
    def at(cls, location: str | os.PathLike[str]) -> "Directory":
        """Return the directory at a path or URL and create nothing; raises `ConfigError` for a URL with credentials."""
        text = os.fspath(location)
        if is_url(text):
            return cls(refuse_credentials(text, "the URL").rstrip("/"))
        return cls(split_location(text)[1])

    def __truediv__(self, name: str) -> "Directory":
        return Directory(f"{self.url}/{name}")

    def exists(self, name: str = "") -> bool:
        """Tell whether a file or directory exists."""
        fs, path = self._locate(name)
        with self._reading(name):
            return bool(fs.exists(path))

    def is_empty(self) -> bool:
        """Tell whether the directory is empty or missing."""
        fs, path = self._locate("")
        with self._reading(""):
            return not fs.exists(path) or not fs.ls(path, detail=False)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        fs, path = self._locate(name)
        with self._reading(name):
            content: bytes = fs.cat_file(path)
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a whole file; it never exists in part, even if this process is killed.

        Raises `StorageError` if the file cannot be written, for example because a disk is full or read-only.
        """
        fs, path = self._locate(name)
        with _writing(path):
            fs.makedirs(fs._parent(path), exist_ok=True)
            if is_url(self.url):
                fs.pipe_file(path, content)
            else:
                replace_file(path, content)

    def create(self, name: str, content: bytes) -> None:
        """Write a file that must not exist yet.

        Raises `FileExistsError` if it exists, and leaves it as it is; raises `StorageError` if it cannot be written.
        """
        fs, path = self._locate(name)
        with _writing(path):
            fs.makedirs(fs._parent(path), exist_ok=True)
            if _is_s3(self.url):
                fs.pipe_file(path, content, mode="create")
            elif is_url(self.url):
                with fs.open(path, "xb") as file:
                    file.write(content)
            else:
                create_file(path, content)

    def remove(self, name: str) -> None:
        """Remove a file or a directory tree if it exists."""
        fs, path = self._locate(name)
        if fs.exists(path):
            with _writing(path):
                fs.rm(path, recursive=True)

    def zarr_group(self, name: str, mode: Literal["r", "r+", "a", "w"] = "r") -> zarr.Group:
        """Open the Zarr v3 group below this directory.

        Raises `FileNotFoundError` if a group to read does not exist, `ValueError` if the protocol cannot be used, and,
        now or later through the group, `StorageError` if it cannot be written.
        """
        self._locate(name)  # refuses an unusable protocol with our message
        url = f"{self.url}/{name}" if name else self.url
        store: FsspecStore | LocalStore
        if _is_s3(url):
            client = _object_store(asynchronous=True)
            store = FsspecStore(client, path=client._strip_protocol(url), read_only=mode == "r")
        elif is_url(url):
            store = FsspecStore.from_url(url, read_only=mode == "r")
        else:
            store = _LocalFiles(Path(url), read_only=mode == "r")
        return zarr.open_group(store=store, mode=mode, zarr_format=3, use_consolidated=False)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Turn denied access to a store into our error; on disk the system's errors say enough."""
        try:
            yield
        except PermissionError as error:
            if not is_url(self.url):
                raise
            raise StorageError(
                f"{self.url}/{name}: access is denied. Grant GetObject and ListBucket to the credentials in use, or "
                "choose others with storage.profile or AWS_ACCESS_KEY_ID and so on."
            ) from error

    def _locate(self, name: str) -> tuple[Any, str]:
        return split_location(f"{self.url}/{name}" if name else self.url)


@contextmanager
def damage_as(problem: Callable[[Exception], Exception]) -> Iterator[None]:
    """Turn whatever Zarr and its codecs raise on damaged files into one error; a `StorageError` is not damage."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        raise problem(error) from error


@contextmanager
def _writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a failed write into our error, which says what to do."""
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise StorageError(
            f"{os.fspath(path)} cannot be written: {reason} ({type(error).__name__}). Make space or grant access "
            "there, then run the same command again: it keeps what is finished."
        ) from error


class _LocalFiles(LocalStore):
    """Zarr's store on a disk, with our errors for failed writes."""

    async def _open(self, *, mode: Literal["r", "r+", "a", "w", "w-"] | None = None) -> None:
        with _writing(self.root):
            await super()._open(mode=mode)

    async def set(self, key: str, value: Buffer) -> None:
        with _writing(self.root / key):
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        with _writing(self.root / key):
            await super().set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        with _writing(self.root / key):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with _writing(self.root / prefix):
            await super().delete_dir(prefix)


def _is_s3(url: str) -> bool:
    return url.partition("://")[0].lower() in S3_PROTOCOLS and is_url(url)


def _object_store(*, asynchronous: bool = False) -> Any:
    # Imported here because the S3 client takes long to load.
    from workers.storage.object_store import open_store

    return open_store(storage_in_use(), asynchronous=asynchronous)

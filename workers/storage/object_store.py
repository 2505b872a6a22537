"""S3 as a file system that repeats failed requests, checks what it reads, and raises plain errors.

How it differs from s3fs: one budget of time covers every passing fault of a request (s3fs does not repeat refused
connections, status 500, or torn parts of large objects). Reads are checked against the size that the store states.
Listings are not cached, so writes by others are seen at once. Names are never patterns (s3fs removes ``a[1]`` as one).
Writing never creates a bucket. Objects that a bulk removal leaves behind are an error.
"""

import asyncio
import atexit
import logging
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fsspec import config as fsspec_config
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay, wait_random_exponential

from schemas.config import StorageConfig
from schemas.errors import StorageError
from workers.storage.failures import (
    EMPTY,
    PRECONDITION_FAILED,
    LeftBehindError,
    TornAnswerError,
    answer_of,
    in_words,
    is_passing,
    refusal_of,
)

logger = logging.getLogger("paire")

Result = TypeVar("Result")

PROTOCOLS = ("s3", "s3a")

# Larger objects are read and written in parts of this size, some at once: S3 is fast at it, and a fault costs one part.
PART_BYTES = 16 * 2**20
PARTS_AT_ONCE = 4

# Pauses between attempts are random, below bounds that double from the first to the longest: workers that were refused
# together must not come back together.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
# The number of failures, some seconds, after which a warning tells why nothing happens.
ATTEMPTS_UNSAID = 6

CONNECT_TIMEOUT_S = 5.0
# Image readers, statistics and Zarr of one process share these.
CONNECTIONS = 64
# The limit of DeleteObjects.
REMOVED_AT_ONCE = 1000

# Metadata of objects made by `_create`: a mark that tells which attempt of which process made them.
_CREATED_BY = "created-by"

_ASKED_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class ObjectStore(S3FileSystem):  # type: ignore[misc]
    """An S3 store as an fsspec file system, with the options of ``s3fs.S3FileSystem``.

    It repeats a request that fails for a passing reason for ``retry_seconds``.
    """

    # s3fs tries once; `_patiently` repeats.
    retries = 1
    _s3: Any

    def __init__(self, *, retry_seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._retry_seconds = retry_seconds
        self._home: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def disconnect(self) -> None:
        """Close the connections, which s3fs leaves to the garbage collector."""
        self._closed = True
        if self._s3 is not None and self._home is not None and self._home.is_running():
            closing = asyncio.run_coroutine_threadsafe(self._s3creator.__aexit__(None, None, None), self._home)
            closing.result(CONNECT_TIMEOUT_S)
            self._s3 = None

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        async def call() -> Any:
            if self._closed:  # a request may outlive the connections if one beside it fails
                raise StorageError(f"{method}: the connections have been closed.")
            self._home = asyncio.get_running_loop()
            return await S3FileSystem._call_s3(self, method, *akwarglist, **kwargs)

        return await self._patiently(call, method, kwargs)

    async def _cat_file(self, path: str, *_: Any, start: int | None = None, end: int | None = None, **__: Any) -> bytes:
        if start is not None or end is not None:
            return (await self._read_range(path, await self._process_limits(path, start, end)))[0]
        try:
            # The answer to a range states its own size and the object's, so a torn body or a wrong length is noticed.
            first, size, tag = await self._read_range(path, _range(0, PART_BYTES))
        except OSError as error:
            if answer_of(error)[0] != EMPTY:
                raise
            return b""  # the object is empty: it has no first byte
        starts = range(len(first), size, PART_BYTES)
        limit = asyncio.Semaphore(PARTS_AT_ONCE)

        async def rest(begin: int) -> bytes:
            async with limit:
                return (await self._read_range(path, _range(begin, min(begin + PART_BYTES, size)), IfMatch=tag))[0]

        return b"".join([first, *await asyncio.gather(*map(rest, starts))])

    async def _read_range(self, path: str, span: str, **conditions: str) -> tuple[bytes, int, str]:
        """Return the bytes of a range, the object's size and its tag; repeat until the bytes are complete."""
        bucket, key, _ = self.split_path(path)
        place = {"Bucket": bucket, "Key": key}

        async def get() -> tuple[bytes, int, str]:
            answer = await self._call_s3("get_object", **place, Range=span, **conditions)
            try:
                body: bytes = await answer["Body"].read()
            finally:
                answer["Body"].close()
            size = _checked_size(body, span, answer)
            return body, size, str(answer.get("ETag", ""))

        return await self._patiently(get, "get_object", place)

    async def _pipe_file(
        self,
        path: str,
        data: bytes,
        chunksize: int = PART_BYTES,
        max_concurrency: int | None = None,
        mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:
        bucket, key, _ = self.split_path(path)
        if mode == "create":
            await self._create(path, data)
            return

        async def put() -> None:
            await S3FileSystem._pipe_file(
                self, path, data, chunksize=chunksize, max_concurrency=max_concurrency or PARTS_AT_ONCE, **kwargs
            )

        # An upload in parts whose last answer was lost is complete, and no longer exists when it is repeated.
        await self._patiently(
            put,
            "put_object",
            {"Bucket": bucket, "Key": key},
            passing=lambda error: answer_of(error)[1] == "NoSuchUpload",
        )

    async def _create(self, path: str, data: bytes) -> None:
        """Write an object that does not exist yet, or raise FileExistsError."""
        bucket, key, _ = self.split_path(path)
        place, mark = {"Bucket": bucket, "Key": key}, uuid.uuid4().hex
        try:
            await self._call_s3("put_object", **place, Body=data, IfNoneMatch="*", Metadata={_CREATED_BY: mark})
        except OSError as error:
            if not isinstance(error, FileExistsError) and answer_of(error)[0] != PRECONDITION_FAILED:
                raise
            # An earlier attempt whose answer was lost may have created it.
            found = await self._call_s3("head_object", **place)
            if found.get("Metadata", {}).get(_CREATED_BY) != mark:
                raise FileExistsError(f"s3://{bucket}/{key} already exists") from error

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: S3 has no directories, and only its owner creates a bucket."""

    makedirs = sync_wrapper(_makedirs)

    async def _exists(self, path: str, **_: Any) -> bool:
        try:
            await self._info(path)
        except FileNotFoundError:
            return False
        return True

    exists = sync_wrapper(_exists)

    async def _rm(self, path: str | list[str], recursive: bool = False, **_: Any) -> None:
        for one in [path] if isinstance(path, str) else path:
            below = await self._find(one) if recursive else []
            names = sorted({*below, self._strip_protocol(one)})
            for start in range(0, len(names), REMOVED_AT_ONCE):
                await self._bulk_delete(names[start : start + REMOVED_AT_ONCE])

    async def _bulk_delete(self, pathlist: list[str], **_: Any) -> None:
        places = [self.split_path(path)[:2] for path in pathlist]
        place = {"Bucket": places[0][0], "Key": places[0][1]}
        objects = {"Objects": [{"Key": key} for _, key in places], "Quiet": True}

        async def delete() -> None:
            answer = await self._call_s3("delete_objects", Bucket=place["Bucket"], Delete=objects)
            for error in answer.get("Errors", []):
                what = f"s3://{place['Bucket']}/{error.get('Key')} was not removed: {error.get('Code')}"
                raise PermissionError(what) if error.get("Code") == "AccessDenied" else LeftBehindError(what)

        await self._patiently(delete, "delete_objects", place)

    async def _patiently(
        self,
        call: Callable[[], Awaitable[Result]],
        method: str,
        place: dict[str, Any],
        passing: Callable[[BaseException], bool] | None = None,
    ) -> Result:
        """Return the result of a call; repeat it while it fails for a passing reason and the budget lasts."""
        name = f"{method} of s3://{'/'.join(str(place[part]) for part in ('Bucket', 'Key') if place.get(part))}"
        passing, started = passing or is_passing, time.monotonic()
        retrying = AsyncRetrying(
            retry=retry_if_exception(passing),
            stop=stop_before_delay(self._retry_seconds),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
            before_sleep=lambda state: self._say(name, state),
            reraise=True,
        )
        try:
            return await retrying(call)
        except Exception as error:
            attempts, seconds = retrying.statistics["attempt_number"], time.monotonic() - started
            if passing(error):
                raise StorageError(
                    f"{name} failed {attempts} times in {seconds:.0f} s at {self._address()}, the last time with "
                    f"{in_words(error)}. Check the store and storage.endpoint_url, or raise "
                    f"storage.retry_seconds = {self._retry_seconds:g}; then run the same command again."
                ) from error
            refusal = refusal_of(error, method, name, self._address())
            if refusal is not None:
                raise refusal from error
            raise

    def _say(self, name: str, state: RetryCallState) -> None:
        if state.attempt_number == ATTEMPTS_UNSAID and state.outcome is not None:
            error = state.outcome.exception()
            logger.warning(
                "%s has failed %d times, the last time with %s; trying for %.0f s in all",
                name,
                ATTEMPTS_UNSAID,
                in_words(error) if error else "nothing",
                self._retry_seconds,
            )

    def _address(self) -> str:
        """Return the host of the store, which carries no credentials."""
        endpoint = getattr(getattr(self._s3, "meta", None), "endpoint_url", None) or self.endpoint_url
        return urlsplit(endpoint).netloc.rpartition("@")[2] if endpoint else "the object store"


_stores: dict[tuple[int, StorageConfig, bool], ObjectStore] = {}
_lock = Lock()


def open_store(settings: StorageConfig, *, asynchronous: bool = False) -> ObjectStore:
    """Return this process's store with these settings; it is opened once, because opening is slow.

    The environment and the AWS configuration files decide what the settings leave open. An ``asynchronous`` store is
    for the event loop of the caller, such as Zarr's.
    """
    key = (os.getpid(), settings, asynchronous)
    with _lock:
        if key not in _stores:
            _stores[key] = ObjectStore(
                **_options(settings), asynchronous=asynchronous, retry_seconds=settings.retry_seconds
            )
        return _stores[key]


@atexit.register
def forget_stores() -> None:
    """Open stores again at their next use: after the credentials in the environment have changed."""
    with _lock:
        for (process, _, _), store in _stores.items():
            if process == os.getpid():
                store.disconnect()
        _stores.clear()


def _options(settings: StorageConfig) -> dict[str, Any]:
    """Return the options of s3fs; unset ones are left out, because FSSPEC_S3_* variables give their defaults."""
    given = {name: value for protocol in PROTOCOLS for name, value in fsspec_config.conf.get(protocol, {}).items()}
    options: dict[str, Any] = {
        # Other processes may write after this one has listed.
        "use_listings_cache": False,
        "skip_instance_cache": True,
        "default_block_size": PART_BYTES,
        "config_kwargs": {
            "max_pool_connections": CONNECTIONS,
            **given.get("config_kwargs", {}),
            "connect_timeout": min(CONNECT_TIMEOUT_S, settings.timeout_s),
            "read_timeout": settings.timeout_s,
            "retries": {"total_max_attempts": 1},
        },
    }
    if settings.endpoint_url:
        options["endpoint_url"] = settings.endpoint_url
    if settings.region:
        options["client_kwargs"] = {**given.get("client_kwargs", {}), "region_name": settings.region}
    if settings.profile:
        options["profile"] = settings.profile
    if settings.anonymous:
        options["anon"] = True
    return options


def _range(start: int, stop: int) -> str:
    return f"bytes={start}-{stop - 1}"


def _checked_size(body: bytes, span: str, answer: dict[str, Any]) -> int:
    """Return the size of the object; raises TornAnswerError unless the body is exactly the range asked for."""
    sent, asked = _CONTENT_RANGE.fullmatch(answer.get("ContentRange") or ""), _ASKED_RANGE.fullmatch(span)
    if sent is None and not body and answer.get("ContentLength") == 0:
        return 0  # some stores answer like this instead of with status 416
    if sent is None or asked is None:
        raise TornAnswerError(f"the answer to {span} does not say which bytes it holds")
    first, last, size = map(int, sent.groups())
    if asked[1]:
        wanted = int(asked[1]), min(int(asked[2] or size), size - 1)
    else:
        wanted = max(size - int(asked[2]), 0), size - 1
    if (first, last) != wanted or len(body) != last - first + 1:
        raise TornAnswerError(f"{len(body)} bytes of {first}-{last}/{size} for {span}")
    return size

"""Faulty stores: passing faults are retried within a budget, and torn content is never taken for whole."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import zarr

from schemas.config import StorageConfig
from schemas.errors import StorageError
from tests.support.storage.fault_proxy import FaultProxy, Faults, fault_proxy
from tests.support.storage.servers import Server, reached, short_pauses
from workers.sources.listing import list_files
from workers.storage.directory import Directory, read_bytes
from workers.storage.object_store import PART_BYTES, forget_stores
from workers.storage.settings import use_storage

CONTENT = np.random.default_rng(0).bytes(100_000)
HALF = 0.5
NONE = Faults()


@pytest.fixture(scope="module")
def proxy(bucket: Server) -> Iterator[FaultProxy]:
    with fault_proxy(bucket.endpoint, NONE) as proxy:
        yield proxy


@pytest.fixture
def faltering(proxy: FaultProxy, bucket: Server) -> Iterator[Server]:
    """Yield the bucket behind the proxy, without faults yet."""
    proxy.faults = NONE
    proxy.counts.clear()
    with reached(bucket.at(proxy.endpoint)), short_pauses():
        yield bucket.at(proxy.endpoint)
    proxy.faults = NONE


@pytest.fixture
def directory(faltering: Server, request: pytest.FixtureRequest) -> Directory:
    return Directory.at(faltering.url(request.node.name))


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(slow_down=HALF), id="SlowDown"),
        pytest.param(Faults(reset=HALF), id="resets"),
        pytest.param(Faults(lost_answer=HALF), id="lost answers"),
        pytest.param(Faults(truncated=HALF), id="truncated bodies"),
        pytest.param(Faults(relabelled=HALF), id="bodies cut with their length"),
        pytest.param(Faults(latency=HALF), id="latency"),
    ],
)
def test_every_operation_rides_through_passing_faults(directory: Directory, proxy: FaultProxy, faults: Faults) -> None:
    proxy.faults = faults
    values = np.arange(24.0).reshape(4, 6)
    directory.write("a", CONTENT)
    directory.create("b", CONTENT)
    directory.zarr_group("z", "w").create_array("v", data=values, chunks=(1, 6), compressors=None)
    for _ in range(3):
        assert directory.read("a") == read_bytes(f"{directory.url}/b") == CONTENT
    array = directory.zarr_group("z")["v"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(np.asarray(array[:]), values)
    assert len(list_files(directory.url)) == 8
    directory.remove("z")
    assert not directory.exists("z")
    assert proxy.injected + proxy.counts["latency"] > 3


def test_a_creation_whose_answer_was_lost_is_ours(directory: Directory, proxy: FaultProxy) -> None:
    proxy.faults = Faults(lost_answer=HALF, seed=1)
    for number in range(12):
        directory.create(f"{number}", b"mine")
        with pytest.raises(FileExistsError):
            directory.create(f"{number}", b"theirs")
    assert proxy.counts["lost_answer"] > 3


def test_large_objects_ride_through_faults_in_any_part(directory: Directory, proxy: FaultProxy) -> None:
    content = np.random.default_rng(1).bytes(2 * PART_BYTES + 1)
    proxy.faults = Faults(slow_down=0.2, lost_answer=0.2, truncated=0.2, seed=2)
    directory.write("large", content)
    assert directory.read("large") == content
    assert proxy.injected > 0


@pytest.mark.parametrize("faults", [Faults(truncated=1.0), Faults(relabelled=1.0)])
def test_a_body_that_is_always_torn_is_an_error_and_never_content(
    directory: Directory, proxy: FaultProxy, faults: Faults
) -> None:
    directory.write("a", CONTENT)
    directory.zarr_group("z", "w").create_array("v", data=np.ones((2, 1000)), chunks=(1, 1000), compressors=None)
    with impatience(proxy):
        array = directory.zarr_group("z")["v"]
        assert isinstance(array, zarr.Array)
        proxy.faults = faults
        with pytest.raises(StorageError, match="get_object of s3://"):
            read_bytes(f"{directory.url}/a")
        with pytest.raises(StorageError, match="v/c/0/0"):
            np.asarray(array[:1])


@pytest.mark.parametrize(
    ("faults", "named"),
    [
        pytest.param(Faults(slow_down=1.0), "status 503", id="SlowDown"),
        pytest.param(Faults(reset=1.0), "Error", id="resets"),
    ],
)
def test_the_budget_ends_with_an_error_that_says_what_failed_and_what_to_do(
    directory: Directory, proxy: FaultProxy, faults: Faults, named: str
) -> None:
    directory.write("a", CONTENT)
    with impatience(proxy):
        proxy.faults = faults
        started = time.monotonic()
        for operation in (
            lambda: directory.read("a"),
            lambda: directory.write("b", b"1"),
            lambda: directory.create("c", b"1"),
            lambda: directory.exists("a"),
            lambda: directory.remove("a"),
            lambda: list_files(directory.url),
            lambda: directory.zarr_group("z", "w"),
        ):
            with pytest.raises(StorageError) as caught:
                operation()
            for part in (named, "times in", proxy.endpoint.removeprefix("http://"), "storage.retry_seconds = 0.2"):
                assert part in str(caught.value)
        # Seven budgets and the time of the last attempts; ten times as much where the machine is busy.
        assert time.monotonic() - started < 10 * 7 * IMPATIENT_S + 30


IMPATIENT_S = 0.2


class impatience:  # noqa: N801 - a context manager
    """Give up soon while the block runs."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._settings = StorageConfig(
            endpoint_url=proxy.endpoint, region="us-east-1", retry_seconds=IMPATIENT_S, timeout_s=5
        )

    def __enter__(self) -> None:
        use_storage(self._settings)

    def __exit__(self, *_: object) -> None:
        forget_stores()


def test_a_store_that_is_not_there_is_said_with_its_address(bucket: Server) -> None:
    nobody = bucket.at("http://127.0.0.1:9")
    with reached(nobody):
        use_storage(nobody.settings.model_copy(update={"retry_seconds": IMPATIENT_S}))
        with pytest.raises(StorageError, match=r"at 127.0.0.1:9, the last time with EndpointConnectionError"):
            Directory.at(nobody.url("run")).exists("run.json")


def test_missing_credentials_are_said_with_where_to_give_them(bucket: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with reached(bucket):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        with pytest.raises(StorageError, match=r"NoCredentialsError.*storage.profile"):
            Directory.at(bucket.url("run")).read("run.json")


@pytest.mark.parametrize("by_environment", [True, False])
def test_an_unknown_profile_is_named_with_where_to_correct_it(
    bucket: Server, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    with reached(bucket):
        if by_environment:
            monkeypatch.setenv("AWS_PROFILE", "nobody")
        else:
            use_storage(bucket.settings.model_copy(update={"profile": "nobody"}))
        directory = Directory.at(bucket.url("run"))
        for operation in (
            lambda: directory.read("run.json"),
            lambda: directory.create("run.json", b"{}"),
            lambda: list_files(directory.url),
            lambda: directory.zarr_group("features"),
        ):
            with pytest.raises(StorageError, match=r"\(nobody\).* Correct storage\.profile or AWS_PROFILE"):
                operation()


def test_a_public_bucket_is_read_without_credentials(bucket: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with reached(bucket):
        bucket.client.put_object(Bucket=bucket.bucket, Key="public", Body=b"1", ACL="public-read")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        use_storage(bucket.settings.model_copy(update={"anonymous": True}))
        assert read_bytes(bucket.url("public")) == b"1"


def test_no_bucket_is_created_by_writing_into_it(bucket: Server) -> None:
    before = bucket.client.list_buckets()["Buckets"]
    for write in (Directory.write, Directory.create):
        with pytest.raises(StorageError, match="the bucket does not exist"):
            write(Directory.at("s3://nobody-has-made-this/run"), "run.json", b"{}")
    assert not Directory.at("s3://nobody-has-made-this").exists()
    assert bucket.client.list_buckets()["Buckets"] == before


def test_what_another_client_writes_is_seen_at_once(bucket: Server) -> None:
    directory = Directory.at(bucket.url("shared"))
    directory.write("mine", b"1")
    assert [file.name for file in list_files(directory.url)] == ["mine"]
    bucket.put("shared/theirs", b"2")
    assert directory.exists("theirs")
    assert [file.name for file in list_files(directory.url)] == ["mine", "theirs"]


def test_placeholders_of_folders_are_not_files_and_keys_keep_every_character(bucket: Server) -> None:
    for key in ("odd/", "odd/folder/", "odd/a.png", "odd/folder//a.png"):
        bucket.put(key, b"")
    assert [file.name for file in list_files(bucket.url("odd"))] == ["a.png", "folder//a.png"]

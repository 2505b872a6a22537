"""Servers that the tests of storage share: started once in a test session, a bucket for each test file."""

import os
from collections.abc import Iterator

import pytest

from tests.support.storage.ceph import ceph_gateway, missing_programs
from tests.support.storage.servers import Server, bucket_on, moto_server

# Set by `make test-ceph`.
WANTS_CEPH = "PAIRE_TEST_CEPH"


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """Return the address of moto's S3."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def bucket(moto: str) -> Iterator[Server]:
    """Return a bucket of moto's that this process reaches."""
    with bucket_on(moto) as server:
        yield server


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a Ceph RADOS gateway; skips the test unless it is asked for."""
    if not os.environ.get(WANTS_CEPH):
        pytest.skip("starts a Ceph cluster: make test-ceph")
    missing = missing_programs()
    if missing:
        pytest.fail(f"needs {', '.join(missing)}: apt-get install radosgw ceph-mon ceph-osd")
    with ceph_gateway(tmp_path_factory.mktemp("ceph")) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def ceph_bucket(ceph: str) -> Iterator[Server]:
    """Return a bucket of the gateway's that this process reaches."""
    with bucket_on(ceph) as server:
        yield server

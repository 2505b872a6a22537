"""The storage contract on a disk, on S3 over HTTP, and where it is asked for on a Ceph RADOS gateway."""

import uuid
from pathlib import Path

import pytest

from tests.support.storage.contract import StorageContract
from tests.support.storage.servers import Server
from workers.storage.directory import Directory


class TestDisk(StorageContract):
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Directory:
        return Directory.at(tmp_path / "run")


class TestMoto(StorageContract):
    @pytest.fixture
    def directory(self, bucket: Server) -> Directory:
        return Directory.at(bucket.url(f"runs/{uuid.uuid4().hex}"))


@pytest.mark.ceph
class TestCeph(StorageContract):
    @pytest.fixture
    def directory(self, ceph_bucket: Server) -> Directory:
        return Directory.at(ceph_bucket.url(f"runs/{uuid.uuid4().hex}"))

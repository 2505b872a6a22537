"""S3 servers on this machine: how tests start one, reach it, and put an archive there."""

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config as ClientConfig
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

import workers.storage.object_store
from schemas.config import StorageConfig
from workers.storage.object_store import forget_stores
from workers.storage.settings import storage_in_use, use_storage

# So long that no other text contains them by chance; they open nothing.
ACCESS_KEY = "AKIAPLANTEDACCESSKEY"
SECRET_KEY = "planted+secret/key0123456789abcdefghijkl"
SESSION_TOKEN = "planted-session-token-0123456789"
REGION = "us-east-1"

# Neither this machine's profiles nor a cloud's.
NOTHING_ELSE = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}

# What the tests' own client needs: neither patience nor the environment.
_IMPATIENT = ClientConfig(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})


@dataclass(frozen=True)
class Server:
    """An S3 server and one bucket on it.

    Attributes
    ----------
    endpoint
        Its address, as a URL.
    access_key, secret_key
        The credentials of the bucket's owner.
    """

    endpoint: str
    bucket: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def client(self) -> Any:
        """A plain botocore client: none of the code under test takes part."""
        return botocore.session.get_session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=_IMPATIENT,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with the credentials."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    @property
    def settings(self) -> StorageConfig:
        """The settings that reach this server, with short timeouts."""
        return StorageConfig(endpoint_url=self.endpoint, region=REGION, retry_seconds=10, timeout_s=5)

    def options(self, **changed: object) -> tuple[str, ...]:
        """Return the settings as ``section.key=value``."""
        options = {**self.settings.model_dump(exclude_none=True, exclude_defaults=True), **changed}
        return tuple(f"storage.{name}={value}" for name, value in options.items())

    def at(self, endpoint: str) -> "Server":
        """Return the same server behind another address."""
        return replace(self, endpoint=endpoint)

    def url(self, key: str = "") -> str:
        """Return the URL of a key in the bucket."""
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def put_folder(self, folder: Path, prefix: str) -> str:
        """Write all files of a folder below a prefix; returns its URL."""
        client = self.client
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(folder).as_posix()}"
                client.put_object(Bucket=self.bucket, Key=name, Body=path.read_bytes())
        return self.url(prefix)

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return every object below a prefix by its key."""
        client, found = self.client, {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                found[entry["Key"]] = client.get_object(Bucket=self.bucket, Key=entry["Key"])["Body"].read()
        return found


@contextmanager
def moto_server() -> Iterator[str]:
    """Yield the address of moto's S3 on a free port, while the block runs."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def bucket_on(endpoint: str) -> Iterator[Server]:
    """Yield a new bucket on a server, with the environment and the settings that lead to it while the block runs."""
    server = Server(endpoint, f"factory-{uuid.uuid4().hex[:12]}")
    server.client.create_bucket(Bucket=server.bucket)
    with reached(server):
        yield server


@contextmanager
def short_pauses() -> Iterator[None]:
    """Try failed requests of this process again at once while the block runs, so that a test spends no time asleep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.storage.object_store, "FIRST_PAUSE_S", 0.005)
        patch.setattr(workers.storage.object_store, "LONGEST_PAUSE_S", 0.05)
        yield


@contextmanager
def reached(server: Server) -> Iterator[None]:
    """Reach a server from this process while the block runs, and nothing by what this machine is set to."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_S3"))]:
            patch.delenv(name)
        for name, value in {**server.environment, **NOTHING_ELSE}.items():
            patch.setenv(name, value)
        before = storage_in_use()
        forget_stores()
        use_storage(server.settings)
        try:
            yield
        finally:
            use_storage(before)
            forget_stores()

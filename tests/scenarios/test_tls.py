"""Encrypted clusters: a run goes through one, and nobody without a certificate gets in."""

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import dask
import pandas as pd
import pytest
import torch
from distributed import Client, Security

from pipeline.cluster.cluster import open_cluster, workers_of
from pipeline.commands.clean import clean
from schemas.config import ClusterConfig, parse_config
from schemas.errors import ClusterError, ConfigError
from tests.support.archives import write_parts
from tests.support.certificates import Certificates, make_certificates
from tests.support.runs import quick_config
from workers.compute import set_compute_threads

# Long enough for a handshake where other work is going on, short where none will succeed.
PATIENT_S, IMPATIENT_S = 60, 2


@pytest.fixture(autouse=True)
def _own_threads_and_log() -> Iterator[None]:
    threads, level = torch.get_num_threads(), logging.getLogger("distributed").level
    yield
    set_compute_threads(threads)
    logging.getLogger("distributed").setLevel(level)


@pytest.fixture
def _collected() -> Iterator[None]:
    """Let a client that never connected not be closed inside the start of another one, which would deadlock."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def config(**options: object) -> ClusterConfig:
    base = {"workers": 1, "threads_per_worker": 1, "processes": False, "timeout_s": PATIENT_S}
    return ClusterConfig.model_validate({**base, **options})


@pytest.fixture(scope="module")
def encrypted(certificates: Certificates) -> Iterator[str]:
    """Return the address of a scheduler with a worker that ask for certificates."""
    with open_cluster(config(**certificates.options)) as cluster:
        address: str = cluster.client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        workers = workers_of(cluster.client)
        assert [worker.startswith("tls://") for worker in workers] == [True]
        yield address


def test_a_run_goes_through_an_encrypted_cluster_and_nothing_of_the_key_is_written(
    encrypted: str, certificates: Certificates, tmp_path: Path
) -> None:
    write_parts(tmp_path / "archive", 4)
    settings = [f"cluster.{name}={value}" for name, value in certificates.options.items()]
    clean(str(tmp_path / "archive"), str(tmp_path / "run"), quick_config(f"cluster.scheduler={encrypted}", *settings))
    assert pd.read_parquet(tmp_path / "run" / "manifest.parquet")["decision"].tolist() == ["clean"] * 4
    assert str(certificates.key) in (tmp_path / "run" / "config.yaml").read_text()
    secret = certificates.key.read_text().splitlines()[1].encode()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_worker_processes_of_a_local_cluster_are_encrypted_too(certificates: Certificates) -> None:
    with open_cluster(config(processes=True, **certificates.options)) as cluster:
        assert cluster.client.submit(sum, [1, 2, 3]).result(timeout=PATIENT_S) == 6
        (worker,) = workers_of(cluster.client)
        assert worker.startswith("tls://127.0.0.1:")


def test_dasks_own_configuration_serves_as_well(encrypted: str, certificates: Certificates) -> None:
    ca_file, cert, key = certificates.options.values()
    files = {"ca-file": ca_file, "client.cert": cert, "client.key": key}
    mine = {f"distributed.comm.tls.{name}": value for name, value in files.items()}
    with dask.config.set(mine), open_cluster(config(), encrypted) as cluster:
        assert cluster.client.submit(sum, [1, 2, 3]).result(timeout=PATIENT_S) == 6


def test_a_client_without_a_certificate_is_told_what_to_set(encrypted: str) -> None:
    with (
        pytest.raises(ClusterError, match=r"needs a certificate .* cluster\.tls_ca_file, cluster\.tls_cert"),
        open_cluster(config(), encrypted),
    ):
        pytest.fail("connected")


@pytest.mark.usefixtures("_collected")
def test_a_client_with_another_authoritys_certificate_is_refused(encrypted: str, tmp_path: Path) -> None:
    others = make_certificates(tmp_path / "others")
    with (
        pytest.raises(ClusterError, match=r"authority in cluster\.tls_ca_file has signed"),
        open_cluster(config(timeout_s=IMPATIENT_S, **others.options), encrypted),
    ):
        pytest.fail("connected")


@pytest.mark.usefixtures("_collected")
def test_an_encrypted_scheduler_refuses_who_comes_with_an_authority_of_his_own(
    encrypted: str, certificates: Certificates, tmp_path: Path
) -> None:
    # Who trusts the right authority, but is not trusted by it: it is the scheduler that refuses.
    others = make_certificates(tmp_path / "others")
    security = Security(
        tls_ca_file=str(certificates.ca_file), tls_client_cert=str(others.cert), tls_client_key=str(others.key)
    )
    with pytest.raises((OSError, TimeoutError)):
        Client(encrypted, security=security, timeout=IMPATIENT_S)
    with pytest.raises((OSError, TimeoutError)):
        Client(encrypted.replace("tls://", "tcp://"), timeout=IMPATIENT_S)


def test_an_address_without_encryption_is_refused_where_there_are_certificates(certificates: Certificates) -> None:
    with (
        pytest.raises(ClusterError, match=r"'tcp://127\.0\.0\.1:9' would be reached without encryption.*tls://host"),
        open_cluster(config(**certificates.options), "tcp://127.0.0.1:9"),
    ):
        pytest.fail("connected")


@pytest.mark.parametrize("wrong", ["missing", "text", "another key"])
@pytest.mark.parametrize("address", [None, "tls://127.0.0.1:9"])
def test_files_of_no_use_are_an_error_that_names_them(
    certificates: Certificates, tmp_path: Path, wrong: str, address: str | None
) -> None:
    key = tmp_path / "key.pem"
    if wrong == "text":
        key.write_text("no key")
    elif wrong == "another key":
        key = make_certificates(tmp_path).key
    options = {**certificates.options, "tls_key": str(key)}
    named = rf"cluster\.tls_ca_file = .* cluster\.tls_key = '{key}' cannot be used"
    with (
        pytest.raises(ClusterError, match=named) as caught,
        open_cluster(config(**options), address),
    ):
        pytest.fail("connected")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [("tls_cert",), ("tls_ca_file", "tls_key"), ("tls_cert", "tls_key")])
def test_half_of_the_files_are_refused(given: tuple[str, ...]) -> None:
    missing = {"tls_ca_file", "tls_cert", "tls_key"} - set(given)
    with pytest.raises(ConfigError, match=r"Set all three files or none") as caught:
        parse_config(None, [f"cluster.{name}=file.pem" for name in given])
    assert all(f"cluster.{name}" in str(caught.value) for name in missing)

"""Secrets of the environment are in nothing that commands say or write, whether they end well or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest

from tests.support.archives import write_parts
from tests.support.commands import Ended, Here
from tests.support.runs import quick_config
from tests.support.storage.servers import ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, Server, bucket_on, moto_server
from workers.storage.object_store import forget_stores
from workers.storage.settings import use_storage

SECRETS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_SESSION_TOKEN": SESSION_TOKEN,
    "GITHUB_TOKEN": "planted-token-of-another-service",
    "DATABASE_URL": "postgres://user:planted-database-password@host/db",
}
# The last of each: a part of it is as bad as the whole.
NEEDLES = (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, "planted-token", "planted-database-password")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto_server() as endpoint, bucket_on(endpoint) as server:
        yield server


@pytest.fixture
def planted(server: Server, monkeypatch: pytest.MonkeyPatch, here: Here) -> Iterator[Here]:
    """Return the command inside this process, with planted secrets in its environment."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    forget_stores()
    yield here
    forget_stores()
    use_storage(server.settings)


class Denying(BaseHTTPRequestHandler):
    """A store that refuses, and repeats in its answer all that it was sent, and what it should not know."""

    def do_GET(self) -> None:
        told = f"{self.headers.as_string()} {SECRET_KEY}".replace("&", "&amp;").replace("<", "&lt;")
        body = (
            f"<Error><Code>InvalidAccessKeyId</Code><Message>{told}</Message>"
            f"<AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId></Error>"
        ).encode()
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the server's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def denying_store() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


def assert_no_trace(folder: Path, *ended: Ended) -> None:
    """Check every byte that was said and written; of tables, which are compressed, every cell."""
    texts = {f"output {number}": f"{one.out}{one.err}".encode() for number, one in enumerate(ended)}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        texts[str(path)] = path.read_bytes()
        if path.suffix == ".parquet":
            texts[f"cells of {path}"] = pd.read_parquet(path).to_csv().encode()
    for name, text in texts.items():
        assert [needle for needle in NEEDLES if needle.encode() in text] == [], name


def options(tmp_path: Path, server: Server, **changed: object) -> tuple[str, ...]:
    """Return the options that lead to a server, as a configuration file."""
    path = tmp_path / "run.yaml"
    path.write_text(quick_config(*server.options(**changed)).to_yaml())
    return ("--config", str(path))


def test_no_command_leaves_a_trace_of_the_secrets(server: Server, planted: Here, tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 40, 2)
    source, run = server.put_folder(tmp_path / "archive", "archive"), tmp_path / "run"
    config = options(tmp_path, server)
    reach = [part for option in server.options() for part in ("--set", option)]
    here_only = ["--set", "cluster.processes=false", "--set", "cluster.workers=1", *reach]
    ended = [
        planted("clean", source, "--out", str(run), *config, "--set", "trim.strategy=grow", "--json"),
        planted("recut", str(run), *here_only, "--set", "trim.strategy=none", "--accept-untrustworthy"),
        planted("score", str(run / "model"), source, "--out", str(tmp_path / "scores"), "--maps", *here_only),
        planted("trust", str(run), *here_only, "--images", "5"),
    ]
    assert [one.code for one in ended] == [0] * len(ended), [one.err for one in ended]
    assert (run / "trust" / "trust.json").exists()
    assert_no_trace(tmp_path, *ended)


def test_no_failing_command_leaves_a_trace_of_the_secrets(
    server: Server, planted: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parts(tmp_path / "archive", 3)
    archive, out = str(tmp_path / "archive"), ("--out", str(tmp_path / "run"))
    with denying_store() as endpoint:
        denied = options(tmp_path, server.at(endpoint), retry_seconds=0)
        ended = [
            planted("clean", server.url("archive"), *out, *denied),
            planted("clean", archive, "--out", server.url("run"), *denied),
            planted("score", server.url("model"), archive, *out, "--set", f"storage.endpoint_url={endpoint}"),
        ]
    config = options(tmp_path, server, retry_seconds=0)
    ended += [
        planted("clean", "s3://no-such-bucket/archive", *out, *config),
        planted("clean", archive, "--out", "s3://no-such-bucket/run", *config),
        planted("clean", archive, *out, *config, "--set", f"features.weights={server.url('none.pth')}"),
        planted("clean", archive, *out, *config, "--set", f"storage.endpoint_url=http://{SECRET_KEY[-9:]}.invalid"),
    ]
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    forget_stores()
    ended.append(planted("clean", server.url("archive"), *out, *config))
    assert all(one.code == 2 for one in ended[:-2]), [(one.code, one.err) for one in ended]
    assert "Traceback" not in "".join(one.err for one in ended)
    assert_no_trace(tmp_path, *ended)

"""Cleaning from Python: options as dictionaries, and what comes back."""

import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import paire
from paire.options import config_from
from tests.support.archives import write_parts
from tests.support.runs import digests, quick_config
from workers.storage.settings import storage_in_use, use_storage

GOOD, DEFECTIVE = 12, 2
TINY: dict[str, Any] = quick_config().model_dump(exclude_unset=True)
GUARDED = {**TINY, "guard": {"accept_untrustworthy": False}}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_parts(folder, GOOD, DEFECTIVE)
    return folder


# --- the job


def test_an_archive_is_cleaned_and_the_run_returned(archive: Path, tmp_path: Path) -> None:
    run = paire.clean(archive, out=tmp_path / "run", progress=True, **TINY)
    assert isinstance(run, paire.Run)
    assert run.url == str(tmp_path / "run")
    assert len(run.manifest) == GOOD + DEFECTIVE
    assert run.config == quick_config()
    assert (tmp_path / "run" / "_SUCCESS").exists()


def test_dictionaries_and_a_config_mean_the_same_run(archive: Path, tmp_path: Path) -> None:
    first = paire.clean(str(archive), out=str(tmp_path / "run"), **TINY)
    before = digests(tmp_path / "run")
    again = paire.clean(archive, out=tmp_path / "run", config=quick_config())
    assert again.run_id == first.run_id
    assert digests(tmp_path / "run") == before


def test_another_job_in_the_same_directory_is_refused_unless_it_starts_over(archive: Path, tmp_path: Path) -> None:
    first = paire.clean(archive, out=tmp_path / "run", **TINY)
    other = {**TINY, "trim": {"eta": 2.6}}
    with pytest.raises(paire.RunConflictError, match=r"trim\.eta: 2\.3 -> 2\.6"):
        paire.clean(archive, out=tmp_path / "run", **other)
    second = paire.clean(archive, out=tmp_path / "run", fresh=True, **other)
    assert second.run_id != first.run_id
    assert second.config.trim.eta == 2.6


def test_an_untrustworthy_result_raises_and_is_published_once_accepted(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(paire.UntrustworthyError, match="not published"):
        paire.clean(archive, out=tmp_path / "run", **GUARDED)
    assert not (tmp_path / "run" / "_SUCCESS").exists()
    run = paire.clean(archive, out=tmp_path / "run", **{**GUARDED, "guard": {"accept_untrustworthy": True}})
    assert (tmp_path / "run" / "_SUCCESS").exists()
    assert repr(run).endswith("; untrustworthy>")


def test_an_empty_archive_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(paire.SourceError):
        paire.clean(tmp_path / "nowhere", out=tmp_path / "run", **TINY)


def test_storage_options_hold_before_anything_is_read(archive: Path, tmp_path: Path) -> None:
    before = storage_in_use()
    try:
        with pytest.raises(paire.SourceError):
            paire.clean(tmp_path / "nowhere", out=tmp_path / "run", storage={"retry_seconds": 3})
        assert storage_in_use().retry_seconds == 3
    finally:
        use_storage(before)


def test_a_script_that_its_own_workers_would_run_again_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, paire\n"
        "if __name__ == '__main__':\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=int)\n"
        "    worker.start()\n"
        "    worker.join()\n"
        "else:\n"
        "    paire.clean('images', out='run')\n"
    )
    root = Path(paire.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "ClusterError: paire.clean was called while a worker process was importing your script." in done.stderr
    assert not (tmp_path / "run").exists()


# --- wrong options; nothing may be written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trim": {"stratgy": "grow"}}, r"unknown option 'trim.stratgy'. Did you mean 'trim.strategy'\?"),
        ({"trimm": {"eta": 2}}, r"unknown option 'trimm'. Did you mean 'trim'\?"),
        ({"trim": {"eta": "much"}}, r"trim.eta = 'much': .*number"),
        ({"trim": {"eta": float("nan")}}, r"trim.eta = 'NaN': .*finite"),
        ({"features": {"image_size": 7}}, r"features.image_size = 7: .*32"),
        ({"trim": "grow"}, r"trim = 'grow' is not a section of options. Give a dictionary .* trim={'eta': 2.6}"),
        ({"schedular": "tcp://a:1"}, r"schedular = 'tcp://a:1' is not a section of options"),
        ({"config": quick_config(), "trim": {"eta": 2}}, r"config and trim are both given"),
        ({"config": {"trim": {"eta": 2}}}, r"config is of type dict, expected paire.Config"),
    ],
)
def test_a_wrong_option_is_a_config_error(archive: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(paire.ConfigError, match=message):
        paire.clean(archive, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_no_password_is_shown() -> None:
    with pytest.raises(paire.ConfigError) as caught:
        config_from({"storage": "https://user:hunter2@store.example.com"})  # type: ignore[dict-item]
    assert "hunter2" not in str(caught.value)


# --- right options


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        ({"trim": {"eta": np.float64(2.6)}}, "trim.eta", 2.6),
        ({"trim": {"eta": np.float32(2.5)}}, "trim.eta", 2.5),
        ({"trim": {"max_iterations": np.int64(3)}}, "trim.max_iterations", 3),
        ({"gaussian": {"ridge": 1e-7}}, "gaussian.ridge", 1e-7),
        ({"features": {"nodes": ("relu", "layer1")}}, "features.nodes", ("relu", "layer1")),
        ({"features": {"nodes": "relu,layer1"}}, "features.nodes", ("relu", "layer1")),
        ({"features": {"weights": Path("/w/größe 🙂.pth")}}, "features.weights", "/w/größe 🙂.pth"),
        ({"features": MappingProxyType({"channels": 100})}, "features.channels", 100),
        ({"features": {"channels": None}}, "features.channels", None),
        ({"cluster": {"processes": False}}, "cluster.processes", False),
        ({"input": {"group_by": "{line}/{camera}/**"}}, "input.group_by", "{line}/{camera}/**"),
        ({"trim": None}, "trim.eta", 2.3),  # as in a YAML file with an empty section
    ],
)
def test_options_mean_what_they_say(options: dict[str, Any], name: str, expected: object) -> None:
    section, _, key = name.partition(".")
    assert getattr(getattr(config_from(options), section), key) == expected


def test_no_options_are_the_defaults() -> None:
    assert config_from({}) == paire.Config()


def test_a_dumped_configuration_is_the_same_one() -> None:
    assert config_from(quick_config().model_dump()) == quick_config()

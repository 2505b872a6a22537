"""Every command on a run, a map, an index or labels of which a file was harmed: one line of error, never a defect."""

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.main import main
from schemas.errors import EXIT_UNEXPECTED
from tests.fuzz.mutations import Mutation, fuzzing, mutate, mutations, tried
from tests.support.archives import write_parts
from tests.support.loggers import restored_loggers
from tests.support.runs import quick_config

LABELS = "image_path,label_index\ngood_000.png,0\nbad_000.png,1\n"

# What each command is given, and the file, of those that it reads, to which something happens. None of them gets as
# far as to the images, whatever happens to the file.
COMMANDS = [
    (("clean", "{archive}", "--out", "{run}", "--config", "{folder}/run.yaml"), "run/run.json"),
    (("clean", "{archive}", "--out", "{run}", "--config", "{folder}/run.yaml"), "run/ledger.json"),
    (("plan", "{folder}/index.csv", "--sample", "0", "--config", "{folder}/run.yaml"), "index.csv"),
    (("plan", "{archive}", "--sample", "0", "--config", "{folder}/run.yaml"), "run.yaml"),
    (("evaluate", "{run}", "--labels", "{folder}/labels.csv"), "labels.csv"),
    (("evaluate", "{run}", "--labels", "{folder}/labels.csv"), "run/manifest.parquet"),
    (("evaluate", "{run}", "--labels", "{folder}/labels.csv"), "run/catalog.parquet"),
    (("recut", "{run}", "--against", "7"), "run/run.json"),
    (("recut", "{run}", "--against", "7"), "run/config.yaml"),
    (("recut", "{run}", "--accept-untrustworthy"), "run/catalog.parquet"),
    (("recut", "{run}", "--accept-untrustworthy"), "run/manifest.parquet"),
    (("recut", "{run}", "--accept-untrustworthy"), "run/ledger.json"),
    (("score", "{run}/model", "{folder}/nothing", "--out", "{folder}/scores"), "run/model/zarr.json"),
    (("trust", "{run}", "--group", "none"), "run/run.json"),
    (("dirty", "{folder}/labels.csv", "--noise", "0.1", "--out", "{folder}/dirty"), "labels.csv"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with an archive, a finished run of it, and files that name its images."""
    folder = tmp_path_factory.mktemp("commands")
    write_parts(folder / "archive", 7, 1)
    (folder / "run.yaml").write_text(quick_config().to_yaml())
    (folder / "index.csv").write_text("image_path,group\narchive/good_000.png,a\narchive/bad_000.png,b\n")
    (folder / "archive" / "labels.csv").write_text(LABELS)
    shutil.copy(folder / "archive" / "labels.csv", folder / "labels.csv")
    with restored_loggers():
        code, said = command(folder, COMMANDS[0][0])
        assert code == 0, said
        yield folder


def command(folder: Path, arguments: tuple[str, ...]) -> tuple[int, str]:
    """Run a command in this process; returns its exit code and all that it has said."""
    filled = [text.format(archive=folder / "archive", run=folder / "run", folder=folder) for text in arguments]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", ["paire", *filled])
        patch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
        try:
            main()
        except SystemExit as ending:
            return int(ending.code or 0), said.getvalue()
    return 0, said.getvalue()


def assert_no_defect(folder: Path, number: int, content: bytes) -> None:
    """Run a command on its file with other content, and put the file back."""
    arguments, name = COMMANDS[number]
    kept = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(content)
        code, said = command(folder, arguments)
    finally:
        (folder / name).write_bytes(kept)
        for made in ("scores", "dirty", "run/recuts", "run/trust"):
            shutil.rmtree(folder / made, ignore_errors=True)
    assert code != EXIT_UNEXPECTED, said
    assert "Traceback" not in said


@fuzzing(60)
@given(number=st.integers(0, len(COMMANDS) - 1), steps=mutations)
def test_no_harmed_file_is_a_defect_of_the_program(folder: Path, number: int, steps: list[Mutation]) -> None:
    tried["commands"] += 1
    content = (folder / COMMANDS[number][1]).read_bytes()
    assert_no_defect(folder, number, mutate(content, steps, [content]))


@pytest.mark.parametrize("number", range(len(COMMANDS)))
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff"], ids=["empty", "no names", "a list", "no text"])
def test_no_foreign_file_is_a_defect_of_the_program(folder: Path, number: int, content: bytes) -> None:
    assert_no_defect(folder, number, content)

"""Compare the study with the command: the whole `paire clean` cleans the same dirty set, from files, on Dask."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pipeline.commands.clean import clean
from pipeline.commands.recut import recut
from schemas.records.run import MANIFEST
from schemas.tables.manifest import CLEAN
from studies.cleaning.dirty_sets import DirtySet
from studies.cleaning.images import GramFile
from studies.cleaning.judge import clean_digests
from studies.cleaning.methods import Method

# Workers are threads of this process. The breakdown guard must not stop a run, as only kept images are compared.
_LOCAL = (
    "cluster.workers=1",
    "cluster.processes=false",
    "cluster.threads_per_worker=2",
    "guard.accept_untrustworthy=true",
)


class Agreement(NamedTuple):
    """How many images the command and the study keep of a dirty set, and how many only one of them keeps."""

    strategy: str
    images: int
    command: int
    study: int
    only_command: int
    only_study: int


def compare_with_command(
    dirty: DirtySet, gram: GramFile, strategies: Sequence[str], base: Sequence[str], folder: Path
) -> Iterator[Agreement]:
    """Yield one agreement for each strategy: the first is cleaned from the images, the others are recut.

    Parameters
    ----------
    dirty
        The set; its lists name existing files.
    gram
        The Gram matrices of its images.
    base
        The settings of the features.
    folder
        Gets the run directory.
    """
    run, settings = str(folder / "run"), [*base, *_LOCAL, f"input.roots={','.join(dirty.roots)}"]
    for number, strategy in enumerate(strategies):
        config = Method(strategy).config(settings)
        url = recut(run, config).run if number else clean(str(dirty.train_list), run, config).run
        kept, own = _kept(url), clean_digests(dirty, gram, config)
        yield Agreement(
            strategy, len(dirty.train.distinct().digests), len(kept), len(own), len(kept - own), len(own - kept)
        )


def agreement_table(agreements: Sequence[Agreement]) -> str:
    """Return the agreements as a Markdown table."""
    lines = ["| strategy | images | kept by the command | by the study | only by the command | only by the study |"]
    lines.append("|---|---|---|---|---|---|")
    lines += ["| " + " | ".join(map(str, one)) + " |" for one in agreements]
    return "\n".join(lines)


def _kept(run: str) -> set[str]:
    manifest = pd.read_parquet(f"{run.removeprefix('file://')}/{MANIFEST}")
    return set(manifest.loc[manifest["decision"] == CLEAN, "content_sha256"])

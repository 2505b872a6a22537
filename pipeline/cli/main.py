"""The command line: parses, runs, and turns every outcome into one line and an exit code."""

import atexit
import gc
import json
import os
import shlex
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.interruption import INTERRUPTED, interruptible
from pipeline.cli.options import Computing, Output, computes, groups_by_path, may_accept, speaks
from pipeline.run_directory.log import one_line
from schemas.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, EXIT_USAGE, PaireError
from schemas.tables.manifest import DECISIONS
from schemas.tables.scores import SCORES

# The stages import torch and dask, which takes seconds: they are imported by the commands that run them, so that
# --help and usage errors answer at once.

# More groups than this are counted, not shown: a table of the ledger by its rows, one of figures by its columns.
_LEDGER_GROUPS = 20
_FIGURE_GROUPS = 8


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paire")
def cli() -> None:
    """Clean huge unlabelled image archives: a manifest of trustworthy images, a Gaussian map for scoring."""


@cli.command()
@click.argument("source")
@click.option("--out", required=True, metavar="RUN", help="Run directory, path or URL.")
@click.option("--fresh", is_flag=True, help="Start over where RUN holds a run: what it left is removed.")
@groups_by_path
@may_accept
@computes
@speaks
def clean(
    source: str,
    out: str,
    fresh: bool,
    group_by: str | None,
    accept_untrustworthy: bool,
    computing: Computing,
    output: Output,
) -> None:
    """Say of every image in SOURCE whether other models may train on it; the same command finishes an unfinished run.

    SOURCE is a folder, an fsspec URL, or a .csv or .parquet index with the column image_path and optionally group.
    """
    config = computing.config(group_by=group_by, accept_untrustworthy=accept_untrustworthy)
    from pipeline.cluster.cluster import opening_cluster

    # The workers load torch while this process does.
    with opening_cluster(config.cluster, computing.scheduler) as opened:
        from pipeline.commands.clean import clean as run_clean

        result = run_clean(
            source,
            out,
            config,
            scheduler=computing.scheduler,
            reporter=output.reporter(),
            opened=opened,
            fresh=fresh,
        )
        output.result(result.to_json(), _ledger_table(result.run, result.ledger))


@cli.command()
@click.argument("source")
@click.option("--sample", type=int, metavar="N", help="Images to try; 0 measures nothing.  [default: 64]")
@click.option("--workers", type=int, metavar="N", help="Workers of the run.  [default: those of the local cluster]")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the sample.")
@groups_by_path
@computes
@speaks
def plan(
    source: str,
    sample: int | None,
    workers: int | None,
    seed: int,
    group_by: str | None,
    computing: Computing,
    output: Output,
) -> None:
    """Say what cleaning SOURCE would cost: bytes, memory, tasks, requests, hours. Touches nothing.

    A sample of images is tried in a temporary directory of this machine; --scheduler is ignored.
    """
    # What this process has computed so far is its own loading, which is part of the start.
    started, config = time.monotonic() - time.process_time(), computing.config(group_by=group_by)
    from pipeline.cluster.cluster import opening_cluster

    # What is tried lies in a directory that only this machine sees.
    os.environ.pop("DASK_SCHEDULER_ADDRESS", None)
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"scheduler": None})})
    # As in clean, so that the start is as long.
    with opening_cluster(config.cluster) if sample != 0 else nullcontext() as opened:
        from pipeline.cli.tables import tabulate
        from pipeline.commands.plan.plan import plan as make_plan

        made = make_plan(source, config, sample=sample, workers=workers, seed=seed, opened=opened, started=started)
        output.result(made.to_json(), tabulate(made))


@cli.command()
@click.argument("model")
@click.argument("source")
@click.option("--out", required=True, metavar="DIR", help="Directory for scores.parquet and the maps.")
@click.option("--group", metavar="NAME", help="Score all images under this group's Gaussians.")
@click.option("--maps", is_flag=True, help="Also write a heat map over each image.")
@click.option("--anomaly-maps", is_flag=True, help="Also store the distances at each position, for pixel metrics.")
@groups_by_path
@computes
@speaks
def score(
    model: str,
    source: str,
    out: str,
    group: str | None,
    maps: bool,
    anomaly_maps: bool,
    group_by: str | None,
    computing: Computing,
    output: Output,
) -> None:
    """Score the images in SOURCE under the Gaussian map MODEL (RUN/model) of a finished run."""
    config = computing.config(group_by=group_by)
    from pipeline.commands.score import score as run_score

    scores = run_score(
        model,
        source,
        out,
        config,
        group=group,
        maps=maps,
        anomaly_maps=anomaly_maps,
        scheduler=computing.scheduler,
        reporter=output.reporter(),
    )
    scored = scores[scores["anomaly_score"].notna()]
    result = {
        "scores": str(Path(out) / SCORES) if "://" not in out else f"{out.rstrip('/')}/{SCORES}",
        "inputs": len(scores),
        "scored": len(scored),
        "anomalous": int(scored["is_anomalous"].astype(bool).sum()),
    }
    counts = ("inputs", "scored", "anomalous")
    table = Table(*counts, title=Text(one_line(str(result["scores"]))), title_justify="left", box=SIMPLE_HEAD)
    table.add_row(*(str(result[name]) for name in counts))
    output.result(result, table)


@cli.command()
@click.argument("run")
@click.option(
    "--against",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Version to compare with; 0 is RUN itself.",
)
@may_accept
@computes
@speaks
def recut(run: str, against: int, accept_untrustworthy: bool, computing: Computing, output: Output) -> None:
    """Judge a finished RUN anew with other options: a new version in RUN/recuts, and which decisions changed.

    Only options of gaussian and trim can change; they start from the run's. No image is read again.
    """
    wanted = computing.config(accept_untrustworthy=accept_untrustworthy)
    from pipeline.commands.recut import recut as run_recut

    result = run_recut(run, wanted, against=against, scheduler=computing.scheduler, reporter=output.reporter())
    output.result(result.to_json(), _changes_table(result.run, result.ledger, result.changes))


@cli.command()
@click.argument("run")
@click.option("--out", metavar="DIR", help="Empty directory for figures and pictures.  [default: RUN/trust]")
@click.option("--group", metavar="NAME", help="Try this product group only.")
@click.option("--images", type=int, default=32, show_default=True, help="Kept images of each group to plant into.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws images, places and shapes.")
@computes
@speaks
def trust(
    run: str, out: str | None, group: str | None, images: int, seed: int, computing: Computing, output: Output
) -> None:
    """Plant defects into images that a finished RUN kept, and say which it would have caught."""
    config = computing.config()
    from pipeline.commands.trust.trust import trust as run_trust

    result = run_trust(
        run,
        config,
        out=out,
        group=group,
        images=images,
        seed=seed,
        scheduler=computing.scheduler,
        reporter=output.reporter(),
    )
    output.result(result.to_json(), _recall_table(result.out, result.overall.to_json()))


@cli.command()
@click.argument("run")
@click.option("--out", required=True, metavar="FILE", help="The .png file to write, path or URL.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the kept images and the pairs.")
@speaks
def sheet(run: str, out: str, seed: int, output: Output) -> None:
    """Draw a finished RUN as one picture: images that it kept, that it rejected, and that it found twice."""
    from pipeline.commands.sheet.sheet import sheet as draw_sheet

    drawn = draw_sheet(run, out, seed=seed)
    output.result(drawn.to_json())
    output.console.print(one_line(f"drew {drawn.out}"), highlight=False, markup=False, soft_wrap=True)


@cli.command()
@click.option("--out", default="demo-run", show_default=True, metavar="DIR", help="Directory to create.")
@computes
@speaks
def demo(out: str, computing: Computing, output: Output) -> None:
    """Clean a synthetic archive with known defects, without any network."""
    from pipeline.commands.demo import DEMO_SETTINGS, make_archive, verdict_on

    config = computing.config(defaults=DEMO_SETTINGS)
    from pipeline.commands.clean import clean as run_clean

    archive, run = make_archive(Path(out)), str(Path(out) / "run")
    result = run_clean(str(archive), run, config, scheduler=computing.scheduler, reporter=output.reporter())
    verdict = verdict_on(Path(out))
    output.result({**result.to_json(), "verdict": verdict.to_json()}, _ledger_table(result.run, result.ledger))
    output.console.print(verdict.in_words(), highlight=False, soft_wrap=True)
    if not verdict.all_found:
        raise PaireError(f"{verdict.defects - verdict.found} planted defects were not found; see {result.run}.")


@cli.command()
@click.argument("result")
@click.option("--labels", required=True, metavar="FILE", help=".csv with image_path and label_index, or labelled tree.")
@click.option("--masks", metavar="DIR", help="Folder of ground-truth masks.")
@click.option("--out", metavar="DIR", help="Directory for evaluation.json, evaluation.csv and curves.png.")
@speaks
def evaluate(result: str, labels: str, masks: str | None, out: str | None, output: Output) -> None:
    """Compare RESULT with true labels: AUROC, AP, purity, kept share, and with masks pixel AUROC and AUPRO.

    RESULT is a finished run, or a directory that 'paire score' has written (masks need its --anomaly-maps).
    """
    import pandas as pd

    from pipeline.commands.evaluate.curves import draw_curves
    from pipeline.commands.evaluate.evaluate import evaluate as run_evaluate
    from schemas.tables.columns import csv_for_people
    from workers.storage.directory import Directory

    evaluation = run_evaluate(Directory.at(result), labels, masks=masks)
    figures = evaluation.table()
    if out is not None:
        directory = Directory.at(out)
        directory.write("evaluation.json", json.dumps(evaluation.to_json(), indent=2).encode())
        directory.write("evaluation.csv", csv_for_people(figures))
        directory.write("curves.png", draw_curves(evaluation))
    # One figure a line: they are too many for the width of a terminal. The last row is the one for all groups.
    shown = figures if len(figures) <= _FIGURE_GROUPS else pd.concat([figures[: _FIGURE_GROUPS - 1], figures[-1:]])
    table = Table("", *(Column(header=Text(one_line(str(group)))) for group in shown["group"]), box=SIMPLE_HEAD)
    for name in figures.columns.drop("group"):
        table.add_row(name.replace("_", " "), *map(_figure, shown[name]))
    output.result(evaluation.to_json(), table)


@cli.command()
@click.argument("source")
@click.option("--noise", type=float, required=True, metavar="SHARE", help="Share of anomalies, like 0.1.")
@click.option("--out", required=True, metavar="DIR", help="Directory to create.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the images.")
@click.option("--no-overlap", is_flag=True, help="Take the drawn anomalies out of the test set.")
@speaks
def dirty(source: str, noise: float, out: str, seed: int, no_overlap: bool, output: Output) -> None:
    """Make a dirty training set from labelled data, as the paper does.

    SOURCE is an MVTec-, BTAD- or KolektorSDD2-style folder of one product, or a .csv with image_path and label_index.
    """
    from pipeline.commands.dirty import make_dirty

    made = make_dirty(source, out, noise=noise, seed=seed, overlap=not no_overlap)
    counts = made.counts
    table = Table("training set", "test set", title=Text(one_line(out)), title_justify="left", box=SIMPLE_HEAD)
    table.add_row(
        f"{counts.train_normals} normal, {counts.train_anomalies} anomalous",
        f"{counts.test_normals} normal, {counts.test_anomalies} anomalous",
    )
    output.result(made.to_json(), table)
    roots = shlex.quote(f"input.roots={','.join(made.roots)}")
    command = one_line(f"To clean it: paire clean {shlex.quote(made.train)} --out RUN --set {roots}")
    output.console.print(command, highlight=False, markup=False, soft_wrap=True)


def _figure(value: Any) -> str:
    """Return a count as it is, a share with four digits, and nothing where a figure is undefined."""
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) and not value.is_integer() else f"{value:g}"


def _ledger_table(run: str, ledger: dict[str, Any]) -> Table:
    """Return the ledger for people: one row per group, at most twenty, and the total."""
    groups = ledger["groups"]
    table = Table("group", "inputs", *DECISIONS, title=Text(one_line(run)), title_justify="left", box=SIMPLE_HEAD)
    for name, entry in list(groups.items())[:_LEDGER_GROUPS]:
        table.add_row(Text(one_line(name)), *(str(entry[key]) for key in ("inputs", *DECISIONS)))
    if len(groups) > _LEDGER_GROUPS:
        table.add_row(f"... {len(groups) - _LEDGER_GROUPS} more in ledger.json")
    if len(groups) > 1:
        table.add_section()
        table.add_row("total", *(str(ledger["total"][key]) for key in ("inputs", *DECISIONS)))
    return table


def main() -> None:
    """Run the command line; every error ends as one line on stderr and an exit code."""
    # Searching torch's million objects for garbage before they go anyway takes two seconds.
    atexit.register(gc.freeze)
    try:
        with interruptible():
            cli.main(standalone_mode=False)
    except click.exceptions.Exit as ending:
        sys.exit(ending.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "paire"
        _fail(f"{error.format_message()} See '{command} --help'.", EXIT_USAGE)
    except (KeyboardInterrupt, click.Abort):
        _fail(INTERRUPTED, EXIT_INTERRUPTED)
    except PaireError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last resort of a command that never shows a traceback
        if os.environ.get("PAIRE_DEBUG"):
            traceback.print_exc()
        detail = " ".join(str(error).split())
        _fail(
            f"unexpected {type(error).__name__}: {detail}. This is a defect of the program or its environment; the run "
            "directory's log.jsonl, or PAIRE_DEBUG=1, has the details.",
            EXIT_UNEXPECTED,
        )


def _fail(message: str, exit_code: int) -> None:
    print(f"paire: error: {one_line(message)}", file=sys.stderr)
    sys.exit(exit_code)


def _changes_table(run: str, ledger: dict[str, Any], changes: dict[str, Any]) -> Table:
    """Return what a recut changed, for people: one row per group, at most twenty, and the total."""
    names = ("added", "removed", "unchanged")
    table = Table("group", "inputs", "clean", *names, title=Text(one_line(run)), title_justify="left", box=SIMPLE_HEAD)

    def add(name: str, books: dict[str, Any], counts: dict[str, int]) -> None:
        cells = [str(books["inputs"]), str(books["clean"]), *(str(counts[key]) for key in names)]
        table.add_row(Text(one_line(name)), *cells)

    groups = ledger["groups"]
    for name in list(groups)[:_LEDGER_GROUPS]:
        add(name, groups[name], changes["groups"][name])
    if len(groups) > _LEDGER_GROUPS:
        table.add_row(f"... {len(groups) - _LEDGER_GROUPS} more in changes.json")
    if len(groups) > 1:
        table.add_section()
        add("total", ledger["total"], changes["total"])
    return table


def _recall_table(out: str, overall: dict[str, Any]) -> Table:
    """Return recall for people: a row per kind and contrast, a column per size, and the false rejects below."""
    recall = overall["recall"]
    sizes = list(dict.fromkeys(cell["size"] for cell in recall))
    table = Table(
        "recall",
        "",
        *(f"{size:.0%}" for size in sizes),
        title=Text(one_line(out)),
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for kind, contrast in dict.fromkeys((cell["kind"], cell["contrast"]) for cell in recall):
        row = [cell for cell in recall if (cell["kind"], cell["contrast"]) == (kind, contrast)]
        table.add_row(kind, contrast, *(f"{cell['recall']:.2f}" for cell in row))
    rate, low, high = (overall[f"false_reject_{name}"] for name in ("rate", "low", "high"))
    table.caption = (
        f"untouched images rejected: {overall['false_rejects']} of {overall['images']}, "
        f"{rate:.1%} ({low:.1%} to {high:.1%})"
    )
    table.caption_justify = "left"
    return table

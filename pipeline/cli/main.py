"""The command line: each command parses its options, runs one job and shows the result; errors end in exit codes."""

import atexit
import gc
import os
import shlex
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

import click

from pipeline.cli.interruption import INTERRUPTED, interruptible
from pipeline.cli.options import Computing, Output, computes, groups_by_path, may_accept, speaks
from pipeline.cli.tables import changes_table, dirty_table, figures_table, ledger_table, recall_table, scores_table
from pipeline.run_directory.log import one_line
from schemas.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, EXIT_USAGE, PaireError

# Jobs import torch and dask, which takes seconds. Each command imports its own job, so that --help and usage errors
# answer at once.


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paire")
def cli() -> None:
    """Find the images in a huge unlabelled archive that are safe to train on, and score new images against them."""


@cli.command()
@click.argument("source")
@click.option("--out", required=True, metavar="RUN", help="Run directory, path or URL.")
@click.option("--fresh", is_flag=True, help="Delete the run in RUN, if there is one, and start over.")
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
    """Decide for every image in SOURCE whether it is safe to train on. The same command resumes an unfinished run.

    SOURCE is a folder, an fsspec URL, or a .csv or .parquet index with the column image_path and, optionally, group.
    """
    config = computing.config(group_by=group_by, accept_untrustworthy=accept_untrustworthy)
    from pipeline.cluster.cluster import opening_cluster

    # The workers load torch while this process loads it.
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
        output.result(result.to_json(), ledger_table(result.run, result.ledger))


@cli.command()
@click.argument("source")
@click.option("--sample", type=int, metavar="N", help="Images to process as a trial; 0 for no trial.  [default: 64]")
@click.option("--workers", type=int, metavar="N", help="Workers that the run will have.  [default: as on this machine]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")
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
    """Estimate what cleaning SOURCE would cost.

    The result is bytes, memory, tasks, requests and hours. SOURCE is only read: a sample of its images is processed on
    this machine in a temporary directory. --scheduler is ignored.
    """
    # The CPU time so far went into loading this process, which is part of a run's start.
    started, config = time.monotonic() - time.process_time(), computing.config(group_by=group_by)
    from pipeline.cluster.cluster import opening_cluster

    # The sample lies in a temporary directory that only this machine sees. The cluster opens in the background as in
    # `clean`, so that the start takes as long.
    with opening_cluster(config.cluster, local_only=True) if sample != 0 else nullcontext() as opened:
        from pipeline.cli.plan_table import tabulate
        from pipeline.commands.plan.plan import plan as make_plan

        made = make_plan(source, config, sample=sample, workers=workers, seed=seed, opened=opened, started=started)
        output.result(made.to_json(), tabulate(made))


@cli.command()
@click.argument("model")
@click.argument("source")
@click.option("--out", required=True, metavar="DIR", help="Directory for scores.parquet and the maps.")
@click.option("--group", metavar="NAME", help="Score every image under this group's Gaussians.")
@click.option("--maps", is_flag=True, help="Also write a heat map over each image.")
@click.option("--anomaly-maps", is_flag=True, help="Also store the distance at each position, for pixel metrics.")
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
    """Score the images in SOURCE under a Gaussian map.

    MODEL is a finished run or its map, RUN/model. SOURCE is as for 'paire clean'.
    """
    config = computing.config(group_by=group_by)
    from pipeline.commands.score import score as run_score
    from pipeline.commands.score import summarise_scores

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
    result = summarise_scores(scores, out)
    output.result(result, scores_table(result))


@cli.command()
@click.argument("run")
@click.option(
    "--against",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Version to compare with; 0 means RUN itself.",
)
@may_accept
@computes
@speaks
def recut(run: str, against: int, accept_untrustworthy: bool, computing: Computing, output: Output) -> None:
    """Judge a finished RUN again with other options.

    Writes a new version into RUN/recuts and shows which decisions change. All options default to those of the run, and
    only those of gaussian and trim can change. No image is read again.
    """
    wanted = computing.config(accept_untrustworthy=accept_untrustworthy)
    from pipeline.commands.recut import recut as run_recut

    result = run_recut(run, wanted, against=against, scheduler=computing.scheduler, reporter=output.reporter())
    output.result(result.to_json(), changes_table(result.run, result.ledger, result.changes))


@cli.command()
@click.argument("run")
@click.option("--out", metavar="DIR", help="Empty directory for the figures and pictures.  [default: RUN/trust]")
@click.option("--group", metavar="NAME", help="Test only this product group.")
@click.option("--images", type=int, default=32, show_default=True, help="Kept images per group to plant defects into.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the images, places and shapes.")
@computes
@speaks
def trust(
    run: str, out: str | None, group: str | None, images: int, seed: int, computing: Computing, output: Output
) -> None:
    """Measure which defects a finished RUN would have caught.

    Plants defects of known size and contrast into images that the run kept, and scores them as new images.
    """
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
    output.result(result.to_json(), recall_table(result.out, result.overall.to_json()))


@cli.command()
@click.argument("run")
@click.option("--out", required=True, metavar="FILE", help="The .png file to write, path or URL.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the kept images and the pairs.")
@speaks
def sheet(run: str, out: str, seed: int, output: Output) -> None:
    """Draw a finished RUN as one picture.

    The picture shows images that the run kept, that it rejected, and that it found twice.
    """
    from pipeline.commands.sheet.sheet import sheet as draw_sheet

    drawn = draw_sheet(run, out, seed=seed)
    output.result(drawn.to_json())
    output.console.print(one_line(f"drew {drawn.out}"), highlight=False, markup=False, soft_wrap=True)


@cli.command()
@click.option("--out", default="demo-run", show_default=True, metavar="DIR", help="Directory to create.")
@computes
@speaks
def demo(out: str, computing: Computing, output: Output) -> None:
    """Clean a synthetic archive with known defects. Needs no network."""
    from pipeline.commands.demo import DEMO_SETTINGS, make_archive, verdict_on

    config = computing.config(defaults=DEMO_SETTINGS)
    from pipeline.commands.clean import clean as run_clean

    archive, run = make_archive(Path(out)), str(Path(out) / "run")
    result = run_clean(str(archive), run, config, scheduler=computing.scheduler, reporter=output.reporter())
    verdict = verdict_on(Path(out))
    output.result({**result.to_json(), "verdict": verdict.to_json()}, ledger_table(result.run, result.ledger))
    output.console.print(verdict.in_words(), highlight=False, soft_wrap=True)
    if not verdict.all_found:
        raise PaireError(f"{verdict.defects - verdict.found} planted defects were not found. See {result.run}.")


@cli.command()
@click.argument("result")
@click.option(
    "--labels", required=True, metavar="FILE", help="Labelled folder, or .csv with image_path and label_index."
)
@click.option("--masks", metavar="DIR", help="Folder of ground-truth masks.")
@click.option("--out", metavar="DIR", help="Directory for evaluation.json, evaluation.csv and curves.png.")
@speaks
def evaluate(result: str, labels: str, masks: str | None, out: str | None, output: Output) -> None:
    """Compare a run or scores with true labels.

    RESULT is a finished run or the --out directory of 'paire score'. The figures are AUROC, AP, purity and kept share;
    with masks also pixel AUROC and AUPRO, which scores have only with --anomaly-maps.
    """
    from pipeline.commands.evaluate.evaluate import evaluate as run_evaluate

    evaluation = run_evaluate(result, labels, masks=masks, out=out)
    output.result(evaluation.to_json(), figures_table(evaluation.table()))


@cli.command()
@click.argument("source")
@click.option("--noise", type=float, required=True, metavar="SHARE", help="Share of anomalies in the set, like 0.1.")
@click.option("--out", required=True, metavar="DIR", help="Directory to create.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw.")
@click.option("--no-overlap", is_flag=True, help="Remove the drawn anomalies from the test set.")
@speaks
def dirty(source: str, noise: float, out: str, seed: int, no_overlap: bool, output: Output) -> None:
    """Make a dirty training set from labelled data, as in the paper.

    SOURCE is the folder of one product, laid out as in MVTec AD, BTAD or KolektorSDD2, or a .csv with image_path and
    label_index.
    """
    from pipeline.commands.dirty import make_dirty

    made = make_dirty(source, out, noise=noise, seed=seed, overlap=not no_overlap)
    result = made.to_json()
    output.result(result, dirty_table(out, result["counts"]))
    roots = shlex.quote(f"input.roots={','.join(made.roots)}")
    command = one_line(f"To clean it: paire clean {shlex.quote(made.train)} --out RUN --set {roots}")
    output.console.print(command, highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line. Every error ends in one line on stderr and an exit code."""
    # A last garbage collection through torch's million objects would take two seconds.
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
    except Exception as error:  # noqa: BLE001 - the last resort: users never see a traceback
        if os.environ.get("PAIRE_DEBUG"):
            traceback.print_exc()
        detail = " ".join(str(error).split())
        _fail(
            f"unexpected {type(error).__name__}: {detail}. This is a bug or a broken environment. For details see "
            "log.jsonl in the run directory, or set PAIRE_DEBUG=1.",
            EXIT_UNEXPECTED,
        )


def _fail(message: str, exit_code: int) -> None:
    print(f"paire: error: {one_line(message)}", file=sys.stderr)
    sys.exit(exit_code)

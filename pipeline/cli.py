"""The command line: parses, runs, and turns every outcome into one line and an exit code."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipeline.log import one_line, show_on
from pipeline.progress import Reporter
from schemas.config import Config, parse_config
from schemas.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, EXIT_USAGE, ConfigError, PaireError
from schemas.manifest import DECISIONS

# The stages import torch and dask, which takes seconds: they are imported by the commands that run them, so that
# --help and usage errors answer at once.

Command = TypeVar("Command", bound=Callable[..., Any])


class _Output:
    """Where a command speaks: people on stderr, machines on stdout."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.as_json = as_json
        show_on(self.console, quiet=quiet)

    def reporter(self) -> Reporter:
        return Reporter(self.console)

    def result(self, result: dict[str, Any], table: Table | None = None) -> None:
        if table is not None:
            self.console.print(table)
        if self.as_json:
            click.echo(json.dumps(result, ensure_ascii=False))


def _speaking(command: Command) -> Command:
    """Add the options that say where and how much a command speaks."""
    command = click.option("--quiet", is_flag=True, help="Show nothing but errors.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")(command)


def _common(command: Command) -> Command:
    """Add the options of every command that computes."""
    command = _speaking(command)
    for option in reversed(
        [
            click.option("--config", "config_path", metavar="FILE", help="YAML configuration file."),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="SECTION.KEY=VALUE",
                help="Set one option; repeatable, wins over --config.",
            ),
            click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler, like tcp://host:8786."),
        ]
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paire")
def cli() -> None:
    """Clean huge unlabelled image archives: a manifest of trustworthy images, a Gaussian map for scoring."""


@cli.command()
@click.argument("source")
@click.option("--out", required=True, metavar="RUN", help="Run directory, path or URL.")
@click.option("--group-by", metavar="TEMPLATE", help="Group by path, like '{line}/{camera}/**'.")
@_common
def clean(
    source: str,
    out: str,
    group_by: str | None,
    config_path: str | None,
    settings: tuple[str, ...],
    scheduler: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say of every image in SOURCE whether other models may train on it.

    SOURCE is a folder, an fsspec URL, or a .csv or .parquet index with the column image_path and optionally group.
    """
    config = _configuration(config_path, settings, group_by)
    output = _Output(quiet=quiet, as_json=as_json)
    from pipeline.run import clean as run_clean

    result = run_clean(source, out, config, scheduler=scheduler, reporter=output.reporter())
    output.result(result.to_json(), _ledger_table(result.run, result.ledger))


@cli.command()
@click.argument("model")
@click.argument("source")
@click.option("--out", required=True, metavar="DIR", help="Directory for scores.parquet and maps/.")
@click.option("--group", metavar="NAME", help="Score all images under this group's Gaussians.")
@click.option("--group-by", metavar="TEMPLATE", help="Group by path, like '{line}/{camera}/**'.")
@click.option("--maps", is_flag=True, help="Also write a heat map over each image.")
@_common
def score(
    model: str,
    source: str,
    out: str,
    group: str | None,
    group_by: str | None,
    maps: bool,
    config_path: str | None,
    settings: tuple[str, ...],
    scheduler: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score the images in SOURCE under the Gaussian map MODEL (RUN/model) of a finished run."""
    config = _configuration(config_path, settings, group_by)
    output = _Output(quiet=quiet, as_json=as_json)
    from pipeline.scoring import score as run_score

    scores = run_score(
        model, source, out, config, group=group, maps=maps, scheduler=scheduler, reporter=output.reporter()
    )
    scored = scores[scores["anomaly_score"].notna()]
    result = {
        "scores": str(Path(out) / "scores.parquet") if "://" not in out else f"{out.rstrip('/')}/scores.parquet",
        "inputs": len(scores),
        "scored": len(scored),
        "anomalous": int(scored["is_anomalous"].astype(bool).sum()),
    }
    table = Table(
        "inputs",
        "scored",
        "anomalous",
        title=Text(one_line(str(result["scores"]))),
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_row(*(str(result[name]) for name in ("inputs", "scored", "anomalous")))
    output.result(result, table)


@cli.command()
@click.option("--out", default="demo-run", show_default=True, metavar="DIR", help="Directory to create.")
@_common
def demo(
    out: str,
    config_path: str | None,
    settings: tuple[str, ...],
    scheduler: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Clean a synthetic archive with known defects, without any network."""
    from pipeline.demo import DEMO_SETTINGS, make_archive, verdict_on

    config = _configuration(config_path, (*DEMO_SETTINGS, *settings), None)
    output = _Output(quiet=quiet, as_json=as_json)
    from pipeline.run import clean as run_clean

    archive = make_archive(Path(out))
    result = run_clean(str(archive), str(Path(out) / "run"), config, scheduler=scheduler, reporter=output.reporter())
    verdict = verdict_on(Path(out))
    output.result({**result.to_json(), "verdict": verdict.to_json()}, _ledger_table(result.run, result.ledger))
    output.console.print(verdict.in_words(), highlight=False, soft_wrap=True)
    if not verdict.all_found:
        raise PaireError(f"{verdict.defects - verdict.found} planted defects were not found; see {result.run}.")


@cli.command()
@click.argument("run")
@click.option("--labels", required=True, metavar="FILE", help=".csv with image_path and label_index, or labelled tree.")
@click.option("--masks", metavar="DIR", help="Folder of ground-truth masks.")
@click.option("--out", metavar="DIR", help="Directory for evaluation.json, evaluation.csv and curves.png.")
@_speaking
def evaluate(run: str, labels: str, masks: str | None, out: str | None, as_json: bool, quiet: bool) -> None:
    """Compare a finished RUN with true labels: purity, kept share, AUROC, and with masks pixel AUROC and AUPRO."""
    output = _Output(quiet=quiet, as_json=as_json)
    from pipeline.curves import draw_curves
    from pipeline.evaluate import evaluate_run
    from workers.storage import Directory

    evaluation = evaluate_run(Directory.at(run), labels, masks=masks)
    figures = evaluation.table()
    if out is not None:
        directory = Directory.at(out)
        directory.write("evaluation.json", json.dumps(evaluation.to_json(), indent=2).encode())
        directory.write("evaluation.csv", figures.to_csv(index=False).encode())
        directory.write("curves.png", draw_curves(evaluation))
    # One figure a line: they are too many for the width of a terminal.
    table = Table("", *(Column(header=Text(one_line(str(group)))) for group in figures["group"][:8]), box=SIMPLE_HEAD)
    for name in figures.columns.drop("group"):
        table.add_row(name.replace("_", " "), *(_figure(value) for value in figures[name][:8]))
    output.result(evaluation.to_json(), table)


def _figure(value: Any) -> str:
    """Return a count as it is, a share with four digits, and nothing where a figure is undefined."""
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) and not value.is_integer() else f"{value:g}"


@cli.command()
@click.argument("source")
@click.option("--noise", type=float, required=True, metavar="SHARE", help="Share of anomalies, like 0.1.")
@click.option("--out", required=True, metavar="DIR", help="Directory to create.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the images.")
@click.option("--no-overlap", is_flag=True, help="Take the drawn anomalies out of the test set.")
@_speaking
def dirty(source: str, noise: float, out: str, seed: int, no_overlap: bool, as_json: bool, quiet: bool) -> None:
    """Make a dirty training set from labelled data, as the paper does.

    SOURCE is an MVTec-, BTAD- or KolektorSDD2-style folder of one product, or a .csv with image_path and label_index.
    """
    output = _Output(quiet=quiet, as_json=as_json)
    from pipeline.dirty import make_dirty

    made = make_dirty(source, out, noise=noise, seed=seed, overlap=not no_overlap)
    counts = made.counts
    table = Table("training set", "test set", title=Text(one_line(out)), title_justify="left", box=SIMPLE_HEAD)
    table.add_row(
        f"{counts.train_normals} normal, {counts.train_anomalies} anomalous",
        f"{counts.test_normals} normal, {counts.test_anomalies} anomalous",
    )
    output.result(made.to_json(), table)


def main() -> None:
    """Run the command line; every error ends as one line on stderr and an exit code."""
    try:
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
        _fail("interrupted; run the same command again to finish.", EXIT_INTERRUPTED)
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


def _configuration(path: str | None, settings: tuple[str, ...], group_by: str | None) -> Config:
    """Return the configuration of a command."""
    text = None
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {path!r} can not be read ({type(error).__name__}). Check the path.") from error
    if group_by is not None:
        settings = (*settings, f"input.group_by={group_by}")
    return parse_config(text, settings, origin=path or "configuration")


def _ledger_table(run: str, ledger: dict[str, Any]) -> Table:
    """Return the ledger for people: one row per group, at most twenty, and the total."""
    groups = ledger["groups"]
    table = Table("group", "inputs", *DECISIONS, title=Text(one_line(run)), title_justify="left", box=SIMPLE_HEAD)
    for name, entry in list(groups.items())[:20]:
        table.add_row(Text(one_line(name)), *(str(entry[key]) for key in ("inputs", *DECISIONS)))
    if len(groups) > 20:
        table.add_row(f"... {len(groups) - 20} more in ledger.json")
    if len(groups) > 1:
        table.add_section()
        table.add_row("total", *(str(ledger["total"][key]) for key in ("inputs", *DECISIONS)))
    return table

"""What commands share: the options that most of them take, and their output."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from pipeline.cluster.progress import Reporter
from pipeline.run_directory.log import show_on
from schemas.config import Config, parse_config
from schemas.errors import ConfigError
from workers.storage.settings import use_storage

Command = Callable[..., Any]


class Output:
    """The output of a command: for people on stderr, for machines on stdout."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.as_json = as_json
        show_on(self.console, quiet=quiet)

    def reporter(self) -> Reporter:
        """Return a reporter that shows progress on stderr."""
        return Reporter(self.console)

    def result(self, result: dict[str, Any], table: Table | None = None) -> None:
        """Show a command's result: the table to people and, with ``--json``, the JSON to machines."""
        if table is not None:
            self.console.print(table)
        if self.as_json:
            click.echo(json.dumps(result, ensure_ascii=False))


@dataclass(frozen=True)
class Computing:
    """The options of every command that computes.

    Attributes
    ----------
    config_path
        YAML configuration file.
    settings
        Each ``section.key=value``; later ones win.
    scheduler
        Address of a Dask scheduler; None leaves the choice to the environment and the configuration.
    """

    config_path: str | None
    settings: tuple[str, ...]
    scheduler: str | None

    def config(
        self, *, defaults: Sequence[str] = (), group_by: str | None = None, accept_untrustworthy: bool = False
    ) -> Config:
        """Return the configuration of the command, and apply its ``storage`` section to this process.

        The other options win over the settings, these over the command's own defaults, these over the file.

        Raises
        ------
        ConfigError
            When the file cannot be read, or an option is unknown or has a wrong value.
        """
        text = None
        if self.config_path is not None:
            try:
                text = Path(self.config_path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"--config {self.config_path!r} cannot be read ({type(error).__name__}). Check the path."
                ) from error
        settings = (*defaults, *self.settings)
        if group_by is not None:
            settings = (*settings, f"input.group_by={group_by}")
        if accept_untrustworthy:
            settings = (*settings, "guard.accept_untrustworthy=true")
        config = parse_config(text, settings, origin=self.config_path or "configuration")
        use_storage(config.storage)
        return config


def speaks(command: Command) -> Command:
    """Add ``--json`` and ``--quiet``, and pass the command an `Output` as ``output``."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
    @click.option("--quiet", is_flag=True, help="Show only errors.")
    @functools.wraps(command)
    def with_output(*, as_json: bool, quiet: bool, **others: Any) -> Any:
        return command(output=Output(quiet=quiet, as_json=as_json), **others)

    return with_output


def computes(command: Command) -> Command:
    """Add ``--config``, ``--set`` and ``--scheduler``, and pass the command a `Computing` as ``computing``."""

    @click.option("--config", "config_path", metavar="FILE", help="YAML configuration file.")
    @click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Set one option; repeatable; overrides --config.",
    )
    @click.option("--scheduler", metavar="ADDRESS", help="Address of a Dask scheduler, like tcp://host:8786.")
    @functools.wraps(command)
    def with_computing(
        *, config_path: str | None, settings: tuple[str, ...], scheduler: str | None, **others: Any
    ) -> Any:
        return command(computing=Computing(config_path, settings, scheduler), **others)

    return with_computing


def groups_by_path(command: Command) -> Command:
    """Add ``--group-by``, passed as ``group_by``."""
    return click.option("--group-by", metavar="TEMPLATE", help="Derive groups from paths, like '{line}/{camera}/**'.")(
        command
    )


def may_accept(command: Command) -> Command:
    """Add ``--accept-untrustworthy``, passed as ``accept_untrustworthy``."""
    return click.option(
        "--accept-untrustworthy", is_flag=True, help="Publish the result even if the breakdown guard does not trust it."
    )(command)

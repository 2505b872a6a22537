"""Options that commands share: one precedence, one place to speak, whatever the command."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.table import Table

from pipeline.cli.main import cli
from pipeline.cli.options import Computing, Output, computes, groups_by_path, may_accept, speaks
from schemas.errors import ConfigError
from tests.support.loggers import restored_loggers


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    with restored_loggers():
        yield


@click.command()
@click.argument("name")
@groups_by_path
@may_accept
@computes
@speaks
def probe(name: str, group_by: str | None, accept_untrustworthy: bool, computing: Computing, output: Output) -> None:
    """Show what a command is given."""
    defaults = ["trim.eta=2.1", "trim.tau=1.5"]
    config = computing.config(defaults=defaults, group_by=group_by, accept_untrustworthy=accept_untrustworthy)
    result: dict[str, Any] = {"name": name, "scheduler": computing.scheduler, **config.model_dump(mode="json")}
    table = Table("a column for people")
    table.add_row(name)
    output.result(result, table)


def given(*arguments: str) -> dict[str, Any]:
    ended = CliRunner().invoke(probe, [*arguments, "--json"], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_settings_go_before_the_commands_own_defaults_and_those_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("trim: {eta: 2.9, tau: 1.9, alpha: 0.2}\n")
    found = given("x", "--config", str(path), "--set", "trim.eta=2.4", "--set", "trim.eta=2.5")
    assert [found["trim"][name] for name in ("eta", "tau", "alpha")] == [2.5, 1.5, 0.2]


def test_the_group_template_goes_before_a_setting() -> None:
    assert given("x", "--set", "input.group_by={a}/*", "--group-by", "{b}/*")["input"]["group_by"] == "{b}/*"
    assert given("x", "--set", "input.group_by={a}/*")["input"]["group_by"] == "{a}/*"


@pytest.mark.parametrize("setting", ["true", "false"])
def test_accepting_by_option_goes_before_a_setting(setting: str) -> None:
    settings = ("--set", f"guard.accept_untrustworthy={setting}")
    assert given("x", *settings, "--accept-untrustworthy")["guard"]["accept_untrustworthy"]
    assert given("x", *settings)["guard"]["accept_untrustworthy"] == (setting == "true")
    assert not given("x")["guard"]["accept_untrustworthy"]


def test_arguments_of_the_command_itself_and_the_scheduler_arrive() -> None:
    found = given("x", "--scheduler", "tcp://host:1")
    assert (found["name"], found["scheduler"]) == ("x", "tcp://host:1")
    assert given("y")["scheduler"] is None


def test_people_read_stderr_and_machines_stdout() -> None:
    spoken = CliRunner().invoke(probe, ["x"])
    assert (spoken.stdout, "a column for people" in spoken.stderr) == ("", True)
    both = CliRunner().invoke(probe, ["x", "--json"])
    assert json.loads(both.stdout)["name"] == "x"
    assert "a column for people" in both.stderr
    quiet = CliRunner().invoke(probe, ["x", "--json", "--quiet"])
    assert (quiet.stdout, quiet.stderr) == (both.stdout, "")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--config '.*run\.yaml' cannot be read"):
        given("x", "--config", str(path))


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_speaks_to_people_and_machines_and_says_what_it_does(command: str) -> None:
    options = {option for parameter in cli.commands[command].params for option in parameter.opts}
    assert {"--json", "--quiet"} <= options
    assert cli.commands[command].help


@pytest.mark.parametrize("command", ["clean", "score", "demo"])
def test_every_command_that_computes_can_be_configured(command: str) -> None:
    options = {option for parameter in cli.commands[command].params for option in parameter.opts}
    assert {"--config", "--set", "--scheduler"} <= options

"""The command line as tests call it: as a process of its own, or inside this one."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import main

ROOT = Path(__file__).parents[2]

# The discard port: nothing listens there.
NO_NETWORK = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr."""
        assert self.err.endswith("\n")
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("paire: error: ")
        assert lines[0].isprintable()
        assert self.out == ""
        return lines[0]


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment for a command that runs this checkout, with no scheduler and no network."""
    inherited = {name: value for name, value in os.environ.items() if name != "DASK_SCHEDULER_ADDRESS"}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NO_NETWORK)
    return {**inherited, **proxies, "NO_PROXY": "", "no_proxy": "", "PYTHONPATH": str(ROOT), **variables}


def paire(*arguments: object, **variables: str) -> Ended:
    """Run the installed command as a process of its own."""
    command = [str(Path(sys.executable).parent / "paire"), *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
        env=environment(**variables),
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Here:
    """Calls the entry point that the installed command calls."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capfd, self._monkeypatch = capfd, monkeypatch

    def __call__(self, *arguments: object) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["paire", *map(str, arguments)])
        self._capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as ending:
            code = ending.code
        out, err = self._capfd.readouterr()
        return Ended(code or 0, out, err)

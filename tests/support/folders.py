"""Folders that cannot be listed, not even by a superuser, who often runs the tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def lock(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Refuse to list some folders; rights do not bind a superuser."""
    scandir, refused = os.scandir, set(map(str, folders))

    def guarded(path: str) -> Iterator[os.DirEntry[str]]:
        if os.fspath(path) in refused:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)

"""Local files that exist whole or not at all, even if the process that writes them is killed.

Object stores promise this for every object; on a disk, a file is written beside its place and then moved there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

# The suffix of a file while it is written, as in Zarr. A killed process may leave such a file behind; nothing reads it.
PARTIAL = ".partial"


def replace_file(path: str, content: bytes) -> None:
    """Write or replace a whole file; readers see the old content or the new one."""
    with _written_beside(path, content) as partial:
        partial.replace(path)


def create_file(path: str, content: bytes) -> None:
    """Write a whole file; raises `FileExistsError` if it exists, so that one of several processes succeeds."""
    with _written_beside(path, content) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError:
            # A file system without hard links: still never replaces a file, but a kill can leave it torn.
            with Path(path).open("xb") as file:
                try:
                    file.write(content)
                    file.flush()
                except OSError:
                    Path(path).unlink()
                    raise


def remove_partial_files(folder: str) -> None:
    """Remove the partial files that killed processes left below a folder; nobody may be writing there."""
    for path in Path(folder).rglob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


@contextmanager
def _written_beside(path: str, content: bytes) -> Iterator[Path]:
    """Yield a temporary file with the content in the same folder."""
    partial = Path(path).with_name(f".{uuid4().hex}{PARTIAL}")
    try:
        partial.write_bytes(content)
        yield partial
    finally:
        partial.unlink(missing_ok=True)

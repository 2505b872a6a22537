"""Local files that are there whole or not at all, whenever the process that writes them is killed.

Object stores promise this of every object; on a disk a file is first written beside its place and then moved there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

# Ends the name of a file that is being written, here as in Zarr; a killed process may leave one, which nothing reads.
PARTIAL = ".partial"


def replace_file(path: str, content: bytes) -> None:
    """Write a whole file, replacing one that is there; readers see the old one or the new one."""
    with _written_beside(path, content) as partial:
        partial.replace(path)


def create_file(path: str, content: bytes) -> None:
    """Write a whole file that must not be there yet; of several processes at once one succeeds.

    Raises
    ------
    FileExistsError
        When it is there; then it is left as it is.
    """
    with _written_beside(path, content) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError:
            # A file system without hard links: still create-only, but a kill can leave the file torn.
            with Path(path).open("xb") as file:
                try:
                    file.write(content)
                    file.flush()
                except OSError:
                    Path(path).unlink()
                    raise


def remove_partial_files(folder: str) -> None:
    """Remove what killed processes left of files below a folder, in which nobody writes now."""
    for path in Path(folder).rglob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


@contextmanager
def _written_beside(path: str, content: bytes) -> Iterator[Path]:
    """Yield a file with the content in the same folder, which is gone when the block ends."""
    partial = Path(path).with_name(f".{uuid4().hex}{PARTIAL}")
    try:
        partial.write_bytes(content)
        yield partial
    finally:
        partial.unlink(missing_ok=True)

"""A process that only tries to decode images, and may crash, hang or run out of memory in the attempt.

It loads only Pillow and NumPy, so it starts in a fraction of a second. It answers with what
`workers.images.decode.decode_image` says about an image; if it dies instead, its death is the answer.
"""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from schemas.errors import DecoderError
from workers.images.decode import UndecodableError, decode_image

# Limit of memory for decoding: bytes per pixel of the largest allowed image, per byte of its file, and for the process
# itself. The formats need up to 23 per pixel (WebP with transparency, turned by its EXIF orientation).
BYTES_PER_PIXEL, BYTES_PER_FILE_BYTE, BASE_BYTES = 40, 4, 256 * 2**20

# Enough for the process to load its libraries on a busy machine.
START_S = 120.0

_ROOT = str(Path(__file__).parents[2])


class DecoderDiedError(Exception):
    """The process died or was too slow while it decoded an image; the message becomes the manifest's reason."""


class DecoderProcess:
    """The process as its parent sees it; it starts when first needed, and again after it died.

    The options are those of `workers.images.decode.decode_image`; ``timeout_s`` limits the time for one image.
    """

    def __init__(self, *, image_size: int, max_pixels: int, sixteen_bit_white: int, timeout_s: float) -> None:
        self._options = {"image_size": image_size, "max_pixels": max_pixels, "sixteen_bit_white": sixteen_bit_white}
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    def __enter__(self) -> "DecoderProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def try_image(self, content: bytes) -> str:
        """Return why an image cannot be decoded; empty if it can.

        Raises `DecoderDiedError` if the process died of it or did not answer in time, and `DecoderError` if the process
        does not start, so no image is the cause.
        """
        if self._process is None:
            self._start()
        try:
            self._connection.send_bytes(content)
            if not self._connection.poll(self._timeout_s):
                self._end()
                raise DecoderDiedError(_too_slow(self._timeout_s))
            return self._connection.recv_bytes().decode()
        except (EOFError, OSError) as error:
            raise DecoderDiedError(_in_words(self._end(), self._timeout_s)) from error

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a number
                [sys.executable, "-m", "workers.images.decoder_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Keep out signals to the command's process group: they would be blamed on an image.
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")])),
                    # The stack and buffers of more threads would count against an image.
                    "OPENBLAS_NUM_THREADS": "1",
                },
            )
        try:
            self._connection.send_bytes(json.dumps({**self._options, "timeout_s": self._timeout_s}).encode())
            if self._connection.poll(START_S):
                self._connection.recv_bytes()
                return
        except (EOFError, OSError):
            pass
        code = self._end()
        raise DecoderError(
            f"the process that tries images did not start within {START_S:g} s (exit code {code}). Check that "
            f"{sys.executable} can start one more process here and has memory for it, then run the same command again."
        )

    def _end(self) -> int:
        """End the process if it still runs; returns its exit code."""
        if self._process is None:
            return 0
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            # It ends by itself if it died or is idle.
            self._process.wait(0.5)
        self._process.kill()
        code = self._process.wait()
        self._process = None
        return code


def _in_words(exit_code: int, timeout_s: float) -> str:
    if exit_code == -signal.SIGXCPU:
        return _too_slow(timeout_s)
    if exit_code >= 0:
        return f"decoding it ended the process with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"decoding it killed the process ({name})" + (
        ", most likely for lack of memory" if name == "SIGKILL" else ""
    )


def _too_slow(timeout_s: float) -> str:
    return f"decoding it did not end within input.decode_timeout_s = {timeout_s:g} s"


def main(descriptor: int) -> None:
    """Try every image that arrives on a connection until the other end closes it; this runs in the process itself."""
    with suppress(OSError), Path("/proc/self/oom_score_adj").open("w", encoding="ascii") as file:
        file.write("1000")  # if memory runs out, the system must end this process first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent = Connection(descriptor)
    options = json.loads(parent.recv_bytes())
    timeout_s = options.pop("timeout_s")
    parent.send_bytes(b"ready")
    with suppress(EOFError):
        while True:
            content = parent.recv_bytes()
            limit_bytes = BASE_BYTES + BYTES_PER_PIXEL * options["max_pixels"] + BYTES_PER_FILE_BYTE * len(content)
            reason = ""
            with _limited(limit_bytes, timeout_s):
                try:
                    decode_image(content, **options)
                except UndecodableError as error:
                    reason = str(error)
                    if isinstance(error.__cause__, MemoryError):
                        reason = f"decoding it takes more than {limit_bytes / 1e9:.1f} GB of memory"
            parent.send_bytes(reason.encode())


@contextmanager
def _limited(limit_bytes: int, timeout_s: float) -> Iterator[None]:
    """Limit this process's memory, and its time in case its parent is gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + timeout_s) + 1
    _, hard_seconds = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (_at_most(seconds, hard_seconds), hard_seconds))
    before, hard_bytes = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_at_most(limit_bytes, hard_bytes), hard_bytes))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard_bytes))


def _at_most(wanted: int, hard: int) -> int:
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


if __name__ == "__main__":
    main(int(sys.argv[1]))

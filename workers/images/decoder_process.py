"""A process that does nothing but try to decode images, and may die of one, loop in one, or run out of memory.

It loads Pillow and NumPy alone, so it starts in a fraction of a second. What it says of an image is what
`workers.images.decode.decode_image` says of it; where it dies instead, that is what is wrong with the image.
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

# Bytes that decoding may take: of the largest image that is decoded at all, of its file, and of the process besides.
# The formats take up to 23 for each pixel (WebP with transparency, turned as its EXIF orientation says).
BYTES_PER_PIXEL, BYTES_PER_FILE_BYTE, BASE_BYTES = 40, 4, 256 * 2**20

# For the process to load its libraries, on a machine with much other work.
START_S = 120.0

_ROOT = str(Path(__file__).parents[2])


class DecoderDiedError(Exception):
    """Decoding an image ended the process; the message is the manifest's reason."""


class DecoderProcess:
    """The process, from the outside; it is started when it is first needed, and again after it died.

    Parameters
    ----------
    image_size, max_pixels, sixteen_bit_white
        Of `workers.images.decode.decode_image`.
    timeout_s
        How long decoding an image may take.
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
        """Return why an image can not be decoded; nothing where it can.

        Raises
        ------
        DecoderDiedError
            When the process died of it, or did not answer in time.
        DecoderError
            When the process does not start, which is no image's fault.
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
                # A signal to the command's process group is not for it: it would be taken for the image's doing.
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")])),
                    # Each thread's stack and buffers would count as the image's.
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
            f"{sys.executable} can start processes here and has memory for one more, then run the same command again."
        )

    def _end(self) -> int:
        """End the process, unless it has ended; returns its exit code."""
        if self._process is None:
            return 0
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            # It ends by itself where it died or has nothing to do.
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
    """Try every image that comes through a connection, until its other end is closed; the process itself."""
    with suppress(OSError), Path("/proc/self/oom_score_adj").open("w", encoding="ascii") as file:
        file.write("1000")  # where the machine's memory runs out, this process is the one to end
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
    """Limit the memory of this process, and its time, in case nobody is left to end it."""
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

"""A process that may die of an image: it gives the reason, and another process tries the next image."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.errors import DecoderError
from tests.support.archives import part_pixels, png
from tests.support.poison import CRASH, LOOP, MEMORY, write_poison, write_sitecustomize
from workers.images.decode import UndecodableError, decode_image
from workers.images.decoder_process import DecoderDiedError, DecoderProcess

OPTIONS = {"image_size": 64, "max_pixels": 10_000, "sixteen_bit_white": 65535}
GOOD = png(part_pixels(0))


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderProcess]:
    monkeypatch.setenv("PYTHONPATH", str(write_sitecustomize(tmp_path / "suffering")))
    with DecoderProcess(**OPTIONS, timeout_s=1.5) as process:
        yield process


def poison(folder: Path, kind: str) -> bytes:
    write_poison(folder / "poison.png", kind, 1)
    return (folder / "poison.png").read_bytes()


def pid_of(decoder: DecoderProcess) -> int:
    assert decoder._process is not None
    return decoder._process.pid


def test_it_says_of_images_what_decoding_them_says(decoder: DecoderProcess) -> None:
    contents = [GOOD, b"", b"no image", GOOD[:200], png(part_pixels(1, size=128)), GOOD]
    said = [decoder.try_image(content) for content in contents]
    assert said[0] == said[5] == ""
    for content, reason in zip(contents[1:5], said[1:5], strict=True):
        with pytest.raises(UndecodableError) as caught:
            decode_image(content, **OPTIONS)
        assert reason == str(caught.value)


def test_what_ends_it_is_named_and_the_next_image_is_tried_by_another(decoder: DecoderProcess, tmp_path: Path) -> None:
    with pytest.raises(DecoderDiedError, match=r"^decoding it killed the process \(SIGSEGV\)$"):
        decoder.try_image(poison(tmp_path, CRASH))
    with pytest.raises(DecoderDiedError, match=r"^decoding it did not end within input\.decode_timeout_s = 1\.5 s$"):
        decoder.try_image(poison(tmp_path, LOOP))
    assert decoder.try_image(poison(tmp_path, MEMORY)) == "decoding it takes more than 0.3 GB of memory"
    assert decoder.try_image(GOOD) == ""


def test_a_kill_from_outside_is_told_from_an_image_by_trying_again(decoder: DecoderProcess) -> None:
    assert decoder.try_image(GOOD) == ""
    os.kill(pid_of(decoder), signal.SIGKILL)
    with pytest.raises(DecoderDiedError, match=r"SIGKILL\), most likely for lack of memory$"):
        decoder.try_image(GOOD)
    assert decoder.try_image(GOOD) == ""


def test_it_ends_with_the_process_that_started_it(decoder: DecoderProcess) -> None:
    decoder.try_image(GOOD)
    process, pid = decoder._process, pid_of(decoder)
    assert process is not None
    decoder._connection.close()  # as the death of this process would
    assert process.wait(60) == 0
    assert not Path(f"/proc/{pid}/fd").exists()


def test_that_it_does_not_start_is_no_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        DecoderProcess(**OPTIONS, timeout_s=1) as decoder,
        pytest.raises(DecoderError, match=r"did not start .*\(exit code 1\)\. Check that /bin/false can start"),
    ):
        decoder.try_image(GOOD)

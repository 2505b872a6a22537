"""The benchmarks' commands, as far as they can be held without measuring anything."""

import os
from pathlib import Path

import numpy as np
import pytest

import workers.images.decode
from benchmarks.__main__ import BENCHMARKS, QUICK, parse
from benchmarks.extraction import _gpu_utilisation
from benchmarks.images import write_images
from benchmarks.plans import CASES, seconds_of
from benchmarks.shortcuts import reduced_decoding
from workers.images.decode import DecodedImage


def test_every_benchmark_has_a_quick_way() -> None:
    assert QUICK.keys() == BENCHMARKS.keys()
    for name in BENCHMARKS:
        quick, usual = vars(parse(["--quick", name])), vars(parse([name]))
        assert quick.keys() == usual.keys()
        assert any(quick[key] != usual[key] for key in usual.keys() - {"quick"})


def test_what_is_given_is_kept_unless_it_is_to_be_quick() -> None:
    assert parse(["statistics", "--rounds", "7"]).rounds == 7
    assert parse(["--quick", "statistics", "--rounds", "7"]).rounds == 1


def test_planned_seconds_are_on_a_line_through_the_fewest_and_the_most_passes() -> None:
    planned = {"passes": {"usual": 3, "fewest": 2, "most": 12}, "range_s": [20.0, 70.0]}
    assert [seconds_of(planned, passes) for passes in (2, 3, 12)] == [20.0, 25.0, 70.0]
    one = {"passes": {"usual": 1, "fewest": 1, "most": 1}, "range_s": [20.0, 20.0]}
    assert seconds_of(one, 1) == 20.0


def test_planned_archives_go_the_three_ways_of_groups() -> None:
    small, products, moments = CASES
    assert small.images <= 64 < products.images <= 896
    assert moments.channels is not None
    assert moments.images > moments.channels


@pytest.mark.parametrize(("image_format", "is_changed"), [("JPEG", True), ("PNG", False)])
def test_a_reduced_scale_is_for_jpeg_alone_and_ends_with_its_block(
    image_format: str, is_changed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (path,) = write_images(tmp_path_factory.mktemp("images"), 1, 512, image_format)

    def decode() -> DecodedImage:
        return workers.images.decode.decode_image(path.read_bytes(), image_size=128, max_pixels=512**2)

    full = decode()
    with reduced_decoding(128):
        reduced = decode()
    assert reduced.pixels.shape == full.pixels.shape == (128, 128, 3)
    assert np.array_equal(reduced.pixels, full.pixels) != is_changed
    np.testing.assert_allclose(reduced.pixels, full.pixels, atol=0.2)
    np.testing.assert_array_equal(decode().pixels, full.pixels)


def test_the_utilisation_of_a_gpu_is_the_mean_of_what_its_drivers_tool_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    os.mkfifo(said)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '40\\n60\\n'\necho > {said}\nexec sleep 600\n", encoding="ascii")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found: list[float] = []
    with _gpu_utilisation(found):
        said.read_bytes()  # waits until the tool has written
    assert found == [50.0]

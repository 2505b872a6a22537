"""What is compared with other packages: that both sides compute the same, and that a missing peer is said."""

import importlib.util
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from benchmarks import peers_anomalib, peers_memory, peers_sklearn
from benchmarks.peers_memory import peak_bytes
from benchmarks.peers_sides import ITS_GRID, configuration, embedding, exact_distances, fit_with_paire
from schemas.errors import ConfigError

HAS_ANOMALIB = importlib.util.find_spec("anomalib") is not None
needs_anomalib = pytest.mark.skipif(not HAS_ANOMALIB, reason="anomalib is not installed: make bench-peers")
# anomalib's libraries warn of their own deprecations when they are imported, each in its way.
quietly = pytest.mark.filterwarnings("ignore")

METHODS = list(peers_sklearn.METHODS)


@pytest.mark.parametrize("kind", peers_sklearn.KINDS)
def test_our_plain_distances_are_those_of_scikit_learn_up_to_its_divisor(kind: str) -> None:
    sample = peers_sklearn.draw(300, 20, kind, seed=0)
    ours, theirs = (peers_sklearn.METHODS[name](sample.values) for name in METHODS[:2])
    # It divides by n where we divide by n - 1, and has no ridge.
    np.testing.assert_allclose(ours, theirs * np.sqrt(299 / 300), rtol=1e-4)


@pytest.mark.parametrize("shape", [(300, 20), (40, 60)], ids=["more images than channels", "fewer"])
@pytest.mark.parametrize("method", METHODS[::2][:2])
def test_our_methods_rank_far_outliers_behind_all_clean_images(
    method: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_sklearn, "SHIFT", 40.0)
    monkeypatch.setattr(peers_sklearn, "OUTLIERS", 0.05)
    sample = peers_sklearn.draw(*shape, "scattered", seed=0)
    found = peers_sklearn.judge(sample, peers_sklearn.METHODS[method](sample.values))
    assert found["AUROC"] == 1.0


def test_true_distances_are_judged_to_have_no_error() -> None:
    sample = peers_sklearn.draw(200, 10, "scattered", seed=1)
    found = peers_sklearn.judge(sample, 3.0 * sample.distances)
    assert found["error, %"] == pytest.approx(200.0)
    assert found["up to a factor, %"] == pytest.approx(0.0, abs=1e-9)
    assert found["purity"] == pytest.approx(1.0, abs=0.01)


def test_a_comparison_has_a_row_for_each_method_and_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_sklearn, "SHAPES", ((60, 4),))
    parser = ArgumentParser()
    peers_sklearn.add_arguments(parser)
    found = peers_sklearn.measure(parser.parse_args(["--rounds", "1"]), "command")
    assert len(found.rows) == len(METHODS) * len(peers_sklearn.KINDS)
    assert {frozenset(row) for row in found.rows} == {frozenset(found.rows[0])}
    assert found.rows[0]["time"] == "1.00 (1.00 to 1.00)"


def test_our_distances_on_an_embedding_are_exact() -> None:
    shape = (30, 8, 3)
    found = fit_with_paire(*shape)
    np.testing.assert_allclose(found.distances, exact_distances(*shape, np.arange(9)), rtol=1e-9)
    assert found.fit.wall > 0
    assert found.measure.wall > 0


@needs_anomalib
@quietly
def test_anomalibs_distances_are_ours_to_single_precision() -> None:
    from benchmarks.peers_sides import fit_with_anomalib

    theirs, ours = fit_with_anomalib(40, 8, 3), fit_with_paire(40, 8, 3)
    np.testing.assert_allclose(theirs.distances, ours.distances, rtol=1e-4)


@needs_anomalib
@quietly
def test_anomalibs_backbone_gives_our_features_where_nothing_is_resized() -> None:
    from benchmarks.peers_sides import _padim
    from workers.features.extractor import PatchExtractor, choose_channels

    config = configuration(*ITS_GRID, "features.dtype=float32", "features.image_size=64")
    pixels = np.random.default_rng(0).random((2, 64, 64, 3)).astype(np.float32)
    padim = _padim(config.features)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    theirs = padim.model.train()(padim.pre_processor.transform(batch)).permute(0, 2, 3, 1).numpy()
    ours = PatchExtractor(config.features).extract(pixels)
    first = choose_channels(448, 100, 0) < 64  # channels of layer1
    assert first.any()
    np.testing.assert_allclose(theirs[..., first], ours[..., first], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(HAS_ANOMALIB, reason="anomalib is installed")
@pytest.mark.parametrize("benchmark", [peers_anomalib, peers_memory])
def test_a_missing_peer_is_said_before_anything_is_measured(benchmark: ModuleType) -> None:
    parser = ArgumentParser()
    benchmark.add_arguments(parser)
    with pytest.raises(ConfigError, match=r"anomalib is not installed .*make bench-peers"):
        benchmark.measure(parser.parse_args([]), "command")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_peak_memory_is_that_of_a_process_and_its_children() -> None:
    size = 60_000_000
    child = f"import time; held = bytearray(b'x') * {size}; time.sleep(2)"
    parent = (
        f"import subprocess, sys; held = bytearray(b'x') * {size}; subprocess.run([sys.executable, '-c', {child!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        peak = peak_bytes(process.pid, lambda: process.poll() is None)
    assert process.returncode == 0
    assert 2 * size < peak < 2 * size + 100_000_000


def test_rounds_end_in_time_but_at_least_one_is_measured() -> None:
    assert list(peers_anomalib._rounds(5, time.monotonic() - 1)) == [0, 1]
    assert list(peers_anomalib._rounds(3, time.monotonic() + 60)) == [0, 1, 2, 3]


def test_an_embedding_is_like_features() -> None:
    values = embedding(50, 6, 2)
    assert values.shape == (50, 4, 6)
    assert values.min() >= 0
    np.testing.assert_array_equal(values, values.astype(np.float16).astype(np.float32))

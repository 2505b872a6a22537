"""The two sides of the comparison with anomalib's PaDiM, each in its own process.

anomalib is imported where it is used, as only `make bench-peers` installs it. It gets our network, weights and
channels, so that both sides compute the same features, except for how they resize deeper layers: anomalib repeats
the nearest value and does not pool, ours interpolates.
"""

import importlib
import importlib.metadata
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.config import Config, FeaturesConfig, GaussianConfig, parse_config
from schemas.errors import ConfigError
from workers.compute import keep_freed_memory, map_in_threads, set_compute_threads
from workers.features.extractor import PatchExtractor, choose_channels
from workers.features.weights import build_model
from workers.gaussian.fit import FittedGaussian, fit_primal
from workers.gaussian.moments import Accumulator

Array = NDArray[np.float64]

BACKBONE, NODES, CHANNELS, SIZE = "resnet18", "layer1,layer2,layer3", 100, 256
# anomalib's positions are the cells of the first layer.
ITS_GRID = ("features.pool_kernel=1", "features.pool_stride=1")

# anomalib adds 0.01, and 1e-5 more before it inverts (anomalib.models.components.MultiVariateGaussian).
ANOMALIB_RIDGE = 0.01 + 1e-5


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock, and CPU seconds of all cores together."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class FitResult:
    """The time of fitting, the time of measuring all distances, and the distances (images, positions)."""

    fit: Spent
    measure: Spent
    distances: NDArray[np.floating]


@contextmanager
def side_process() -> Iterator[ProcessPoolExecutor]:
    """Start a side's process; models and data stay there between calls. It may have children, such as data loaders."""
    with ProcessPoolExecutor(1, get_context("spawn"), _quieten) as process:
        yield process


def settings(size: int = SIZE) -> tuple[str, ...]:
    """Return the options of the configuration that both sides share."""
    return (
        f"features.backbone={BACKBONE}",
        f"features.nodes={NODES}",
        f"features.channels={CHANNELS}",
        f"features.image_size={size}",
        "features.weights=random",
        "features.device=cpu",
        "cluster.workers=1",
    )


def configuration(*more: str) -> Config:
    """Return that configuration with further options."""
    return parse_config(None, (*settings(), *more))


def anomalib_version() -> str:
    """Return the version of anomalib.

    Raises
    ------
    ConfigError
        When anomalib is not installed.
    """
    try:
        return importlib.metadata.version("anomalib")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"anomalib is not installed for {sys.executable}, and this benchmark compares with it. Use "
            "'make bench-peers', which sets up a separate environment."
        ) from error


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- anomalib ---------------------------------------------------------------------------------------------------------


def embed_with_anomalib(features: FeaturesConfig, folder: Path, loaders: int) -> Spent:
    """Take the images of a folder through anomalib's data loader and engine, without its fit."""
    model, marks = _padim(features), [0.0, 0.0, 0.0, 0.0]
    memory = model.model.memory_bank

    def started() -> None:
        marks[0], marks[1] = time.perf_counter(), time.process_time()

    def embedded() -> None:
        marks[2], marks[3] = time.perf_counter(), time.process_time()
        memory.clear()

    model.on_train_start, model.fit = started, embedded
    before = os.times()
    _run_engine(model, folder, features.batch_size, loaders)
    after = os.times()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    return Spent(marks[2] - marks[0], marks[3] - marks[1] + children)


def forward_with_anomalib(features: FeaturesConfig, images: int) -> Spent:
    """Take tensors in memory through anomalib's model, to embeddings."""
    model = _padim(features).model.train()
    batch = torch.rand(features.batch_size, 3, features.image_size, features.image_size)

    def forward() -> None:
        for _ in range(images // features.batch_size):
            model(batch)
        model.memory_bank.clear()

    return _timed(forward)


def fit_with_anomalib(images: int, channels: int, side: int) -> FitResult:
    """Fit anomalib's Gaussians at all positions of an embedding, and measure its distances."""
    values = torch.from_numpy(embedding(images, channels, side))
    values = values.permute(0, 2, 1).reshape(images, channels, side, side).contiguous()
    gaussian = _anomalib("anomalib.models.components").MultiVariateGaussian()
    measure = _anomalib("anomalib.models.image.padim.anomaly_map").AnomalyMapGenerator.compute_distance
    found: list[Any] = []
    with torch.no_grad():
        fit = _timed(lambda: found.append(gaussian.fit(values)))
        measured = _timed(lambda: found.append(measure(values, found[0])))
    return FitResult(fit, measured, found[1].reshape(images, side * side).numpy())


def run_anomalib(folder: str, options: Sequence[str]) -> None:
    """Embed a folder of images and fit, as anomalib's users do, without loader processes, which only add memory."""
    _quieten()
    features = parse_config(None, options).features
    _run_engine(_padim(features), Path(folder), features.batch_size, 0)


@lru_cache(maxsize=2)
def _padim(features: FeaturesConfig) -> Any:
    """Return anomalib's model with our backbone's weights and channels."""
    padim = _anomalib("anomalib.models").Padim
    size = (features.image_size, features.image_size)
    source, _ = build_model(features)
    with torch.random.fork_rng(devices=[]):
        model = padim(
            backbone=features.backbone,
            layers=list(features.nodes),
            pre_trained=False,
            n_features=features.channels,
            pre_processor=padim.configure_pre_processor(image_size=size),
            evaluator=False,
            visualizer=False,
        )
    missing, _ = model.model.feature_extractor.feature_extractor.load_state_dict(source.state_dict(), strict=False)
    assert not missing, f"the backbones differ: {missing}"
    total = model.model.n_features_original
    model.model.idx = torch.from_numpy(choose_channels(total, features.channels or total, features.seed))
    return model


def _run_engine(model: Any, folder: Path, batch: int, loaders: int) -> None:
    """Fit a model again on a folder with anomalib's engine."""
    data, engine = _anomalib("anomalib.data"), _anomalib("anomalib.engine")
    model._is_fitted = torch.tensor([False])
    module = data.Folder(
        name="images",
        root=folder.parent,
        normal_dir=folder.name,
        train_batch_size=batch,
        num_workers=loaders,
        test_split_mode="none",
        val_split_mode="none",
    )
    module.setup()
    loader = module.train_dataloader()
    if loaders:
        # As in a process that a user starts. Spawned children would each load torch again.
        loader.multiprocessing_context = get_all_start_methods()[0]
    with tempfile.TemporaryDirectory() as out:
        runner = engine.Engine(
            default_root_dir=out, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        runner.fit(model=model, train_dataloaders=loader)


def _anomalib(module: str) -> Any:
    return importlib.import_module(module)


def _quieten() -> None:
    """Hide anomalib's advice and the deprecation warnings of its libraries in this process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


# --- paire ------------------------------------------------------------------------------------------------------------


def forward_with_paire(features: FeaturesConfig, images: int) -> Spent:
    """Take pixels in memory through our extractor, to patch features as they are stored."""
    extractor = _extractor(features)
    batch = np.random.default_rng(0).random((features.batch_size, features.image_size, features.image_size, 3))
    pixels = batch.astype(np.float32)

    def forward() -> None:
        started = [extractor.start(pixels) for _ in range(images // features.batch_size)]
        for wait in started:
            wait()

    return _timed(forward)


def fit_with_paire(images: int, channels: int, side: int) -> FitResult:
    """Fit our Gaussians at all positions of an embedding with anomalib's ridge, and measure our distances."""
    set_compute_threads(cores())
    values = embedding(images, channels, side).astype(np.float16)
    config = GaussianConfig(ridge=ANOMALIB_RIDGE)
    fits: list[FittedGaussian] = []
    distances: list[Array] = []

    def fit_at(position: int) -> FittedGaussian:
        accumulator = Accumulator(channels)
        accumulator.add(values[:, position])
        return fit_primal(accumulator.result(), config, "ridge")[0]

    fit = _timed(lambda: fits.extend(map_in_threads(fit_at, range(side**2))))
    measure = _timed(
        lambda: distances.extend(
            map_in_threads(lambda position: fits[position].gaussian.mahalanobis(values[:, position]), range(side**2))
        )
    )
    return FitResult(fit, measure, np.stack(distances, axis=1))


@lru_cache(maxsize=2)
def _extractor(features: FeaturesConfig) -> PatchExtractor:
    keep_freed_memory()  # as every worker does
    set_compute_threads(cores())
    return PatchExtractor(features)


# --- both -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def embedding(images: int, channels: int, side: int) -> NDArray[np.float32]:
    """Return an embedding (images, positions, channels) like features: nonnegative, correlated, exact in float16."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((channels, channels)).astype(np.float32) / np.arange(1, channels + 1)[:, np.newaxis]
    values = rng.standard_normal((images * side**2, channels), np.float32) @ mixing.astype(np.float32)
    np.abs(values, out=values)
    rounded: NDArray[np.float32] = values.astype(np.float16).astype(np.float32).reshape(images, side**2, channels)
    return rounded


def exact_distances(images: int, channels: int, side: int, positions: NDArray[np.int64]) -> Array:
    """Return the distances (images, some positions) by Eqs. 4-6 in float64, with anomalib's ridge."""
    found = []
    for position in positions:
        values = embedding(images, channels, side)[:, position].astype(np.float64)
        offsets = values - values.mean(axis=0)
        covariance = np.cov(values, rowvar=False) + ANOMALIB_RIDGE * np.eye(channels)
        found.append(np.sqrt(np.einsum("ij,ij->i", offsets, np.linalg.solve(covariance, offsets.T).T)))
    return np.stack(found, axis=1)


def _timed(work: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


if __name__ == "__main__":
    run_anomalib(sys.argv[1], sys.argv[2:])

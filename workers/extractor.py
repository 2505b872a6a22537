"""From pixels to patch features (paper, section 3.1): backbone, resize, concatenate, average-pool, choose channels."""

from contextlib import nullcontext
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from numpy.typing import NDArray
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from schemas.config import FeaturesConfig
from schemas.errors import ConfigError, FeatureRangeError, WeightsError
from schemas.features import FeatureGeometry
from workers.compute import resolve_device
from workers.weights import build_model

# Normalisation that torchvision's ImageNet weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PatchExtractor:
    """A backbone, cut after its last needed node, and the pooling that makes patch features of its outputs.

    Attributes
    ----------
    geometry
        The grid of positions that an image gives.
    weights_digest
        sha256 hex of the weights in use.
    """

    def __init__(self, features: FeaturesConfig) -> None:
        """Build the backbone on its device.

        Raises
        ------
        ConfigError
            When the backbone or a node does not exist, the grid is smaller than the pooling kernel, or there are
            fewer channels than are to be chosen.
        WeightsError
            When the weights can not be had or do not fit.
        DeviceError
            When the device is not there.
        """
        self._config = features
        self._device = resolve_device(features.device)
        model, self.weights_digest = build_model(features)
        self._model = _cut(model, features).to(self._device).to(memory_format=torch.channels_last)
        if self._device.type == "cuda":
            # Results must not depend on what cuDNN happens to time as fastest, nor lose digits to TF32.
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        self._mean = torch.tensor(IMAGENET_MEAN, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=self._device).view(1, 3, 1, 1)
        self.geometry, self._chosen = self._measure_geometry()

    @torch.inference_mode()
    def extract(self, pixels: NDArray[np.float32]) -> NDArray[Any]:
        """Return the patch features of a batch.

        Parameters
        ----------
        pixels
            (images, image_size, image_size, 3) float32, RGB in 0..1.

        Returns
        -------
        ndarray
            (images, rows, columns, channels) in the configured dtype (Eqs. 1-3); the chosen channels only.

        Raises
        ------
        FeatureRangeError
            When a feature is not finite or overflows the dtype.
        """
        pooled = F.avg_pool2d(self._concatenated(pixels), self._config.pool_kernel, self._config.pool_stride)
        if self._chosen is not None:
            pooled = pooled.index_select(1, self._chosen)
        return self._to_storage(pooled.permute(0, 2, 3, 1).float().cpu().numpy())

    def _concatenated(self, pixels: NDArray[np.float32]) -> torch.Tensor:
        """Return the nodes' outputs on the first one's grid: (images, channels, grid rows, grid columns)."""
        # torch can not wrap read-only memory, and has no use for writing to it either.
        writable = pixels if pixels.flags.writeable else pixels.copy()
        batch = torch.from_numpy(writable).to(self._device).permute(0, 3, 1, 2)
        autocast = (
            torch.autocast(self._device.type, dtype=torch.bfloat16)
            if self._config.precision == "bf16"
            else nullcontext()
        )
        with autocast:
            outputs = self._model((batch - self._mean) / self._std)
        first, *others = (outputs[node].float() for node in self._config.nodes)
        grid = first.shape[-2:]
        resized = [F.interpolate(other, size=grid, mode="bilinear", align_corners=False) for other in others]
        return torch.cat([first, *resized], dim=1)

    def _to_storage(self, features: NDArray[np.float32]) -> NDArray[Any]:
        dtype = np.dtype(self._config.dtype)
        largest = float(np.abs(features).max(initial=0.0))
        if not largest <= float(np.finfo(dtype).max):  # also true for NaN
            raise FeatureRangeError(
                f"A patch feature of backbone {self._config.backbone!r} is {largest:g}, beyond the range of "
                f"features.dtype = {self._config.dtype!r}. Use --set features.dtype=float32, and if the value is "
                "not finite, other weights or precision=fp32."
            )
        return features.astype(dtype)

    @torch.inference_mode()
    def _measure_geometry(self) -> tuple[FeatureGeometry, torch.Tensor | None]:
        """Return the grid of positions, and the indices of the chosen channels; None for all."""
        size, kernel, stride = self._config.image_size, self._config.pool_kernel, self._config.pool_stride
        blank = np.zeros((1, size, size, 3), np.float32)
        try:
            channels, grid_rows, grid_columns = self._concatenated(blank).shape[1:]
        except Exception as error:  # models check their input in ways of their own
            raise ConfigError(
                f"features.nodes = {','.join(self._config.nodes)!r} of {self._config.backbone!r} do not give feature "
                f"maps at features.image_size = {size}: {error} ({type(error).__name__}). "
                "Name nodes that put out (images, channels, rows, columns)."
            ) from error
        if min(grid_rows, grid_columns) < kernel:
            raise ConfigError(
                f"features.pool_kernel = {kernel} is larger than the {grid_rows} x {grid_columns} grid of node "
                f"{self._config.nodes[0]!r}. Use a smaller kernel, an earlier first node or a larger image_size."
            )
        chosen = None
        if self._config.channels is not None:
            chosen = choose_channels(channels, self._config.channels, self._config.seed)
        geometry = FeatureGeometry(
            rows=(grid_rows - kernel) // stride + 1,
            columns=(grid_columns - kernel) // stride + 1,
            channels=channels if chosen is None else len(chosen),
            grid_rows=grid_rows,
            grid_columns=grid_columns,
            pool_kernel=kernel,
            pool_stride=stride,
        )
        return geometry, None if chosen is None else torch.from_numpy(chosen).to(self._device)


def choose_channels(channels: int, count: int, seed: int) -> NDArray[np.int64]:
    """Draw a random subset of channels (PaDiM: Defard et al. 2020, arXiv:2011.08785, section III-A).

    The channels are ranked by the raw output of PCG64, which NumPy keeps the same on every platform and in every
    version, unlike what `numpy.random.Generator` makes of it: a map is scored with the channels that it was fitted on.
    So the subsets of one seed also lie within one another.

    Parameters
    ----------
    channels
        How many there are.
    count
        How many to draw.
    seed
        Of the draw.

    Returns
    -------
    ndarray
        (count,) int64, ascending.

    Raises
    ------
    ConfigError
        When there are fewer than are to be drawn.
    """
    if count > channels:
        raise ConfigError(
            f"features.channels = {count}, but the backbone's nodes have only {channels} channels. Choose {channels} "
            "or fewer, name more nodes, or leave it out for all channels."
        )
    ranks = np.random.PCG64(seed).random_raw(channels)
    return np.sort(np.argsort(ranks, kind="stable")[:count])


def _cut(model: torch.nn.Module, features: FeaturesConfig) -> torch.nn.Module:
    """Return the part of the model that the nodes need."""
    try:
        cut: torch.nn.Module = create_feature_extractor(model, list(features.nodes)).eval()
    except ValueError as error:
        names = [name for name in get_graph_node_names(model)[1] if name != "x"]
        tops = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
        raise ConfigError(
            f"features.nodes = {','.join(features.nodes)!r}: not all are nodes of {features.backbone!r}. "
            f"Choose from: {', '.join(tops[:40])}, ..."
        ) from error
    except Exception as error:
        raise ConfigError(
            f"features.backbone = {features.backbone!r} can not be cut at nodes: torchvision can not trace it "
            f"({type(error).__name__}). Choose a convolutional one, like wide_resnet50_2 or resnet18."
        ) from error
    return cut


_build_lock = Lock()


@lru_cache(maxsize=2)
def _shared(features: FeaturesConfig) -> PatchExtractor:
    return PatchExtractor(features)


def shared_extractor(features: FeaturesConfig, weights_digest: str = "") -> PatchExtractor:
    """Return this process's extractor for a configuration, building it on first use.

    Parameters
    ----------
    features
        The configuration; it pickles, the extractor does not.
    weights_digest
        The digest that the weights must have; empty accepts any.

    Raises
    ------
    WeightsError
        When this machine's weights are others than the run's.
    """
    with _build_lock:
        extractor = _shared(features)
        if weights_digest and extractor.weights_digest != weights_digest:
            _shared.cache_clear()  # the file may have been replaced since it was read
            extractor = _shared(features)
    if weights_digest and extractor.weights_digest != weights_digest:
        raise WeightsError(
            f"features.weights = {features.weights!r} has digest {extractor.weights_digest[:12]} here, but "
            f"{weights_digest[:12]} is needed. Give every machine the same file."
        )
    return extractor

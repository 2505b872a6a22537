"""From pixels to patch features (paper, section 3.1): backbone, resize, concatenate, average-pool, choose channels."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from numpy.typing import NDArray

from schemas.backbones import PAPER_KERNEL, PAPER_STRIDE
from schemas.config import FeaturesConfig
from schemas.errors import ConfigError, FeatureRangeError, WeightsError
from schemas.stores.features import FeatureGeometry
from workers.compute import resolve_device, start_in_thread
from workers.features.backbones import token_pooling, with_model_defaults
from workers.features.cut import HookedBackbone, cut_at_nodes
from workers.features.weights import build_model

# Images that one CPU thread passes through the backbone at once: enough to keep convolutions efficient, and few enough,
# at 256 pixels, for the outputs of a layer to stay in the heap (see workers.compute). The number is fixed, so features
# do not depend on the number of threads.
SLICE_IMAGES = 4


class PatchExtractor:
    """A backbone, cut after the last node it needs, and the pooling that turns its outputs into patch features.

    ``config`` has the options, with the model's own defaults for those that were not set. ``geometry`` is the grid of
    positions of an image, ``weights_digest`` the sha256 hex of the weights. ``backbone`` maps normalised pixels
    (images, 3, image_size, image_size) to a mapping of node to output (images, channels, cells down, cells across).
    """

    def __init__(self, features: FeaturesConfig) -> None:
        """Build the backbone on its device.

        Raises
        ------
        ConfigError
            When the backbone or a node does not exist, the grid is smaller than the pooling kernel, or the nodes have
            fewer channels than ``features.channels``.
        WeightsError
            When the weights cannot be loaded or do not fit.
        DeviceError
            When the device does not exist.
        """
        self._device = resolve_device(features.device)
        model, self.weights_digest = build_model(features)
        self.config, (mean, std) = with_model_defaults(features, model)
        self.backbone = cut_at_nodes(model, self.config).to(self._device).to(memory_format=torch.channels_last)
        if self._device.type == "cuda":
            # Results must not depend on which algorithm cuDNN times as fastest, nor lose digits to TF32.
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        self._mean = torch.tensor(mean, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self._device).view(1, 3, 1, 1)
        self.geometry, self._chosen, self._poolings = self._measure_geometry()

    def extract(self, pixels: NDArray[np.float32]) -> NDArray[Any]:
        """Return the patch features of a batch.

        Parameters
        ----------
        pixels
            (images, image_size, image_size, 3) float32, RGB in 0..1.

        Returns
        -------
        ndarray
            (images, rows, columns, channels) in the configured dtype (Eqs. 1-3); only the chosen channels.

        Raises
        ------
        FeatureRangeError
            When a feature is not finite or overflows the dtype.
        """
        return self.start(pixels)()

    def start(self, pixels: NDArray[np.float32]) -> Callable[[], NDArray[Any]]:
        """Start extracting a batch; the function returned waits for the features, which are those of `extract`.

        On the CPU the compute threads of this process share the batch slice by slice; a GPU queues it. Later batches
        may start before this one ends. The pixels must not change until the features are ready.
        """
        if self._device.type == "cuda":
            # From pinned memory, the copy overlaps with the kernels of the previous batch.
            on_device = torch.from_numpy(pixels).pin_memory().to(self._device, non_blocking=True)
            features = self._patch_features(on_device)
            return lambda: self._to_storage(features)
        slices = [
            start_in_thread(self._extract_slice, pixels[start : start + SLICE_IMAGES])
            for start in range(0, len(pixels), SLICE_IMAGES)
        ]
        return lambda: np.concatenate([part.result() for part in slices])

    def _extract_slice(self, pixels: NDArray[np.float32]) -> NDArray[Any]:
        # torch cannot wrap read-only memory.
        writable = pixels if pixels.flags.writeable else pixels.copy()
        return self._to_storage(self._patch_features(torch.from_numpy(writable)))

    @torch.inference_mode()
    def _patch_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (images, rows, columns, channels) float32 on the device.

        Resizing to the first node's grid and average pooling are linear and separable (Eqs. 1-3), so two small
        matrices, one along rows and one along columns, take each node straight to the positions.
        """
        outputs = self._outputs(pixels)
        nodes = [_pooled(output, down, across) for output, (down, across) in zip(outputs, self._poolings, strict=True)]
        features = torch.cat(nodes, dim=-1)
        return features if self._chosen is None else features.index_select(-1, self._chosen)

    @torch.inference_mode()
    def _outputs(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the nodes' outputs for (images, image_size, image_size, 3) pixels, in float32."""
        autocast = (
            torch.autocast(self._device.type, dtype=torch.bfloat16)
            if self.config.precision == "bf16"
            else nullcontext()
        )
        with autocast:
            outputs = self.backbone((pixels.permute(0, 3, 1, 2) - self._mean) / self._std)
        return [outputs[node].float() for node in self.config.nodes]

    def _to_storage(self, features: torch.Tensor) -> NDArray[Any]:
        dtype = torch.float16 if self.config.dtype == "float16" else torch.float32
        lowest, highest = (float(bound) for bound in torch.aminmax(features))
        largest = max(-lowest, highest)
        if not largest <= torch.finfo(dtype).max:  # also true for NaN
            raise FeatureRangeError(
                f"A patch feature of backbone {self.config.backbone!r} is {largest:g}, beyond the range of "
                f"features.dtype = {self.config.dtype!r}. Use --set features.dtype=float32; if the value is not "
                "finite, use other weights or precision=fp32."
            )
        stored: NDArray[Any] = features.to(dtype).cpu().numpy()
        return stored

    def _measure_geometry(self) -> tuple[FeatureGeometry, torch.Tensor | None, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Return the grid of positions, the indices of the chosen channels (None for all), and each node's pooling."""
        size = self.config.image_size
        try:
            shapes = [output.shape for output in self._outputs(torch.zeros(1, size, size, 3, device=self._device))]
            (grid_rows, grid_columns), channels = _grid(shapes)
        except Exception as error:  # each model checks its input in its own way
            raise ConfigError(
                f"features.nodes = {','.join(self.config.nodes)!r} of {self.config.backbone!r} do not give feature "
                f"maps at features.image_size = {size}: {error} ({type(error).__name__}). "
                "Name nodes with outputs (images, channels, rows, columns), or another image size."
            ) from error
        kernel, stride = self._pooling_window(grid_rows)
        if min(grid_rows, grid_columns) < kernel:
            raise ConfigError(
                f"features.pool_kernel = {kernel} is larger than the {grid_rows} x {grid_columns} grid of node "
                f"{self.config.nodes[0]!r}. Use a smaller kernel, an earlier first node or a larger image_size."
            )
        chosen = None
        if self.config.channels is not None:
            chosen = choose_channels(channels, self.config.channels, self.config.seed)
        geometry = FeatureGeometry(
            rows=(grid_rows - kernel) // stride + 1,
            columns=(grid_columns - kernel) // stride + 1,
            channels=channels if chosen is None else len(chosen),
            grid_rows=grid_rows,
            grid_columns=grid_columns,
            pool_kernel=kernel,
            pool_stride=stride,
        )
        poolings = [
            (
                _pooling(rows, grid_rows, kernel, stride).to(self._device),
                _pooling(columns, grid_columns, kernel, stride).to(self._device),
            )
            for *_, rows, columns in shapes
        ]
        return geometry, None if chosen is None else torch.from_numpy(chosen).to(self._device), poolings

    def _pooling_window(self, cells: int) -> tuple[int, int]:
        """Return kernel and stride; choose those that are not set, and note them in the configuration."""
        gives_tokens = isinstance(self.backbone, HookedBackbone) and self.backbone.gives_tokens
        kernel, stride = token_pooling(cells) if gives_tokens else (PAPER_KERNEL, PAPER_STRIDE)
        kernel, stride = self.config.pool_kernel or kernel, self.config.pool_stride or stride
        self.config = self.config.model_copy(update={"pool_kernel": kernel, "pool_stride": stride})
        return kernel, stride


def _grid(shapes: Sequence[torch.Size]) -> tuple[tuple[int, int], int]:
    """Return the first node's grid, and the total number of channels; ValueError for a node without a grid."""
    for shape in shapes:
        if len(shape) != 4:
            raise ValueError(f"the output of a node has shape {tuple(shape)}")
    return (shapes[0][2], shapes[0][3]), sum(shape[1] for shape in shapes)


def _pooled(output: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """Return a node's output (images, channels, cells down, cells across) as (images, rows, columns, channels)."""
    by_row = output.permute(0, 2, 3, 1).flatten(2)  # a view: the backbone computes in channels-last order
    rows = torch.matmul(down, by_row).view(len(output), len(down), output.shape[3], output.shape[1])
    return torch.matmul(across, rows)


def _pooling(cells: int, grid: int, kernel: int, stride: int) -> torch.Tensor:
    """Return the matrix (positions, cells) that resizes an axis to the grid bilinearly and average-pools it (Eq. 3)."""
    basis = torch.eye(cells, dtype=torch.float64).unsqueeze(0)
    resized = F.interpolate(basis, size=grid, mode="linear", align_corners=False)
    return F.avg_pool1d(resized, kernel, stride)[0].T.float().contiguous()


def choose_channels(channels: int, count: int, seed: int) -> NDArray[np.int64]:
    """Draw ``count`` of the channels at random (PaDiM: Defard et al. 2020, arXiv:2011.08785, section III-A).

    The raw output of PCG64 ranks the channels. NumPy keeps that output the same on every platform and in every version,
    unlike what `numpy.random.Generator` derives from it, and a map must be scored with the channels that it was fitted
    on. A smaller subset of the same seed lies within a larger one.

    Returns (count,) int64 in ascending order; raises `ConfigError` if there are fewer channels than ``count``.
    """
    if count > channels:
        raise ConfigError(
            f"features.channels = {count}, but the backbone's nodes have only {channels} channels. Choose {channels} "
            "or fewer, name more nodes, or leave the option out for all channels."
        )
    ranks = np.random.PCG64(seed).random_raw(channels)
    return np.sort(np.argsort(ranks, kind="stable")[:count])


_build_lock = Lock()


@lru_cache(maxsize=2)
def _shared(features: FeaturesConfig) -> PatchExtractor:
    return PatchExtractor(features)


def shared_extractor(features: FeaturesConfig, weights_digest: str = "") -> PatchExtractor:
    """Return this process's extractor for a configuration, building it on first use; it does not pickle.

    Raises `WeightsError` if ``weights_digest`` is not empty and this machine's weights have another digest.
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

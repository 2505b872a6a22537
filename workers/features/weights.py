"""The backbone's weights: where they come from, and the digest that identifies them.

Nothing is unpickled: state dicts are loaded with ``weights_only=True``.
"""

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import torch
import torchvision

from schemas.config import FeaturesConfig
from schemas.errors import ConfigError, WeightsError
from workers.storage.directory import read_bytes

StateDict = Mapping[str, torch.Tensor]


def build_model(features: FeaturesConfig) -> tuple[torch.nn.Module, str]:
    """Build the backbone with its weights, in evaluation mode on the CPU.

    Returns
    -------
    model : torch.nn.Module
    digest : str
        sha256 hex of the weights: of the file for ``imagenet`` and paths, of the tensors for ``random``.

    Raises
    ------
    ConfigError
        When torchvision has no such backbone.
    WeightsError
        When the weights cannot be loaded or do not fit the backbone.
    """
    if features.backbone not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigError(
            f"features.backbone = {features.backbone!r} is not a torchvision classification model. "
            "Choose one of torchvision.models, like wide_resnet50_2, resnet18 or squeezenet1_1."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(features.seed)
        # These two would warn about their initialisation for training.
        quiet = {"init_weights": True} if features.backbone in {"googlenet", "inception_v3"} else {}
        model = torchvision.models.get_model(features.backbone, weights=None, **quiet)
    if features.weights == "random":
        digest = _tensor_digest(model.state_dict())
    else:
        content = _imagenet_file(features.backbone) if features.weights == "imagenet" else _local_file(features.weights)
        _load(model, content, features)
        digest = hashlib.sha256(content).hexdigest()
    return model.eval(), digest


def _imagenet_file(backbone: str) -> bytes:
    """Return the backbone's ImageNet file from torch's cache, downloading it if necessary."""
    known = torchvision.models.get_model_weights(backbone)
    # The paper and PaDiM used the first edition; later editions have different feature statistics.
    entry = known["IMAGENET1K_V1"] if "IMAGENET1K_V1" in known.__members__ else known.DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    try:
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            # The names of torchvision's files end with the first digits of the digest.
            digest = cached.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(entry.url, str(cached), hash_prefix=digest, progress=False)
        return cached.read_bytes()
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"features.weights = 'imagenet': {entry.url} could not be downloaded ({error}). Download it on a machine "
            f"with a network, then put it into {cached.parent} or pass it with --set features.weights=PATH. To try "
            "the pipeline only, use --set features.weights=random."
        ) from error


def _local_file(location: str) -> bytes:
    try:
        return read_bytes(location)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"features.weights = {location!r} cannot be read ({type(error).__name__}: {error}). "
            "Use 'imagenet', 'random', or the path or URL of a state dict saved by torch.save."
        ) from error


def _load(model: torch.nn.Module, content: bytes, features: FeaturesConfig) -> None:
    try:
        state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything on bytes that are not weights
        raise WeightsError(
            f"features.weights = {features.weights!r} is not a plain state dict ({_first_line(error)}). "
            "Save one with torch.save(model.state_dict(), path)."
        ) from error
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"features.weights = {features.weights!r} holds a {type(state).__name__}, not a state dict. "
            "Save one with torch.save(model.state_dict(), path)."
        )
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"features.weights = {features.weights!r} does not fit features.backbone = {features.backbone!r}: "
            f"{_first_line(error)} Name the backbone that the weights were saved from."
        ) from error


def _first_line(error: Exception) -> str:
    """Return an exception's message on one short line."""
    return " ".join(str(error).split())[:300]


def _tensor_digest(state: StateDict) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].numpy().tobytes())
    return digest.hexdigest()

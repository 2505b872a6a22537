"""The backbone's weights: where they come from, and the digest that identifies them.

Nothing is unpickled: state dicts are loaded with ``weights_only=True``, and safetensors files hold tensors alone.
"""

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import safetensors.torch
import torch
import torchvision

from schemas.config import FeaturesConfig
from schemas.errors import WeightsError
from workers.features.backbones import classifier_parts, import_timm, new_model, own_configuration, timm_name
from workers.storage.directory import read_bytes

StateDict = Mapping[str, torch.Tensor]


def build_model(features: FeaturesConfig) -> tuple[torch.nn.Module, str]:
    """Build the backbone with its weights, in evaluation mode on the CPU.

    Returns
    -------
    model : torch.nn.Module
    digest : str
        sha256 hex of the weights: of the file for paths and torchvision's ``imagenet``, of the tensors for ``random``
        and timm's ``imagenet``.

    Raises
    ------
    ConfigError
        When neither torchvision nor timm has such a backbone.
    WeightsError
        When the weights cannot be loaded or do not fit the backbone.
    """
    model, name = new_model(features), timm_name(features.backbone)
    if features.weights == "random":
        return model.eval(), tensor_digest(model.state_dict())
    if features.weights == "imagenet" and name is not None:
        state = _timm_state(name)
        digest = tensor_digest(state)
    else:
        content = _imagenet_file(features.backbone) if features.weights == "imagenet" else _local_file(features.weights)
        state, digest = _parse(content, features), hashlib.sha256(content).hexdigest()
    return _loaded(model, state, features).eval(), digest


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


def _timm_state(name: str) -> StateDict:
    """Return timm's own weights of a model from the caches of Hugging Face or torch, downloading them if necessary."""
    timm = import_timm()
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.has_weights:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        raise WeightsError(
            f"features.weights = 'imagenet': timm has no weights of {name!r}; it has: {tags}. Name one of these as "
            "features.backbone, or give the path or URL of a file."
        )
    place = f"https://huggingface.co/{known.hf_hub_id}" if known.hf_hub_id else known.url
    try:
        if known.hf_hub_id:
            named = {"filename": known.hf_hub_filename} if known.hf_hub_filename else {}
            state: StateDict = timm.models.load_state_dict_from_hf(known.hf_hub_id, **named)
        else:
            state = torch.hub.load_state_dict_from_url(place, map_location="cpu", weights_only=True)
    except Exception as error:  # Hugging Face's client and torch raise anything
        raise WeightsError(
            f"features.weights = 'imagenet': {place} could not be downloaded ({_first_line(error)}). Download its "
            "model.safetensors on a machine with a network and pass it with --set features.weights=PATH. To try the "
            "pipeline only, use --set features.weights=random."
        ) from error
    return state


def _local_file(location: str) -> bytes:
    try:
        return read_bytes(location)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"features.weights = {location!r} cannot be read ({type(error).__name__}: {error}). "
            "Use 'imagenet', 'random', or the path or URL of a state dict, saved by torch.save or as safetensors."
        ) from error


def _parse(content: bytes, features: FeaturesConfig) -> StateDict:
    """Return the state dict in a file of torch.save or of safetensors, told apart by their content."""
    try:
        if _is_safetensors(content):
            state = safetensors.torch.load(content)
        else:
            state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything on bytes that are not weights
        raise WeightsError(
            f"features.weights = {features.weights!r} is not a plain state dict ({_first_line(error)}). "
            "Save one with torch.save(model.state_dict(), path) or safetensors.torch.save_model(model, path)."
        ) from error
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"features.weights = {features.weights!r} holds a {type(state).__name__}, not a state dict. "
            "Save one with torch.save(model.state_dict(), path)."
        )
    return state


def _is_safetensors(content: bytes) -> bool:
    """Tell whether a file begins as safetensors do: the length of a JSON object in 8 bytes, then the object."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content)


def _loaded(model: torch.nn.Module, state: StateDict, features: FeaturesConfig) -> torch.nn.Module:
    """Return the model with the weights; those that only make classes of features may be missing, or of other ones."""
    try:
        whole = _with_own_classifier(model, state)
        if own_configuration(model) is None:
            model.load_state_dict(whole)
            return model
        # timm itself, since it fits embeddings of positions to the size of the images.
        overlay = {"state_dict": whole, "custom_load": False}
        return new_model(features, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # each model's loading raises what it meets
        raise WeightsError(
            f"features.weights = {features.weights!r} does not fit features.backbone = {features.backbone!r}: "
            f"{_first_line(error)} Name the backbone that the weights were saved from."
        ) from error


def _with_own_classifier(model: torch.nn.Module, state: StateDict) -> dict[str, torch.Tensor]:
    """Return a state dict with the model's classifier in place of one that is missing or of other classes."""
    parts, own = classifier_parts(model), model.state_dict()
    mine = {name: value for name, value in own.items() if name.partition(".")[0] in parts}
    others = {name: value for name, value in state.items() if str(name).partition(".")[0] not in parts}
    if not others:
        raise ValueError("it has no weights of features.")
    fitting = {name: state[name] for name, value in mine.items() if getattr(state.get(name), "shape", 0) == value.shape}
    return {**others, **mine, **fitting}


def _first_line(error: Exception) -> str:
    """Return an exception's message on one short line."""
    return " ".join(str(error).split())[:300]


def tensor_digest(state: StateDict) -> str:
    """Return the sha256 hex of the names and values of tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        values = state[name].contiguous()
        # NumPy has no bfloat16.
        digest.update((values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy().tobytes())
    return digest.hexdigest()

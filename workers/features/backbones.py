"""Which library a backbone comes from, and what the model says of itself: nodes, normalisation, grid of tokens.

A name means torchvision's model; a name that torchvision does not have means timm's, and ``timm/NAME`` always does.
timm is optional, and imported only for its own models.
"""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
import torchvision

from schemas.backbones import PAPER_GRID, PAPER_KERNEL, PAPER_STRIDE, family_nodes
from schemas.config import FeaturesConfig
from schemas.errors import ConfigError

_PREFIX = "timm/"

# Where in torchvision's models what makes classes of features lies; backbones of timm say it themselves.
_CLASSIFIERS = frozenset({"fc", "classifier", "head", "heads", "AuxLogits", "aux1", "aux2"})

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def timm_name(backbone: str) -> str | None:
    """Return the name of a backbone within timm; None for a model of torchvision.

    Raises
    ------
    ConfigError
        When neither has such a model, or timm is needed and not installed.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if backbone in known:
        return None
    name = backbone.removeprefix(_PREFIX)
    problem = f"features.backbone = {backbone!r} is not a torchvision classification model"
    try:
        timm = import_timm()
    except ImportError as error:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or ["wide_resnet50_2", "resnet18"]
        raise ConfigError(
            f"{problem}, and timm, which has more, cannot be imported ({error}). Choose one like {', '.join(near)}, or "
            "install timm with: pip install 'paire[timm]'."
        ) from error
    if not timm.is_model(name):
        names = [*known, *timm.list_models()]
        near = difflib.get_close_matches(name.partition(".")[0], names, n=4, cutoff=0.5) or ["resnet18"]
        raise ConfigError(f"{problem}, nor is it one of timm. Choose one like {', '.join(near)}.")
    return name


def import_timm() -> Any:
    """Return the package timm; raises `ImportError` if it is not installed."""
    return importlib.import_module("timm")


def new_model(features: FeaturesConfig, **pretrained: Any) -> torch.nn.Module:
    """Build the backbone with the random weights of its seed.

    Parameters
    ----------
    **pretrained
        Of ``timm.create_model``, to load weights as timm does.

    Raises
    ------
    ConfigError
        When there is no such backbone, or it cannot be built for images of this size.
    """
    name = timm_name(features.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(features.seed)
        if name is not None:
            return _new_timm_model(name, features, **pretrained)
        # These two would warn about their initialisation for training.
        quiet = {"init_weights": True} if features.backbone in {"googlenet", "inception_v3"} else {}
        model: torch.nn.Module = torchvision.models.get_model(features.backbone, weights=None, **quiet)
        return model


def _new_timm_model(name: str, features: FeaturesConfig, **pretrained: Any) -> torch.nn.Module:
    timm = import_timm()
    # Models whose embedding of positions has a fixed size are built for the size of the images.
    known = timm.get_pretrained_cfg(name.partition(".")[0])
    size = {"img_size": features.image_size} if known is not None and known.fixed_input_size else {}
    try:
        model: torch.nn.Module = timm.create_model(name, **size, **pretrained)
    except Exception as error:  # each model checks its arguments in its own way
        if pretrained:
            raise
        raise ConfigError(
            f"timm cannot build features.backbone = {features.backbone!r} for features.image_size = "
            f"{features.image_size}: {error} ({type(error).__name__}). Choose another size or backbone."
        ) from error
    return model


def own_configuration(model: torch.nn.Module) -> Mapping[str, Any] | None:
    """Return the configuration that a model of timm has with it; None for a model of torchvision."""
    configuration: Mapping[str, Any] | None = getattr(model, "pretrained_cfg", None)
    return configuration


def classifier_parts(model: torch.nn.Module) -> frozenset[str]:
    """Return the top-level names of the modules that make classes of features; these need no weights."""
    configuration = own_configuration(model)
    if configuration is None:
        return _CLASSIFIERS
    names = configuration.get("classifier") or ()
    return frozenset(name.partition(".")[0] for name in ([names] if isinstance(names, str) else names))


def with_model_defaults(features: FeaturesConfig, model: torch.nn.Module) -> tuple[FeaturesConfig, Normalisation]:
    """Return the options with the model's own nodes if none are set, and mean and deviation of its pixels.

    What a model of timm says depends on the version of timm: the options returned have its normalisation too, so
    that whoever uses them elsewhere needs no version.

    Raises
    ------
    ConfigError
        When no nodes are set and the model suggests none, or its patches would leave out a part of each image.
    """
    nodes = features.nodes or family_nodes(features.backbone) or _suggested_nodes(model)
    if not nodes:
        raise ConfigError(
            f"features.nodes is not set, and {features.backbone!r} has no default nodes. Name some with --set "
            f"features.nodes=A,B from: {', '.join(outer_modules(model)[:40])}, ..."
        )
    _require_whole_patches(features, model)
    mean, std = _normalisation(features.backbone, model)
    mean, std = features.mean or mean, features.std or std
    recorded = {} if own_configuration(model) is None else {"mean": mean, "std": std}
    return features.model_copy(update={"nodes": nodes, **recorded}), (mean, std)


def _require_whole_patches(features: FeaturesConfig, model: torch.nn.Module) -> None:
    """Raise ConfigError if the patches of a transformer do not cover the image."""
    embedding: Any = getattr(model, "patch_embed", None)
    if not getattr(embedding, "grid_size", None):  # none, or patches that overlap
        return
    side = int(embedding.patch_size[0])
    if features.image_size % side:
        size = features.image_size // side * side
        raise ConfigError(
            f"features.image_size = {features.image_size} is not a multiple of {side}, the side of the patches of "
            f"{features.backbone!r}. Use --set features.image_size={size} or {size + side}."
        )


def _suggested_nodes(model: torch.nn.Module) -> tuple[str, ...]:
    """Return nodes at a quarter, half and three quarters of a transformer, or at an image's 4th, 8th and 16th part."""
    suggested: Any = getattr(model, "feature_info", None) or ()
    modules = [str(step["module"]) for step in suggested]
    if not set(modules) <= dict(model.named_modules()).keys():  # what it calls a step is no module
        return ()
    steps = {int(step["reduction"]): module for step, module in zip(suggested, modules, strict=True)}
    if {4, 8, 16} <= steps.keys():
        return steps[4], steps[8], steps[16]
    if len(steps) == 1 and len(modules) >= 4:
        return tuple(modules[len(modules) * quarter // 4 - 1] for quarter in (1, 2, 3))
    return ()


def _normalisation(backbone: str, model: torch.nn.Module) -> Normalisation:
    configuration = own_configuration(model)
    if configuration is not None:
        return tuple(configuration["mean"]), tuple(configuration["std"])
    preset = torchvision.models.get_model_weights(backbone).DEFAULT.transforms()
    return tuple(preset.mean), tuple(preset.std)


def outer_modules(model: torch.nn.Module) -> list[str]:
    """Return the names of the modules down to the second level."""
    return [name for name, _ in model.named_modules() if name and name.count(".") < 2]


def token_pooling(cells: int) -> tuple[int, int]:
    """Return a kernel and stride on a side of ``cells`` tokens that are as large a share of it as the paper's.

    16 tokens, of patches of 16 pixels at 256 pixels, give 3 and 1: 14 positions, as many as in the paper.
    """
    return ceil(cells * PAPER_KERNEL / PAPER_GRID), max(1, round(cells * PAPER_STRIDE / PAPER_GRID))


def token_grid(model: torch.nn.Module, tokens: int) -> tuple[int, int, int]:
    """Return the number of tokens before those of the image, and the rows and columns of the image's.

    Raises
    ------
    ValueError
        When the tokens are no grid.
    """
    prefix = getattr(model, "num_prefix_tokens", None) or 0
    grid: Sequence[int] | None = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    for before in (prefix, 0):  # some blocks come before the prefix does
        side = round((tokens - before) ** 0.5)
        rows, columns = grid or (side, side)
        if rows * columns == tokens - before:
            return before, rows, columns
        if side * side == tokens - before:
            return before, side, side
    raise ValueError(f"{tokens} tokens, {prefix} of them before the image's, are not a grid")

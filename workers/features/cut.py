"""A backbone, cut at its nodes: from pixels to a map for each node, and no further than the last one.

No later step can change a map: a node's output is copied before an in-place activation after it may overwrite it.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torchvision
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from schemas.config import FeaturesConfig
from schemas.errors import ConfigError
from workers.features.backbones import outer_modules, own_configuration, token_grid


def cut_at_nodes(model: torch.nn.Module, features: FeaturesConfig) -> torch.nn.Module:
    """Return a module from pixels (images, 3, side, side) to a mapping of node to (images, channels, rows, columns).

    Raises
    ------
    ConfigError
        When the model has no such node, or cannot be cut.
    """
    if own_configuration(model) is None:
        return _fuse_batch_norms(_keep_outputs(_cut_graph(model, features)))
    missing = [node for node in features.nodes if node not in dict(model.named_modules())]
    if missing:
        raise _unknown_nodes(features, outer_modules(model))
    return HookedBackbone(model, features.nodes)


class HookedBackbone(torch.nn.Module):
    """A model that gives the outputs of some of its modules, and computes nothing after the last of them.

    For models of timm, not all of which can be traced. Tokens (images, tokens, channels) become maps without the
    tokens before those of the image; ``gives_tokens`` tells whether the first node's were tokens at the last call.
    """

    def __init__(self, model: torch.nn.Module, nodes: Sequence[str]) -> None:
        super().__init__()
        self.model, self._nodes = model, tuple(nodes)
        self.gives_tokens = False
        # Several threads pass images through the model at once.
        self._of_thread = threading.local()
        for node in dict.fromkeys(nodes):
            model.get_submodule(node).register_forward_hook(partial(self._keep, node))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each node's output; raises ValueError if one is not a map or a grid of tokens."""
        kept: dict[str, Any] = {}
        self._of_thread.kept = kept
        try:
            self.model(pixels)
        except _AllKept:
            pass
        finally:
            del self._of_thread.kept
        if never := [node for node in self._nodes if node not in kept]:
            raise ValueError(f"the model never calls {never[0]!r}")
        self.gives_tokens = kept[self._nodes[0]].ndim == 3
        return {node: self._as_map(output) for node, output in kept.items()}

    def _keep(self, node: str, _module: torch.nn.Module, _inputs: object, output: object) -> None:
        kept = self._of_thread.kept
        if not isinstance(output, torch.Tensor):
            raise ValueError(f"the output of {node!r} is a {type(output).__name__}, not a tensor")
        if node in kept:  # a module that is called again
            return
        is_last = len(kept) + 1 == len(set(self._nodes))
        kept[node] = output if is_last else output.clone()
        if is_last:
            raise _AllKept

    def _as_map(self, output: torch.Tensor) -> torch.Tensor:
        if output.ndim == 3:
            before, rows, columns = token_grid(self.model, output.shape[1])
            of_image = output[:, before:].transpose(1, 2)
            return of_image.reshape(len(output), output.shape[2], rows, columns)
        layout = getattr(self.model, "output_fmt", "NCHW")
        is_channels_last = output.ndim == 4 and getattr(layout, "value", layout) == "NHWC"
        return output.permute(0, 3, 1, 2) if is_channels_last else output


class _AllKept(Exception):  # noqa: N818 - no error: it ends a forward pass that has nothing left to give
    """All nodes have given their outputs."""


def _cut_graph(model: torch.nn.Module, features: FeaturesConfig) -> torch.fx.GraphModule:
    """Return the part of a torchvision model that the nodes need."""
    if isinstance(model, torchvision.models.SwinTransformer):
        raise ConfigError(
            f"features.backbone = {features.backbone!r} gives no maps (images, channels, rows, columns): its channels "
            "come last. Choose one of timm, like swin_tiny_patch4_window7_224."
        )
    try:
        cut: torch.fx.GraphModule = create_feature_extractor(model, list(features.nodes)).eval()
    except ValueError as error:
        names = [name for name in get_graph_node_names(model)[1] if name != "x"]
        raise _unknown_nodes(features, [".".join(name.split(".")[:2]) for name in names]) from error
    except Exception as error:
        raise ConfigError(
            f"features.backbone = {features.backbone!r} cannot be cut at nodes: torchvision cannot trace it "
            f"({type(error).__name__}). Choose a convolutional one, like wide_resnet50_2 or resnet18, or a transformer "
            "of timm, like vit_small_patch16_224."
        ) from error
    return cut


def _unknown_nodes(features: FeaturesConfig, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"features.nodes = {','.join(features.nodes)!r}: not all are nodes of {features.backbone!r}. "
        f"Choose from: {', '.join(list(dict.fromkeys(known))[:40])}, ..."
    )


def _keep_outputs(cut: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Copy each node's output where it is made, if later steps use it, since they may overwrite it."""
    (output,) = (node for node in cut.graph.nodes if node.op == "output")
    kept = {}
    for name, node in output.args[0].items():
        kept[name] = node
        if len(node.users) > 1:
            with cut.graph.inserting_after(node):
                kept[name] = cut.graph.call_method("clone", (node,))
    output.args = (kept,)
    cut.recompile()
    return cut


def _fuse_batch_norms(cut: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Fold each batch normalisation into the convolution before it, if nothing else uses that output."""
    modules = dict(cut.named_modules())
    calls = Counter(node.target for node in cut.graph.nodes if node.op == "call_module")
    for node in list(cut.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = modules[str(before.target)], modules[str(node.target)]
        is_used_once = calls[before.target] == 1  # fusing changes all its calls
        if is_used_once and isinstance(convolution, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
            fused = fuse_conv_bn_eval(convolution, norm)
            convolution.weight, convolution.bias = fused.weight, fused.bias
            node.replace_all_uses_with(before)
            cut.graph.erase_node(node)
    cut.recompile()
    return cut

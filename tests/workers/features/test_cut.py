"""A backbone cut at its nodes: each map is what the whole model computes there, whatever comes after it."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from schemas.config import FeaturesConfig, parse_config
from schemas.errors import ConfigError
from workers.features.backbones import new_model, with_model_defaults
from workers.features.cut import HookedBackbone, cut_at_nodes

WITH_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
SIZE = 64


def config_of(backbone: str, *nodes: str) -> FeaturesConfig:
    settings = [f"features.backbone={backbone}", "features.weights=random", f"features.image_size={SIZE}"]
    return parse_config(None, [*settings, f"features.nodes={','.join(nodes)}"]).features


def built(backbone: str, *nodes: str) -> tuple[torch.nn.Module, FeaturesConfig]:
    """Return a model in evaluation mode, with statistics of batches that matter, and its configuration."""
    config = config_of(backbone, *nodes)
    model = new_model(config).eval()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) / 10)
    return model, with_model_defaults(config, model)[0]


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def whole_outputs(model: torch.nn.Module, nodes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return what modules put out while the whole model runs, copied at that moment."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output.clone())

    hooks = [model.get_submodule(node).register_forward_hook(keep(node)) for node in nodes]
    with torch.no_grad():
        model(pixels())
    for hook in hooks:
        hook.remove()
    return outputs


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# Nodes whose output the activation after them overwrites in place, unless it is copied before.
OVERWRITTEN = [
    ("vgg11", "features.0", "features.3"),
    ("resnet18", "bn1", "layer1"),
    ("resnet18", "conv1", "layer1"),
    ("resnet18", "layer1.1.bn2", "layer2"),
    ("squeezenet1_1", "features.0", "features.3"),
    ("densenet121", "features.norm0", "features.denseblock1"),
    ("timm/resnet18", "conv1", "layer1"),
    ("timm/resnet18", "layer1.1.conv2", "layer2"),
    ("tf_efficientnet_lite0", "conv_stem", "blocks.1"),
]


@WITH_TIMM
@pytest.mark.parametrize(("backbone", "node", "later"), OVERWRITTEN)
def test_no_later_step_changes_the_output_of_a_node(backbone: str, node: str, later: str) -> None:
    model, config = built(backbone, node, later)
    expected = whole_outputs(model, config.nodes)
    with torch.no_grad():
        found = cut_at_nodes(model, config)(pixels())
    assert expected[node].min() < 0
    assert {name: relative(found[name], value) < 1e-5 for name, value in expected.items()} == {node: True, later: True}


@WITH_TIMM
@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenet_v2", "squeezenet1_1", "tf_efficientnet_lite0", "timm/resnet18", "convnext_atto"]
)
def test_maps_of_default_nodes_are_those_of_the_whole_model(backbone: str) -> None:
    model, config = built(backbone)
    expected = whole_outputs(model, config.nodes)
    with torch.no_grad():
        found = cut_at_nodes(model, config)(pixels())
    assert tuple(found) == config.nodes
    assert max(relative(found[node], expected[node]) for node in config.nodes) < 1e-5


@WITH_TIMM
def test_maps_equal_timms_own_features() -> None:
    timm = importlib.import_module("timm")
    model, config = built("tf_efficientnet_lite0")
    reference = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3)).eval()
    reference.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        expected, found = reference(pixels()), cut_at_nodes(model, config)(pixels())
    assert max(relative(*pair) for pair in zip(found.values(), expected, strict=True)) < 1e-5


@WITH_TIMM
def test_maps_of_a_transformer_are_its_tokens_row_by_row_without_those_before_the_images() -> None:
    model, config = built("vit_tiny_patch16_224")
    expected = whole_outputs(model, config.nodes)
    cut = cut_at_nodes(model, config)
    with torch.no_grad():
        found = cut(pixels())
    assert isinstance(cut, HookedBackbone)
    assert cut.gives_tokens
    for node in config.nodes:
        assert found[node].shape == (2, 192, 4, 4)
        for row in range(4):
            for column in range(4):
                token = expected[node][:, 1 + 4 * row + column]
                torch.testing.assert_close(found[node][:, :, row, column], token, rtol=0, atol=0)


@WITH_TIMM
def test_maps_of_a_transformer_equal_timms_own() -> None:
    model, config = built("deit_tiny_distilled_patch16_224")  # two tokens before the image's
    untyped: Any = model
    with torch.no_grad():
        expected = untyped.forward_intermediates(pixels(), indices=[2, 5, 8], intermediates_only=True)
        found = cut_at_nodes(model, config)(pixels())
    assert max(relative(*pair) for pair in zip(found.values(), expected, strict=True)) < 1e-5


@WITH_TIMM
def test_maps_of_channels_that_come_last_are_turned() -> None:
    model, config = built("swin_tiny_patch4_window7_224", "layers.0", "layers.1")
    expected = whole_outputs(model, config.nodes)
    with torch.no_grad():
        found = cut_at_nodes(model, config)(pixels())
    assert found["layers.0"].shape == (2, 96, 16, 16)
    torch.testing.assert_close(found["layers.1"].permute(0, 2, 3, 1), expected["layers.1"])


def test_a_transformer_of_torchvision_with_channels_last_is_refused() -> None:
    model = new_model(config_of("swin_t"))
    with pytest.raises(ConfigError, match=r"'swin_t' gives no maps.*swin_tiny_patch4_window7_224"):
        cut_at_nodes(model, config_of("swin_t", "features.1"))


@WITH_TIMM
def test_nothing_is_computed_after_the_last_node() -> None:
    model, config = built("timm/resnet18", "layer1", "layer2")
    called: list[str] = []
    for name in ("layer2", "layer3", "fc"):
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
    cut_at_nodes(model, config)(pixels())
    assert called == ["layer2"]


@WITH_TIMM
def test_threads_do_not_mix_their_images() -> None:
    cut = cut_at_nodes(*built("timm/resnet18"))
    batches = [pixels()[:1] * scale for scale in range(1, 9)]
    with torch.no_grad():
        expected = [cut(batch)["layer3"] for batch in batches]

    def run(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = cut(batch)["layer3"]
        return output

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, batches))
    assert max(relative(*pair) for pair in zip(found, expected, strict=True)) < 1e-5


@WITH_TIMM
def test_a_module_that_timms_model_does_not_have_is_an_error_that_lists_modules() -> None:
    model, config = built("timm/resnet18", "layer1", "layer9")
    with pytest.raises(ConfigError, match=r"'layer1,layer9': not all are nodes of 'timm/resnet18'.*layer1\.0"):
        cut_at_nodes(model, config)


class Odd(torch.nn.Module):
    """Puts out a list, and has a part that it never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.unused = Pair(), torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> object:
        return self.pair(x)


class Pair(torch.nn.Module):
    """Puts out its input twice."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, x]


@pytest.mark.parametrize(("node", "problem"), [("pair", "is a list, not a tensor"), ("unused", "never calls 'unused'")])
def test_a_node_without_a_map_is_an_error_that_says_why(node: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        HookedBackbone(Odd(), [node])(pixels())

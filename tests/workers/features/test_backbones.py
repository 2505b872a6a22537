"""Names of backbones, and what each model says of itself: nodes, normalisation, tokens; where timm is not installed."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from schemas.config import FeaturesConfig, parse_config
from schemas.errors import ConfigError
from workers.features.backbones import (
    classifier_parts,
    new_model,
    own_configuration,
    timm_name,
    token_grid,
    token_pooling,
    with_model_defaults,
)

WITH_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
PACKAGE = Path(__file__).parents[3] / "pyproject.toml"


def features(backbone: str, *settings: str) -> FeaturesConfig:
    return parse_config(None, ("features.weights=random", f"features.backbone={backbone}", *settings)).features


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make timm an extra that is not installed."""

    def refuse() -> Any:
        raise ImportError("No module named 'timm'")

    monkeypatch.setattr("workers.features.backbones.import_timm", refuse)


def test_a_name_of_torchvision_is_torchvisions_and_needs_no_timm(without_timm: None) -> None:
    assert timm_name("resnet18") is None
    assert own_configuration(new_model(features("resnet18"))) is None


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "timm/resnet18"])
def test_without_timm_its_names_are_an_error_that_says_how_to_install_it(without_timm: None, backbone: str) -> None:
    with pytest.raises(ConfigError, match=r"timm, which has more, cannot be imported .*pip install 'paire\[timm\]'"):
        timm_name(backbone)
    assert '\nname = "paire"\n' in PACKAGE.read_text(encoding="utf-8")


@WITH_TIMM
def test_a_name_that_torchvision_does_not_have_is_timms_and_a_prefix_says_so_too() -> None:
    assert timm_name("test_vit") == timm_name("timm/test_vit") == "test_vit"
    assert timm_name("timm/resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert own_configuration(new_model(features("timm/resnet18"))) is not None


@WITH_TIMM
@pytest.mark.parametrize(
    ("typed", "meant"), [("efficientnet_lite9", "efficientnet_lite"), ("resnet_18", "resnet18"), ("timm/no", "resnet")]
)
def test_a_name_that_neither_has_is_an_error_that_names_near_ones(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"{typed}' is not a torchvision .* nor is it one of timm\. .*{meant}"):
        timm_name(typed)


@WITH_TIMM
def test_a_tag_that_timm_does_not_have_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"timm cannot build .*'test_vit\.none'.*Invalid pretrained tag"):
        new_model(features("test_vit.none"))


NODES = {
    "resnet18": "layer1,layer2,layer3",
    "timm/resnet18": "layer1,layer2,layer3",
    "squeezenet1_1": "features.4,features.7,features.12",
    "mobilenet_v2": "features.4.conv.0,features.7.conv.0,features.14.conv.0",
    "tf_efficientnet_lite0": "blocks.1,blocks.2,blocks.4",
    "convnext_atto": "stages.0,stages.1,stages.2",
    "vit_tiny_patch16_224": "blocks.2,blocks.5,blocks.8",  # of 12 blocks
    "test_vit": "blocks.0,blocks.2,blocks.3",  # of 6
}


@WITH_TIMM
@pytest.mark.parametrize(("backbone", "nodes"), NODES.items())
def test_nodes_that_are_not_set_are_those_of_the_family(backbone: str, nodes: str) -> None:
    for settings in ((), ("features.nodes=",)):
        config = features(backbone, *settings)
        assert ",".join(with_model_defaults(config, new_model(config))[0].nodes) == nodes


@WITH_TIMM
@pytest.mark.parametrize("backbone", ["vgg11", "levit_128s", "hrnet_w18_small"])
def test_a_backbone_without_default_nodes_is_an_error_that_lists_its_modules(backbone: str) -> None:
    config = features(backbone)
    with pytest.raises(ConfigError, match=rf"features\.nodes is not set, and '{backbone}' has no .*from: \w+"):
        with_model_defaults(config, new_model(config))


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@WITH_TIMM
@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("resnet18", IMAGENET), ("timm/resnet18", IMAGENET), ("tf_efficientnet_lite0", HALF), ("test_vit", HALF)],
)
def test_the_normalisation_is_that_of_the_model_and_is_recorded_for_timm(
    backbone: str, expected: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    config = features(backbone)
    recorded, normalisation = with_model_defaults(config, new_model(config))
    assert normalisation == expected
    assert (recorded.mean, recorded.std) == ((None, None) if backbone == "resnet18" else expected)


def test_a_normalisation_that_is_set_counts() -> None:
    config = features("resnet18", "features.mean=0.1,0.2,0.3")
    recorded, normalisation = with_model_defaults(config, new_model(config))
    assert normalisation == ((0.1, 0.2, 0.3), IMAGENET[1])
    assert recorded == config


@WITH_TIMM
def test_patches_that_do_not_cover_the_image_are_an_error_that_names_sizes() -> None:
    config = features("test_vit", "features.image_size=100")
    with pytest.raises(ConfigError, match=r"image_size = 100 is not a multiple of 16.*image_size=96 or 112"):
        with_model_defaults(config, new_model(config))


def test_random_weights_are_those_of_their_seed() -> None:
    one, same, other = (new_model(features("squeezenet1_1", f"features.seed={seed}")) for seed in (1, 1, 2))
    assert torch.equal(one.state_dict()["features.0.weight"], same.state_dict()["features.0.weight"])
    assert not torch.equal(one.state_dict()["features.0.weight"], other.state_dict()["features.0.weight"])


@WITH_TIMM
def test_each_library_says_what_its_classifiers_are() -> None:
    assert classifier_parts(new_model(features("timm/resnet18"))) == {"fc"}
    assert classifier_parts(new_model(features("test_vit"))) == {"head"}
    assert {"fc", "classifier"} <= classifier_parts(new_model(features("squeezenet1_1")))


@pytest.mark.parametrize(
    ("cells", "window", "positions"),
    [(16, (3, 1), 14), (14, (3, 1), 12), (8, (2, 1), 7), (37, (6, 2), 16), (1, (1, 1), 1)],
)
def test_pooling_of_tokens_is_as_large_a_share_as_the_papers(
    cells: int, window: tuple[int, int], positions: int
) -> None:
    kernel, stride = token_pooling(cells)
    assert (kernel, stride) == window
    assert (cells - kernel) // stride + 1 == positions


def model_of_tokens(prefix: int, grid: tuple[int, int] | None) -> Any:
    return SimpleNamespace(num_prefix_tokens=prefix, patch_embed=SimpleNamespace(grid_size=grid))


@pytest.mark.parametrize(
    ("prefix", "grid", "tokens", "found"),
    [
        (1, (3, 5), 16, (1, 3, 5)),
        (1, (3, 5), 15, (0, 3, 5)),  # a block before the prefix comes
        (5, None, 21, (5, 4, 4)),
        (0, None, 9, (0, 3, 3)),
        (1, (4, 4), 5, (1, 2, 2)),  # fewer than the embedding gives: pooled on the way
    ],
)
def test_tokens_lie_in_a_grid_after_those_before_the_images(
    prefix: int, grid: tuple[int, int] | None, tokens: int, found: tuple[int, int, int]
) -> None:
    assert token_grid(model_of_tokens(prefix, grid), tokens) == found


def test_tokens_that_are_no_grid_are_an_error() -> None:
    with pytest.raises(ValueError, match="7 tokens, 1 of them before the image's, are not a grid"):
        token_grid(model_of_tokens(1, (4, 4)), 7)

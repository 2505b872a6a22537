"""Default nodes and pooling by the names of torchvision's models."""

import pytest

from schemas.backbones import family_nodes, family_pooling


@pytest.mark.parametrize(
    ("backbone", "nodes"),
    [
        ("wide_resnet50_2", "layer1,layer2,layer3"),
        ("resnet18", "layer1,layer2,layer3"),
        ("resnext50_32x4d", "layer1,layer2,layer3"),
        ("squeezenet1_1", "features.4,features.7,features.12"),
        ("mobilenet_v2", "features.4.conv.0,features.7.conv.0,features.14.conv.0"),
        ("efficientnet_b0", "features.2,features.3,features.5"),
    ],
)
def test_a_family_has_its_nodes_and_the_papers_pooling(backbone: str, nodes: str) -> None:
    assert ",".join(family_nodes(backbone)) == nodes
    assert family_pooling(backbone) == (10, 4)


@pytest.mark.parametrize("backbone", ["", "vgg11", "timm/resnet18", "tf_efficientnet_lite0", "vit_b_16", "resnet18.a1"])
def test_a_name_of_no_family_leaves_both_to_the_model(backbone: str) -> None:
    assert family_nodes(backbone) == ()
    assert family_pooling(backbone) == (None, None)

"""What is known of torchvision's backbones by their names alone, without torch."""

import re
from typing import Final

# The paper's pooling on a grid of 64 x 64 cells: kernel and stride (section 4.2).
PAPER_GRID: Final = 64
PAPER_KERNEL: Final = 10
PAPER_STRIDE: Final = 4

# Mean and standard deviation of pixels that the paper's backbone and others of torchvision were trained with.
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

# The last outputs at a quarter, an eighth and a sixteenth of the image's size, by torchvision's names of models.
# The nodes of mobilenet_v2 are the widened ones of the blocks after these, which have six times as many channels.
_FAMILIES: Final = {
    r"(wide_)?resnet\d+(_2)?|resnext\d+_\d+x\d+d": ("layer1", "layer2", "layer3"),
    r"squeezenet1_0": ("features.5", "features.10", "features.12"),
    r"squeezenet1_1": ("features.4", "features.7", "features.12"),
    r"mobilenet_v2": ("features.4.conv.0", "features.7.conv.0", "features.14.conv.0"),
    r"mobilenet_v3_large": ("features.3", "features.6", "features.12"),
    r"mobilenet_v3_small": ("features.1", "features.3", "features.8"),
    r"efficientnet_(b[0-7]|v2_[sml])": ("features.2", "features.3", "features.5"),
    r"convnext_(tiny|small|base|large)": ("features.1", "features.3", "features.5"),
    r"densenet(121|161|169|201)": ("features.denseblock1", "features.denseblock2", "features.denseblock3"),
    r"regnet_[xy]_\d+(_\d)?[mg]f": ("trunk_output.block1", "trunk_output.block2", "trunk_output.block3"),
}


def family_nodes(backbone: str) -> tuple[str, ...]:
    """Return the default nodes of a backbone of torchvision; empty if its name does not tell them."""
    return next((nodes for names, nodes in _FAMILIES.items() if re.fullmatch(names, backbone)), ())


def family_pooling(backbone: str) -> tuple[int, int] | tuple[None, None]:
    """Return the default kernel and stride of average pooling; None if the name does not tell them."""
    return (PAPER_KERNEL, PAPER_STRIDE) if family_nodes(backbone) else (None, None)

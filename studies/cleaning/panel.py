"""The panel: which sets and which backbones the study covers.

A result on one set says little about the next, so everything is measured on all of them. The sets lie in one folder,
each under its usual name. Others are made from them: see `studies.cleaning.made`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import SourceError
from studies.cleaning.dirty_sets import source_of
from studies.cleaning.made import Change, make_mixed, shift, turn, write_changed

SETS = {
    "bottle": "mvtec_bottle",
    "kolektor": "kolektor_sdd",
    "transistor": "transistor",
    "casting": "casting",
    "magtile": "magtile",
}
"""Name of each set to its folder."""

RANDOM = "random"
"""Instead of a folder of weights: random ones, to try the study out."""


@dataclass(frozen=True)
class Made:
    """A set that is made from others."""

    origins: tuple[str, ...]  # one set to change, or two to mix
    change: Change | None = None  # None mixes


MADE = {
    "bottle-turned": Made(("bottle",), turn),
    "transistor-turned": Made(("transistor",), turn),
    "bottle-shifted": Made(("bottle",), shift),
    "bottle-transistor": Made(("bottle", "transistor")),
}
"""Sets that are made from others: turned freely, shifted by up to a tenth of their side, two products mixed."""

ALL = (*SETS, *MADE)


@dataclass(frozen=True)
class Backbone:
    """A backbone with real weights."""

    name: str  # as in ``features.backbone``
    nodes: str
    weights: str  # name of its file in the folder of weights
    image_size: int = 256
    pool_kernel: int = 10
    pool_stride: int = 4

    def settings(self, folder: str) -> tuple[str, ...]:
        """Return the settings of its features, with weights from a folder, or `RANDOM` ones."""
        return (
            f"features.backbone={self.name}",
            f"features.nodes={self.nodes}",
            f"features.image_size={self.image_size}",
            f"features.pool_kernel={self.pool_kernel}",
            f"features.pool_stride={self.pool_stride}",
            f"features.weights={RANDOM if folder == RANDOM else Path(folder) / self.weights}",
        )


BACKBONES = {
    one.name: one
    for one in (
        Backbone("squeezenet1_1", "features.4,features.7,features.12", "squeezenet1_1-imagenet.pth"),
        Backbone(
            "mobilenet_v2",
            "features.4.conv.0,features.7.conv.0,features.14.conv.0",
            "mobilenet_v2-imagenet-features.pth",
        ),
        Backbone("tf_efficientnet_lite0", "blocks.1,blocks.2,blocks.4", "tf_efficientnet_lite0-imagenet.safetensors"),
    )
}
"""The backbones by name; constants are swept with the first."""


def origins_of(name: str) -> frozenset[str]:
    """Return the sets whose images a set holds: itself, or those that it was made from."""
    return frozenset(MADE[name].origins) if name in MADE else frozenset({name})


def find_sets(data: Path, names: Sequence[str], scratch: Path) -> dict[str, Path]:
    """Return the source of labels of each set, and make those that are made.

    Parameters
    ----------
    data
        The folder of the sets.
    names
        From `ALL`.
    scratch
        Gets a folder for each set that is made; one that is there already is used again.

    Raises
    ------
    SourceError
        When a set is not there or cannot be read.
    """
    return {name: _make(data, name, scratch) if name in MADE else _find(data, name) for name in names}


def _find(data: Path, name: str) -> Path:
    folder = data / SETS[name]
    if not folder.is_dir():
        raise SourceError(
            f"the set {name!r} was looked for in {str(folder)!r}, which is not a folder. Put it there, or name the "
            "sets that you have with --sets."
        )
    return source_of(folder.resolve())


def _make(data: Path, name: str, scratch: Path) -> Path:
    made, sources = MADE[name], [_find(data, origin) for origin in MADE[name].origins]
    folder = scratch.resolve() / name
    if made.change is None:
        make_mixed(sources, folder)
    else:
        write_changed(sources[0], folder, made.change)
    return source_of(folder)

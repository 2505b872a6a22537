"""Patch features: their geometry, a literal torch computation of them, precision, range, and one model per process."""

import dataclasses
import importlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn.functional import avg_pool2d, interpolate

from schemas.config import FeaturesConfig, parse_config
from schemas.errors import ConfigError, FeatureRangeError, WeightsError
from schemas.stores.features import FeatureGeometry
from tests.support.archives import part_pixels, tiny_config
from workers.compute import set_compute_threads
from workers.features.extractor import SLICE_IMAGES, PatchExtractor, choose_channels, shared_extractor
from workers.features.weights import build_model

WITH_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
RESNET = ("features.backbone=resnet18",)
SQUEEZENET = ("features.backbone=squeezenet1_1", "features.nodes=features.4,features.7,features.12")


PADIM_SUBSET = [3, 11, 20, 92, 113, 150, 196, 269, 333, 340, 365, 403]


def features(*settings: str) -> FeaturesConfig:
    return parse_config(None, ("features.weights=random", *settings)).features


def images(count: int, size: int) -> NDArray[np.float32]:
    """Return (count, size, size, 3) float32 in 0..1."""
    return np.stack([part_pixels(seed, size=size) for seed in range(count)]).astype(np.float32) / np.float32(255)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ((*RESNET, "features.image_size=256"), (14, 14, 448)),
        ((*RESNET, "features.image_size=224"), (12, 12, 448)),
        ((*SQUEEZENET, "features.image_size=256"), (14, 14, 896)),
        (("features.backbone=wide_resnet50_2",), (14, 14, 1792)),
    ],
    ids=["resnet18 256", "resnet18 224", "squeezenet 256", "default"],
)
def test_positions_and_channels_are_those_of_the_paper(settings: tuple[str, ...], shape: tuple[int, ...]) -> None:
    extractor = PatchExtractor(features(*settings))
    geometry = extractor.geometry
    assert geometry.array_shape(1) == (1, *shape)
    assert (geometry.pool_kernel, geometry.pool_stride) == (10, 4)
    assert extractor.extract(images(1, 256 if "224" not in settings[-1] else 224)).shape == (1, *shape)


def test_geometry_says_which_cells_of_the_first_nodes_grid_are_pooled() -> None:
    config = features(*RESNET, "features.image_size=64", "features.pool_kernel=5", "features.pool_stride=3")
    assert PatchExtractor(config).geometry == FeatureGeometry(4, 4, 448, 16, 16, 5, 3)


def test_grids_that_do_not_divide_are_resized_to_the_first_nodes() -> None:
    config = features(*RESNET, "features.image_size=75", "features.pool_kernel=4", "features.pool_stride=4")
    extractor = PatchExtractor(config)
    assert (extractor.geometry.grid_rows, extractor.geometry.rows) == (19, 4)
    assert extractor.extract(images(2, 75)).shape == (2, 4, 4, 448)


def literal_features(model: torch.nn.Module, pixels: NDArray[np.float32], kernel: int, stride: int) -> NDArray[Any]:
    """Return the patch features of a ResNet's three layers, module by module (Eqs. 1-3)."""
    net: Any = model
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        x = ((torch.tensor(pixels) - mean) / std).permute(0, 3, 1, 2).contiguous()
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        one = net.layer1(x)
        two = net.layer2(one)
        three = net.layer3(two)
        grid = one.shape[-2:]
        resized = [interpolate(layer, grid, mode="bilinear", align_corners=False) for layer in (two, three)]
        pooled = avg_pool2d(torch.cat([one, *resized], dim=1), kernel, stride)
    result: NDArray[Any] = pooled.permute(0, 2, 3, 1).numpy()
    return result


def test_features_equal_a_literal_computation() -> None:
    config = features(*RESNET, "features.image_size=128", "features.dtype=float32", "features.pool_stride=3")
    pixels = images(3, 128)
    expected = literal_features(build_model(config)[0], pixels, 10, 3)
    found = PatchExtractor(config).extract(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_order_of_nodes_is_the_order_of_channels_and_the_first_ones_grid_is_everyones() -> None:
    one, two = (
        PatchExtractor(features(*RESNET, "features.image_size=64", f"features.nodes={nodes}", "features.pool_kernel=2"))
        for nodes in ("layer1,layer2", "layer2,layer1")
    )
    assert (one.geometry.grid_rows, two.geometry.grid_rows) == (16, 8)
    assert one.geometry.channels == two.geometry.channels == 192


def test_features_are_stored_in_half_precision_by_default() -> None:
    full, half = (
        PatchExtractor(tiny_config(f"features.dtype={dtype}").features).extract(images(2, 64))
        for dtype in ("float32", "float16")
    )
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_bf16_features_are_close_to_fp32() -> None:
    settings = (*RESNET, "features.image_size=128", "features.dtype=float32")
    full, short = (
        PatchExtractor(features(*settings, f"features.precision={precision}")).extract(images(2, 128))
        for precision in ("fp32", "bf16")
    )
    assert short.dtype == np.float32
    difference = np.linalg.norm(short - full) / np.linalg.norm(full)
    assert 0 < difference < 0.02


def test_the_same_batch_gives_the_same_bits() -> None:
    extractor = PatchExtractor(tiny_config().features)
    np.testing.assert_array_equal(extractor.extract(images(5, 64)), extractor.extract(images(5, 64)))


def test_an_image_has_the_same_features_in_any_batch_but_for_rounding() -> None:
    extractor = PatchExtractor(tiny_config("features.dtype=float32").features)
    together = extractor.extract(images(5, 64))
    alone = np.concatenate([extractor.extract(image[np.newaxis]) for image in images(5, 64)])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4 * np.abs(together).max())


def test_features_are_the_same_bits_on_any_number_of_threads() -> None:
    extractor = PatchExtractor(tiny_config("features.dtype=float32").features)
    pixels, before = images(2 * SLICE_IMAGES + 1, 64), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            set_compute_threads(threads)
            found.append(extractor.extract(pixels))
    finally:
        set_compute_threads(before)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_a_batch_is_the_slices_that_it_is_cut_into() -> None:
    extractor = PatchExtractor(tiny_config("features.dtype=float32").features)
    pixels = images(2 * SLICE_IMAGES + 1, 64)
    apart = [extractor.extract(pixels[at : at + SLICE_IMAGES]) for at in range(0, len(pixels), SLICE_IMAGES)]
    np.testing.assert_array_equal(extractor.extract(pixels), np.concatenate(apart))


def test_batches_that_are_started_together_do_not_disturb_one_another() -> None:
    extractor = PatchExtractor(tiny_config().features)
    batches = [images(7, 64)[start:] for start in range(3)]
    expected = [extractor.extract(batch) for batch in batches]
    waiting = [extractor.start(batch) for batch in batches]
    for wait, batch in zip(reversed(waiting), reversed(expected), strict=True):
        np.testing.assert_array_equal(wait(), batch)


def test_batch_normalisations_are_folded_into_the_convolutions_before_them() -> None:
    backbone = PatchExtractor(features(*RESNET, "features.image_size=64", "features.pool_kernel=2")).backbone
    assert isinstance(backbone, torch.fx.GraphModule)
    called = [backbone.get_submodule(str(node.target)) for node in backbone.graph.nodes if node.op == "call_module"]
    assert any(isinstance(module, torch.nn.Conv2d) for module in called)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in called)


def test_the_output_of_a_convolution_that_is_a_node_itself_is_left_alone() -> None:
    config = features(*RESNET, "features.image_size=64", "features.nodes=conv1,layer1", "features.dtype=float32")
    pixels = images(2, 64)
    model: Any = build_model(config)[0]
    with torch.no_grad():
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        first = avg_pool2d(model.conv1(((torch.tensor(pixels) - mean) / std).permute(0, 3, 1, 2)), 10, 4)
    found = PatchExtractor(config).extract(pixels)[..., :64]
    expected = first.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_read_only_pixels_are_extracted_without_a_warning() -> None:
    extractor, pixels = PatchExtractor(tiny_config().features), images(2, 64)
    expected = extractor.extract(pixels)
    pixels.flags.writeable = False
    torch.set_warn_always(True)  # else torch warns once per process, perhaps before this test
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            np.testing.assert_array_equal(extractor.extract(pixels), expected)
    finally:
        torch.set_warn_always(False)
    assert [str(warning.message) for warning in caught] == []


def test_extracting_leaves_its_pixels_alone() -> None:
    pixels = images(2, 64)
    before = pixels.copy()
    PatchExtractor(tiny_config().features).extract(pixels)
    np.testing.assert_array_equal(pixels, before)


@pytest.fixture
def loud_weights(tmp_path: Path) -> Path:
    """Return weights whose first activations are beyond float16 but within float32."""
    model, _ = build_model(tiny_config().features)
    state = model.state_dict()
    state["bn1.weight"] = state["bn1.weight"] * 1e7
    path = tmp_path / "loud.pth"
    torch.save(state, path)
    return path


def test_a_feature_beyond_half_precision_is_an_error_that_says_what_to_do(loud_weights: Path) -> None:
    extractor = PatchExtractor(tiny_config(f"features.weights={loud_weights}").features)
    with pytest.raises(FeatureRangeError, match=r"'resnet18' is .* beyond the range .*features\.dtype=float32"):
        extractor.extract(images(2, 64))


def test_a_feature_beyond_half_precision_fits_single_precision(loud_weights: Path) -> None:
    config = tiny_config(f"features.weights={loud_weights}", "features.dtype=float32").features
    assert PatchExtractor(config).extract(images(2, 64)).max() > np.finfo(np.float16).max


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_not_a_number_is_an_error_in_any_precision(tmp_path: Path, value: float) -> None:
    model, _ = build_model(tiny_config().features)
    torch.save({name: tensor * value for name, tensor in model.state_dict().items()}, tmp_path / "nan.pth")
    extractor = PatchExtractor(
        tiny_config(f"features.weights={tmp_path / 'nan.pth'}", "features.dtype=float32").features
    )
    with pytest.raises(FeatureRangeError, match="not finite"):
        extractor.extract(images(1, 64))


# --- a random subset of channels


def test_a_subset_of_channels_is_that_of_all_features_at_every_position() -> None:
    every = PatchExtractor(tiny_config().features)
    some = PatchExtractor(tiny_config("features.channels=10", "features.seed=0").features)
    chosen = choose_channels(every.geometry.channels, 10, 0)
    pixels = images(3, 64)
    assert dataclasses.replace(some.geometry, channels=every.geometry.channels) == every.geometry
    assert some.geometry.channels == 10
    np.testing.assert_array_equal(some.extract(pixels), every.extract(pixels)[..., chosen])


def test_the_subset_is_the_same_on_every_machine_and_in_every_version() -> None:
    # A published map is scored with the channels that it was fitted on: these numbers must never change.
    assert choose_channels(448, 12, 0).tolist() == PADIM_SUBSET
    assert choose_channels(448, 12, 1).tolist() != PADIM_SUBSET


def test_all_channels_may_be_chosen() -> None:
    assert choose_channels(7, 7, 3).tolist() == list(range(7))
    extractor = PatchExtractor(tiny_config("features.channels=128").features)
    pixels = images(1, 64)
    np.testing.assert_array_equal(extractor.extract(pixels), PatchExtractor(tiny_config().features).extract(pixels))


@given(channels=st.integers(1, 300), seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_subset_has_the_number_of_different_channels_asked_for_in_order_and_smaller_ones_lie_within_it(
    channels: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, channels))
    chosen = choose_channels(channels, count, seed).tolist()
    assert chosen == sorted(set(chosen) & set(range(channels)))
    assert len(chosen) == count
    assert set(choose_channels(channels, data.draw(st.integers(1, count)), seed)) <= set(chosen)


def test_every_channel_is_chosen_about_as_often() -> None:
    seeds = 400
    counts = np.bincount(np.concatenate([choose_channels(40, 10, seed) for seed in range(seeds)]), minlength=40)
    # Five standard deviations of a binomial around its mean.
    spread = 5 * np.sqrt(seeds * 0.25 * 0.75)
    assert np.abs(counts - seeds * 0.25).max() < spread


def test_more_channels_than_there_are_is_an_error_that_gives_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"features\.channels = 129, .* only 128 channels"):
        PatchExtractor(tiny_config("features.channels=129").features)


@pytest.mark.parametrize("nodes", ["layer9", "layer1,layer9", "layer1,", "conv1.weight"])
def test_a_node_that_is_not_there_is_an_error_that_lists_nodes(nodes: str) -> None:
    with pytest.raises(ConfigError, match=rf"features\.nodes = '{nodes}': not all are nodes of 'resnet18'.*layer1\.0"):
        PatchExtractor(features(*RESNET, f"features.nodes={nodes}"))


@pytest.mark.parametrize("nodes", ["fc", "flatten", "layer1,fc", "flatten,layer1"])
def test_a_node_that_gives_no_feature_map_is_an_error_that_names_it(nodes: str) -> None:
    with pytest.raises(ConfigError, match=rf"features\.nodes = '{nodes}' of 'resnet18' do not give feature maps"):
        PatchExtractor(features(*RESNET, "features.image_size=64", f"features.nodes={nodes}"))


def test_a_kernel_larger_than_the_grid_is_an_error_that_gives_both() -> None:
    with pytest.raises(
        ConfigError, match=r"features\.pool_kernel = 17 is larger than the 16 x 16 grid of node 'layer1'"
    ):
        PatchExtractor(features(*RESNET, "features.image_size=64", "features.pool_kernel=17"))


def test_a_kernel_of_the_size_of_the_grid_gives_one_position() -> None:
    config = features(*RESNET, "features.image_size=64", "features.pool_kernel=16")
    assert PatchExtractor(config).geometry.array_shape(1) == (1, 1, 1, 448)


def test_a_backbone_that_cannot_be_cut_is_a_configuration_error() -> None:
    # Vision transformers check the image size while torchvision looks for their nodes.
    with pytest.raises(ConfigError, match="vit_b_32"):
        PatchExtractor(features("features.backbone=vit_b_32", "features.nodes=conv_proj"))


@WITH_TIMM
def test_a_transformer_gives_as_many_positions_as_the_paper_and_says_how() -> None:
    extractor = PatchExtractor(features("features.backbone=test_vit"))
    assert extractor.geometry == FeatureGeometry(14, 14, 192, 16, 16, 3, 1)
    assert (extractor.config.pool_kernel, extractor.config.pool_stride) == (3, 1)
    assert extractor.config.mean == (0.5, 0.5, 0.5)
    again = PatchExtractor(extractor.config)
    assert again.config == extractor.config
    np.testing.assert_array_equal(again.extract(images(2, 256)), extractor.extract(images(2, 256)))


def test_options_that_depend_on_the_model_alone_are_those_that_were_always_recorded() -> None:
    config = features(*SQUEEZENET, "features.image_size=128")
    assert PatchExtractor(config).config == config


def test_the_normalisation_that_is_set_is_used() -> None:
    settings = (*RESNET, "features.image_size=64", "features.pool_kernel=4", "features.dtype=float32")
    own, half = (PatchExtractor(features(*settings, *more)) for more in ((), ("features.mean=0,0,0",)))
    pixels = images(1, 64)
    shifted = pixels + np.array([0.485, 0.456, 0.406], np.float32)
    np.testing.assert_allclose(own.extract(shifted), half.extract(pixels), rtol=1e-3, atol=1e-4)


def test_real_weights_in_timms_layout_equal_timms_own_features(shared: Path) -> None:
    timm = pytest.importorskip("timm")
    path = shared / "weights" / "tf_efficientnet_lite0-imagenet.safetensors"
    settings = ("features.backbone=tf_efficientnet_lite0", f"features.weights={path}", "features.dtype=float32")
    extractor = PatchExtractor(parse_config(None, (*settings, "features.pool_kernel=1")).features)
    own = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3), checkpoint_path="")
    own.load_state_dict(load_file(path), strict=False)
    with torch.inference_mode():
        pixels = torch.from_numpy(images(2, 256)).permute(0, 3, 1, 2)
        expected = own.eval()((pixels - 0.5) / 0.5)
        found = extractor.backbone((pixels - 0.5) / 0.5)
    assert extractor.config.mean == extractor.config.std == (0.5, 0.5, 0.5)
    for map_found, map_expected in zip(found.values(), expected, strict=True):
        assert float((map_found - map_expected).abs().max() / map_expected.abs().max()) < 1e-5


def test_one_process_builds_one_extractor_however_many_threads_ask() -> None:
    config, threads = tiny_config("features.seed=987").features, 8
    barrier = Barrier(threads)

    def ask(_: int) -> PatchExtractor:
        barrier.wait()
        return shared_extractor(config)

    with ThreadPoolExecutor(threads) as pool:
        extractors = list(pool.map(ask, range(threads)))
    assert len({id(extractor) for extractor in extractors}) == 1
    assert shared_extractor(tiny_config("features.seed=987").features) is extractors[0]


def test_the_shared_extractor_has_the_weights_that_are_asked_for() -> None:
    config = tiny_config("features.seed=987").features
    digest = build_model(config)[1]
    assert shared_extractor(config, digest).weights_digest == digest


def test_other_weights_than_those_asked_for_are_an_error_that_gives_both_digests() -> None:
    config = tiny_config("features.seed=987").features
    here = build_model(config)[1][:12]
    with pytest.raises(WeightsError, match=rf"has digest {here} here, but {'0' * 12} is needed"):
        shared_extractor(config, "0" * 64)

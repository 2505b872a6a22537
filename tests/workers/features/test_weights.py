"""The backbone's weights: where they come from, what is refused, and that nothing in a file is executed."""

import hashlib
import importlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision

from schemas.config import FeaturesConfig, parse_config
from schemas.errors import ConfigError, WeightsError
from tests.support.web import serving
from workers.features.weights import build_model, tensor_digest

BACKBONE = "squeezenet1_1"
CACHED_NAME = "squeezenet1_1-b8a52dc0.pth"  # torchvision's name of its ImageNet file


def features(weights: str | Path, backbone: str = BACKBONE, seed: int = 0) -> FeaturesConfig:
    settings = (f"features.backbone={backbone}", f"features.weights={weights}", f"features.seed={seed}")
    return parse_config(None, settings).features


def refusal(weights: str | Path, backbone: str = BACKBONE) -> str:
    with pytest.raises(WeightsError) as caught:
        build_model(features(weights, backbone))
    return str(caught.value)


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def assert_same_parameters(one: torch.nn.Module, other: torch.nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


class Payload:
    """Pickles as a call that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def state() -> OrderedDict[str, torch.Tensor]:
    model, _ = build_model(features("random", seed=42))
    return OrderedDict(model.state_dict())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return torch's folder of downloaded weights, empty, with the network down."""

    def fail(url: str, *_: object, **__: object) -> None:
        raise URLError("the network is down")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_random_weights_are_those_of_their_seed() -> None:
    first, first_digest = build_model(features("random", seed=7))
    torch.rand(5)  # another use of the process's generator must not matter
    second, second_digest = build_model(features("random", seed=7))
    assert_same_parameters(first, second)
    assert first_digest == second_digest


def test_another_seed_gives_other_weights_and_another_digest() -> None:
    assert build_model(features("random", seed=7))[1] != build_model(features("random", seed=8))[1]


def test_building_leaves_the_processs_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build_model(features("random", seed=7))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_a_model_is_ready_for_inference() -> None:
    model, _ = build_model(features("random"))
    assert not any(module.training for module in model.modules())


def test_a_file_gives_its_weights_and_the_sha256_of_its_bytes(
    tmp_path: Path, state: OrderedDict[str, torch.Tensor]
) -> None:
    path = saved(state, tmp_path / "my weights.pth")
    model, digest = build_model(features(path))
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_where_a_file_lies_does_not_matter(tmp_path: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    path = saved(state, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(path.read_bytes())
    with serving({"/c.pth": path.read_bytes()}, {}) as address:
        places = [str(path), str(tmp_path / "b.pth"), f"file://{path}", f"{address}/c.pth"]
        assert len({build_model(features(place))[1] for place in places}) == 1


@pytest.mark.parametrize("weights", ["missing.pth", "nosuchprotocol://bucket/a.pth", "."])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(weights: str) -> None:
    message = refusal(weights)
    assert f"features.weights = {weights!r} cannot be read" in message
    assert "state dict" in message


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_web_server_that_refuses_the_file_is_an_error_that_names_it(status: int) -> None:
    with serving({}, {"/a.pth": status}) as address:
        assert f"features.weights = '{address}/a.pth' cannot be read" in refusal(f"{address}/a.pth")


NOT_WEIGHTS = {
    "empty": b"",
    "text": b"hello world\n",
    "HTML": b"<!DOCTYPE html><html></html>",
    "NUL": b"\x00" * 100,
    "pickled dict": pickle.dumps({"a": 1}, protocol=2),
    "pickle of nothing": b"\x80\x02.",
    "cut pickle": b"\x80",
    "half a zip": b"PK\x03\x04abc",
    "image": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("content", NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_a_file_of_something_else_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    message = refusal(tmp_path / "w.pth")
    assert f"features.weights = {str(tmp_path / 'w.pth')!r}" in message
    assert "torch.save(model.state_dict(), path)" in message


def test_a_truncated_file_is_an_error(tmp_path: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    path = saved(state, tmp_path / "w.pth")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "not a plain state dict" in refusal(path)


@pytest.mark.parametrize(
    ("content", "what"), [([1, 2], "list"), (torch.zeros(3), "Tensor"), (5, "int")], ids=["list", "tensor", "number"]
)
def test_a_file_that_holds_no_dict_is_an_error_that_says_what_it_holds(
    tmp_path: Path, content: object, what: str
) -> None:
    assert f"holds a {what}, not a state dict" in refusal(saved(content, tmp_path / "w.pth"))


def test_weights_of_another_backbone_are_an_error_that_names_both(tmp_path: Path) -> None:
    path = saved(torchvision.models.squeezenet1_0().state_dict(), tmp_path / "w.pth")
    message = refusal(path)
    assert str(path) in message
    assert "does not fit features.backbone = 'squeezenet1_1'" in message


@pytest.mark.parametrize(
    "wrong",
    [{}, {"model": {"a": torch.zeros(1)}}, {1: torch.zeros(2)}, {"features.0.weight": "text"}, {None: None}],
    ids=["empty", "nested", "numbered", "text", "none"],
)
def test_a_dict_that_is_not_a_state_dict_is_an_error(tmp_path: Path, wrong: object) -> None:
    assert "features.backbone = 'squeezenet1_1'" in refusal(saved(wrong, tmp_path / "w.pth"))


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    assert "not a plain state dict" in refusal(saved(torchvision.models.squeezenet1_1(), tmp_path / "w.pth"))


def test_code_in_a_file_is_refused_and_not_executed(tmp_path: Path) -> None:
    path = saved({"features.0.weight": Payload(tmp_path / "executed")}, tmp_path / "w.pth")
    assert "not a plain state dict" in refusal(path)
    assert not (tmp_path / "executed").exists()


def test_code_in_the_download_cache_is_refused_and_not_executed(tmp_path: Path, cache: Path) -> None:
    # A shared machine's cache may have been written by anyone; a file that is there is not hashed again.
    saved({"features.0.weight": Payload(tmp_path / "executed")}, cache / CACHED_NAME)
    with pytest.raises(WeightsError):
        build_model(features("imagenet"))
    assert not (tmp_path / "executed").exists()


def test_a_backbone_that_torchvision_does_not_have_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"'resnet19' is not a torchvision classification model.*resnet18"):
        build_model(features("random", "resnet19"))


@pytest.mark.parametrize("backbone", ["fasterrcnn_resnet50_fpn", "deeplabv3_resnet50", "raft_small", "list_models"])
def test_a_torchvision_model_for_another_task_is_a_configuration_error(backbone: str) -> None:
    with pytest.raises(ConfigError, match="not a torchvision classification model"):
        build_model(features("random", backbone))


def test_imagenet_weights_come_from_torchvisions_cache(cache: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    path = saved(state, cache / CACHED_NAME)
    model, digest = build_model(features("imagenet"))
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("backbone", "url"),
    [
        ("squeezenet1_1", "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"),
        ("resnet50", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),  # the first edition, as in the paper
    ],
)
def test_a_failed_download_is_an_error_that_says_what_to_do(cache: Path, backbone: str, url: str) -> None:
    message = refusal("imagenet", backbone)
    assert f"{url} could not be downloaded" in message
    assert "the network is down" in message
    assert "--set features.weights=PATH" in message
    assert str(cache) in message
    assert "--set features.weights=random" in message


@pytest.mark.parametrize("content", NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_a_broken_file_in_torchvisions_cache_is_an_error_that_names_it(cache: Path, content: bytes) -> None:
    (cache / CACHED_NAME).write_bytes(content)
    assert "features.weights = 'imagenet'" in refusal("imagenet")


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), TimeoutError("slow"), RuntimeError("invalid hash")])
def test_whatever_stops_a_download_is_an_error_that_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert str(error) in refusal("imagenet")


# --- safetensors


def test_a_safetensors_file_gives_the_same_weights_whatever_its_name(
    tmp_path: Path, state: OrderedDict[str, torch.Tensor]
) -> None:
    for name in ("w.safetensors", "w.pth"):
        path = tmp_path / name
        safetensors.torch.save_file(dict(state), path)
        model, digest = build_model(features(path))
        torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_truncated_safetensors_file_is_an_error(tmp_path: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    content = safetensors.torch.save(dict(state))
    for length in (len(content) - 1, len(content) // 2, 300, 8, 0):
        path.write_bytes(content[:length])
        assert "not a plain state dict" in refusal(path)


# --- classifiers


def test_weights_of_features_alone_are_enough(tmp_path: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    of_features = {name: value for name, value in state.items() if name.startswith("features.")}
    model, _ = build_model(features(saved(of_features, tmp_path / "w.pth")))
    found = model.state_dict()
    torch.testing.assert_close({name: found[name] for name in of_features}, of_features, rtol=0, atol=0)


def test_a_classifier_of_other_classes_is_left_out(tmp_path: Path) -> None:
    trained = torchvision.models.resnet18(num_classes=7).state_dict()
    model, _ = build_model(features(saved(trained, tmp_path / "w.pth"), "resnet18"))
    assert model.state_dict()["fc.weight"].shape == (1000, 512)
    torch.testing.assert_close(model.state_dict()["conv1.weight"], trained["conv1.weight"], rtol=0, atol=0)


def test_other_weights_that_are_missing_or_too_many_are_an_error_that_names_them(
    tmp_path: Path, state: OrderedDict[str, torch.Tensor]
) -> None:
    fewer = {name: value for name, value in state.items() if name != "features.3.squeeze.bias"}
    assert 'Missing key(s) in state_dict: "features.3.squeeze.bias"' in refusal(saved(fewer, tmp_path / "a.pth"))
    more = {**state, "features.99.bias": torch.zeros(1)}
    assert 'Unexpected key(s) in state_dict: "features.99.bias"' in refusal(saved(more, tmp_path / "b.pth"))


def test_a_file_of_a_classifier_alone_is_an_error(tmp_path: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    classifier = {name: value for name, value in state.items() if name.startswith("classifier.")}
    assert "no weights of features" in refusal(saved(classifier, tmp_path / "w.pth"))


# --- timm

WITH_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@WITH_TIMM
@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet"])
@pytest.mark.parametrize("classes", [0, 7, 1000])
def test_weights_in_timms_layout_are_loaded_with_any_classifier(tmp_path: Path, backbone: str, classes: int) -> None:
    timm = importlib.import_module("timm")
    size = {"img_size": 256} if backbone == "test_vit" else {}
    trained = timm.create_model(backbone, num_classes=classes, **size)
    safetensors.torch.save_model(trained, str(tmp_path / "w.safetensors"))
    found = build_model(features(tmp_path / "w.safetensors", backbone))[0].state_dict()
    others = {name: value for name, value in trained.state_dict().items() if name in found and "classifier" not in name}
    assert len(others) > 20
    torch.testing.assert_close(
        {name: found[name] for name in others if "head" not in name},
        {name: value for name, value in others.items() if "head" not in name},
        rtol=0,
        atol=0,
    )


@WITH_TIMM
def test_embeddings_of_positions_are_fitted_to_the_size_of_the_images(tmp_path: Path) -> None:
    timm = importlib.import_module("timm")
    path = tmp_path / "w.safetensors"
    trained = timm.create_model("test_vit", img_size=160)
    safetensors.torch.save_model(trained, str(path))
    model, digest = build_model(features(path, "test_vit"))
    trained.set_input_size(img_size=256)
    torch.testing.assert_close(model.state_dict()["pos_embed"], trained.state_dict()["pos_embed"])
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


@WITH_TIMM
def test_weights_of_another_model_of_timm_are_an_error(tmp_path: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    assert "does not fit features.backbone = 'test_vit'" in refusal(saved(state, tmp_path / "w.pth"), "test_vit")


@WITH_TIMM
def test_timms_own_weights_are_downloaded_by_timm_and_known_by_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = importlib.import_module("timm")
    trained = timm.create_model("test_efficientnet")
    asked: list[str] = []

    def download(place: str, **_: object) -> Any:
        asked.append(place)
        return {name: value.clone() for name, value in trained.state_dict().items()}

    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", download)
    model, digest = build_model(features("imagenet", "test_efficientnet"))
    assert_same_parameters(model, trained)
    assert asked == ["timm/test_efficientnet.r160_in1k"]
    other_size = parse_config(None, ["features.backbone=test_efficientnet", "features.image_size=64"]).features
    assert build_model(other_size)[1] == digest
    trained.conv_stem.weight.data.mul_(2)
    assert build_model(other_size)[1] != digest


@WITH_TIMM
def test_a_failed_download_of_timms_weights_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = importlib.import_module("timm")

    def fail(*_: object, **__: object) -> None:
        raise URLError("the network is down")

    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", fail)
    message = refusal("imagenet", "test_efficientnet")
    assert "https://huggingface.co/timm/test_efficientnet.r160_in1k could not be downloaded" in message
    assert "the network is down" in message
    assert "--set features.weights=PATH" in message


@WITH_TIMM
def test_a_model_that_timm_has_no_weights_of_is_an_error() -> None:
    assert "timm has no weights of 'mixer_s32_224'" in refusal("imagenet", "mixer_s32_224")


def test_digests_know_every_type_of_number() -> None:
    values = torch.arange(4.0)
    digests = {tensor_digest({"a": values.to(kind)}) for kind in (torch.float32, torch.float16, torch.bfloat16)}
    assert len(digests) == 3

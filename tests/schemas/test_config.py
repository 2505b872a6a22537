"""The configuration: precedence, conversion, refusals, and what its digest depends on."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import Config, flatten, is_reserved_weights, option_names, parse_config, reference
from schemas.errors import ConfigError

# Another valid value for every option, and whether the result of a run depends on the option.
ALTERNATIVES = {
    "input.group_by": ("{line}/**", True),
    "input.extensions": ("png,bmp", True),
    "input.max_pixels": ("1000", True),
    "input.sixteen_bit_white": ("4095", True),
    "input.max_unreadable_fraction": ("0.5", False),
    "input.roots": ("any", False),
    "input.decode_timeout_s": ("5", False),
    "features.backbone": ("resnet18", True),
    "features.nodes": ("layer1", True),
    "features.weights": ("random", True),
    "features.mean": ("0.5,0.5,0.5", True),
    "features.std": ("1,1,1", True),
    "features.channels": ("100", True),
    "features.seed": ("1", True),
    "features.image_size": ("224", True),
    "features.pool_kernel": ("5", True),
    "features.pool_stride": ("2", True),
    "features.precision": ("bf16", True),
    "features.dtype": ("float32", True),
    "features.device": ("cpu", False),
    "features.batch_size": ("16", True),
    "gaussian.estimator": ("oas", True),
    "gaussian.ridge": ("1e-3", True),
    "gaussian.relative_ridge": ("0.2", True),
    "gaussian.segment_images": ("100", True),
    "trim.strategy": ("paire", True),
    "trim.alpha": ("0.1", True),
    "trim.beta": ("2", True),
    "trim.tau": ("1.2", True),
    "trim.eta": ("2.6", True),
    "trim.min_clean_fraction": ("0.2", True),
    "trim.stop_fraction": ("0.6", True),
    "trim.max_iterations": ("5", True),
    "trim.target_false_reject": ("0.05", True),
    "trim.smoothing": ("3", True),
    "storage.endpoint_url": ("http://127.0.0.1:9000", False),
    "storage.region": ("eu-west-1", False),
    "storage.profile": ("factory", False),
    "storage.anonymous": ("true", False),
    "storage.retry_seconds": ("5", False),
    "storage.timeout_s": ("5", False),
    "trim.near_duplicates": ("0.3", True),
    "trim.deviations": ("3", True),
    "guard.accept_untrustworthy": ("true", False),
    "guard.accept_conditions": ("kinds,images", False),
    "guard.power_images": ("8", False),
    "cluster.scheduler": ("tcp://host:8786", False),
    "cluster.workers": ("3", False),
    "cluster.threads_per_worker": ("3", False),
    "cluster.processes": ("false", False),
    "cluster.timeout_s": ("5", False),
    "cluster.tls_ca_file": ("ca.pem", False),
    "cluster.tls_cert": ("cert.pem", False),
    "cluster.tls_key": ("key.pem", False),
}
# Of options that must be set together.
TOGETHER = [f"{name}=other.pem" for name in ALTERNATIVES if name.startswith("cluster.tls_")]


def option(config: Config, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def refusal(text: str | None = None, *settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, settings, origin="run.yaml")
    return str(caught.value)


def test_no_text_and_no_settings_give_the_defaults() -> None:
    assert parse_config() == parse_config("") == parse_config("trim:\ncluster: {}\n") == Config()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features.backbone", "wide_resnet50_2"),
        ("features.nodes", ("layer1", "layer2", "layer3")),
        ("features.weights", "imagenet"),
        ("features.image_size", 256),
        ("features.pool_kernel", 10),
        ("features.pool_stride", 4),
        ("gaussian.ridge", 1e-6),
        ("trim.alpha", 0.05),
        ("trim.beta", 3.0),
        ("trim.tau", 1.15),
        ("trim.eta", 2.3),
        ("trim.min_clean_fraction", 0.1),
        ("trim.stop_fraction", 0.5),
        ("trim.max_iterations", 20),
    ],
)
def test_defaults_are_those_of_the_paper(name: str, value: object) -> None:
    assert option(Config(), name) == value


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("trim.eta=2.6", 2.6),
        ("trim.eta= 2.6 ", 2.6),
        ("gaussian.ridge=1e-4", 1e-4),
        ("features.batch_size=8", 8),
        ("features.precision=bf16", "bf16"),
        ("features.weights=../weights/a=b.pth", "../weights/a=b.pth"),
        ("features.nodes=features.4, features.7,features.12", ("features.4", "features.7", "features.12")),
        ("features.nodes=layer1", ("layer1",)),
        ("input.extensions=png,TIF", ("png", "TIF")),
        ("input.group_by={line}/{camera}/**", "{line}/{camera}/**"),
        ("guard.accept_conditions=images, kinds", ("images", "kinds")),
        ("guard.accept_conditions=", ()),
        ("cluster.processes=false", False),
        ("cluster.processes=true", True),
        ("cluster.workers=4", 4),
    ],
)
def test_a_setting_is_converted_to_its_options_type(setting: str, value: object) -> None:
    converted = option(parse_config(None, [setting]), setting.partition("=")[0])
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize("nothing", ["null", "none", "None", ""])
@pytest.mark.parametrize(
    "name",
    ["input.group_by", "features.channels", "cluster.scheduler", "cluster.workers", "cluster.threads_per_worker"],
)
def test_null_on_the_command_line_unsets_every_option_that_may_be_unset(name: str, nothing: str) -> None:
    section, key = name.split(".")
    text = f"{section}: {{{key}: '3'}}"
    assert option(parse_config(text), name) is not None
    assert option(parse_config(text, [f"{name}={nothing}"]), name) is None


def test_settings_override_the_file_and_later_settings_override_earlier_ones() -> None:
    config = parse_config("trim: {eta: 2.4, tau: 1.3}", ["trim.eta=2.5", "trim.eta=2.6"])
    assert (config.trim.eta, config.trim.tau, config.trim.beta) == (2.6, 1.3, 3.0)


def test_lists_in_yaml_may_be_lists_or_comma_separated() -> None:
    assert parse_config("features: {nodes: [a, b]}") == parse_config("features: {nodes: 'a, b'}")


@pytest.mark.parametrize(
    ("text", "setting", "unknown", "nearest"),
    [
        ("features: {backbon: resnet18}", None, "features.backbon", "features.backbone"),
        ("trmi: {eta: 2}", None, "trmi", "trim"),
        (None, "trim.ета=2", "trim.ета", "trim"),
        (None, "feature.nodes=layer1", "feature", "features"),
        (None, "gaussian.rigde=1", "gaussian.rigde", "gaussian.ridge"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_known_one(
    text: str | None, setting: str | None, unknown: str, nearest: str
) -> None:
    message = refusal(text, *([setting] if setting else []))
    assert f"unknown option {unknown!r}" in message
    assert f"Did you mean '{nearest}" in message


def test_an_unknown_option_near_to_none_is_refused_with_the_sections() -> None:
    assert "Sections: input, features, gaussian, trim, guard, storage, cluster" in refusal("qqqqqqqq: {zzzz: 1}")


def test_all_problems_are_named_at_once() -> None:
    message = refusal("trim: {eta: x, tau: -1}\nfeatures: {colour: 1}")
    assert "trim.eta = 'x'" in message
    assert "trim.tau = -1" in message
    assert "features.colour" in message


@pytest.mark.parametrize(
    "setting",
    [
        "trim.eta=much",
        "features.batch_size=2.5",
        "features.batch_size=many",
        "cluster.processes=perhaps",
        "features.precision=fp8",
        "features.dtype=bfloat16",
        "features.device=tpu",
        "trim.strategy=guess",
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name_and_value(setting: str) -> None:
    name, _, value = setting.partition("=")
    assert f"{name} = {value!r}" in refusal(None, setting)


@pytest.mark.parametrize(
    "setting",
    [
        "trim.alpha=0",
        "trim.alpha=1",
        "trim.beta=0",
        "trim.tau=-1",
        "trim.eta=0.9",
        "trim.eta=nan",
        "trim.eta=inf",
        "trim.min_clean_fraction=1.1",
        "trim.stop_fraction=0",
        "trim.max_iterations=0",
        "gaussian.ridge=0",
        "gaussian.ridge=-1e-6",
        "gaussian.segment_images=0",
        "features.image_size=31",
        "features.image_size=4097",
        "features.pool_kernel=0",
        "features.pool_stride=0",
        "features.mean=1,2",
        "features.batch_size=0",
        "features.seed=-1",
        "features.channels=0",
        "features.weights=",
        "input.max_pixels=0",
        "input.sixteen_bit_white=65536",
        "input.max_unreadable_fraction=-0.1",
        "input.decode_timeout_s=0",
        "cluster.workers=0",
        "cluster.timeout_s=0",
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_value(setting: str) -> None:
    name, _, value = setting.partition("=")
    assert f"{name} = {value!r}" in refusal(None, setting)


@pytest.mark.parametrize("text", ["features: [unclosed", "a: *nowhere", "\x00", "trim: {eta: 1", "\tx: 1", "a: b: c"])
def test_malformed_yaml_is_refused_in_one_line_that_names_the_file(text: str) -> None:
    message = refusal(text)
    assert message.startswith("run.yaml is not valid YAML")
    assert "\n" not in message


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "5", "trim: 5", "trim: [eta]", "true"])
def test_yaml_that_does_not_map_sections_to_options_is_refused(text: str) -> None:
    assert refusal(text).startswith("run.yaml must map sections to options")


@pytest.mark.parametrize("text", ["trim: {1: 2}", "1: {eta: 2}", "features: {nodes: [1, 2]}"])
def test_yaml_with_odd_keys_or_lists_is_refused(text: str) -> None:
    assert refusal(text)


@pytest.mark.parametrize("setting", ["trim.eta", "eta=2.6", "=2.6", ".eta=2", "trim.=2", "", "trim eta 2"])
def test_a_malformed_setting_is_refused_with_an_example(setting: str) -> None:
    message = refusal(None, setting)
    assert repr(setting) in message
    assert "section.key=value" in message


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().trim.eta = 3.0  # type: ignore[misc]


def test_every_option_has_an_alternative_in_this_test() -> None:
    assert set(option_names()) == ALTERNATIVES.keys()


@pytest.mark.parametrize(("name", "value", "decides"), [(name, *rest) for name, rest in ALTERNATIVES.items()])
def test_the_digest_depends_on_exactly_the_options_that_decide_the_result(name: str, value: str, decides: bool) -> None:
    changed = parse_config(None, [*(TOGETHER if "tls_" in name else []), f"{name}={value}"])
    assert option(changed, name) != option(Config(), name)
    assert (changed.digest() != Config().digest()) is decides
    assert (name in flatten(changed.decisive())) is decides


def test_the_strategy_is_part_of_the_digest() -> None:
    assert flatten(Config().decisive())["trim.strategy"] == "grow"


def test_the_digest_depends_on_weights_being_a_file_but_not_on_where_it_lies(tmp_path: Path) -> None:
    digests = [
        parse_config(None, [f"features.weights={weights}"]).digest()
        for weights in ("a.pth", str(tmp_path / "b.pth"), "s3://bucket/c.pth", "imagenet", "random")
    ]
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 3


def test_the_digest_is_a_sha256_that_survives_writing_the_configuration_down() -> None:
    assert len(Config().digest()) == 64
    assert parse_config(Config().to_yaml()).digest() == Config().digest()


@pytest.mark.parametrize(
    "character", ["\n", "\r", "\t", "\0", "\x07", "\x85", "\xa0", "\u2028", "\ufeff", "图", "😀", "'", '"']
)
def test_odd_characters_survive_writing_the_configuration_down(character: str) -> None:
    config = Config.model_validate({"features": {"weights": f"a{character}b"}})
    assert parse_config(config.to_yaml()) == config


# U+0085 has a test of its own above.
texts = st.text(st.characters(exclude_characters="\x85", exclude_categories=["Cs"]))


@given(
    eta=st.floats(1, 1e6),
    ridge=st.floats(1e-300, 1e300),
    group_by=st.none() | texts.filter(lambda text: text.lower() not in {"", "null", "none"}),
    weights=texts.filter(bool),
    nodes=st.lists(st.text(st.characters(exclude_characters=",", exclude_categories=["Cs", "Z", "C"])), min_size=1),
    workers=st.none() | st.integers(1, 10**6),
)
@settings(max_examples=50, deadline=None)
def test_a_configuration_written_as_yaml_reads_back_equal(
    eta: float, ridge: float, group_by: str | None, weights: str, nodes: list[str], workers: int | None
) -> None:
    config = Config.model_validate(
        {
            "trim": {"eta": eta},
            "gaussian": {"ridge": ridge},
            "input": {"group_by": group_by},
            "features": {"weights": weights, "nodes": tuple(nodes)},
            "cluster": {"workers": workers},
        }
    )
    assert parse_config(config.to_yaml()) == config


@given(eta=st.floats(1, 1e6), pixels=st.integers(1, 10**12), processes=st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_setting_means_the_same_as_the_yaml_value(eta: float, pixels: int, processes: bool) -> None:
    by_settings = parse_config(
        None, [f"trim.eta={eta!r}", f"input.max_pixels={pixels}", f"cluster.processes={processes}"]
    )
    by_yaml = parse_config(
        f"trim: {{eta: {eta!r}}}\ninput: {{max_pixels: {pixels}}}\ncluster: {{processes: {str(processes).lower()}}}"
    )
    assert by_settings == by_yaml


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_no_text_is_misread_as_options(text: str) -> None:
    # Any text either is refused or sets nothing; no other error comes out.
    with suppress(ConfigError):
        assert parse_config(text) == Config()


def test_flatten_names_nested_options_by_their_sections() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_the_reference_has_one_row_for_each_option_with_its_default_and_meaning() -> None:
    rows = reference().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == option_names()
    assert all(len(row.split(" | ")) >= 3 and row.rstrip(" |").endswith(".") for row in rows)
    assert "| `trim.eta` | `2.3` |" in reference()
    assert "| `features.nodes` | not set |" in reference()
    assert "| `cluster.workers` | not set |" in reference()
    assert "| `cluster.processes` | `true` |" in reference()


@pytest.mark.parametrize(
    ("weights", "reserved"), [("imagenet", True), ("random", True), ("file", False), ("random.pth", False)]
)
def test_only_the_two_keywords_are_reserved_weights(weights: str, reserved: bool) -> None:
    assert is_reserved_weights(weights) is reserved


def test_defaults_follow_the_backbone_and_do_not_count_as_set() -> None:
    features = parse_config(None, ["features.backbone=squeezenet1_1"]).features
    assert features.nodes == ("features.4", "features.7", "features.12")
    assert (features.pool_kernel, features.pool_stride) == (10, 4)
    assert features.model_fields_set == {"backbone"}


def test_what_only_the_model_knows_stays_unset() -> None:
    config = parse_config(None, ["features.backbone=vit_tiny_patch16_224"])
    features = config.features
    assert (features.nodes, features.pool_kernel, features.pool_stride, features.mean) == ((), None, None, None)
    assert parse_config(config.to_yaml()) == config


def test_nodes_that_are_empty_are_not_set() -> None:
    assert parse_config(None, ["features.nodes="]).features.nodes == ()


def test_a_wrong_option_is_named_without_the_defaults_that_follow_from_others() -> None:
    message = refusal("features: {backbone: [1], std: '1,0,1'}")
    assert message.count("features.") == 2
    assert "features.std = '0': input should be greater than 0" in message


def test_the_digest_of_the_defaults_changes_only_with_them() -> None:
    # A run can be continued by versions with the same defaults.
    assert Config().digest() == "2f0721f3eb55f104ba4a4407a201c7fcac2177c69a55f07610f1402c9d05e03a"
    explicit = ("features.nodes=layer1,layer2,layer3", "features.pool_kernel=10", "features.pool_stride=4")
    assert parse_config(None, explicit).digest() == Config().digest()

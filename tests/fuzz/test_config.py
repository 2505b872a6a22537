"""Configurations of any text: an error that says what is wrong, or one that its own YAML gives again."""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Config, option_names, parse_config
from schemas.errors import ConfigError
from tests.fuzz.mutations import attempt, fuzzing, json_values, mutated, tried
from tests.support.archives import tiny_config

FILES = [
    Config().to_yaml().encode(),
    tiny_config("storage.endpoint_url=https://s3.example.com:9000", "trim.strategy=grow").to_yaml().encode(),
    b"trim: {eta: 2.6, alpha: 1e-2}\nfeatures:\n  nodes: [layer1, layer2]\n  channels: null\n",
    b"input: &a {group_by: '{line}/*'}\nguard: {accept_conditions: [poses, kinds]}\n# a note\n",
]
SECTIONS = sorted({name.partition(".")[0] for name in option_names()})
KEYS = sorted({name.partition(".")[2] for name in option_names()})

options = st.dictionaries(
    st.sampled_from(SECTIONS) | st.text(max_size=5),
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5) | st.integers(), json_values, max_size=3) | json_values,
    max_size=3,
)
assignments = st.builds(
    "{}={}".format, st.sampled_from(option_names()), st.text(max_size=8) | json_values.map(str)
) | st.text(max_size=20)


def check(text: str | None, *settings: str) -> None:
    config = attempt(lambda: parse_config(text, settings), ConfigError)
    if config is not None:
        assert parse_config(config.to_yaml()) == config
        assert parse_config(config.to_yaml()).digest() == config.digest()


@fuzzing(150)
@given(content=mutated(FILES))
def test_harmed_files(content: bytes) -> None:
    tried["configuration files"] += 1
    check(content.decode("utf-8", "replace"))


@fuzzing(100)
@given(content=options)
def test_files_of_any_options(content: dict[str, object]) -> None:
    tried["configuration files"] += 1
    check(yaml.dump(content))


@fuzzing(100)
@given(settings=st.lists(assignments, min_size=1, max_size=3))
def test_settings(settings: list[str]) -> None:
    tried["--set strings"] += 1
    check(None, *settings)

"""Options as dictionaries: what a configuration file of the same options gives, and errors that say what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paire.options import config_from
from schemas.config import Config, parse_config
from schemas.errors import ConfigError


def test_no_options_are_the_defaults() -> None:
    assert config_from({}) == config_from({"trim": None, "features": {}}) == Config()


def test_dictionaries_give_what_the_same_settings_give() -> None:
    found = config_from({"trim": {"strategy": "grow", "eta": 2.6}, "input": {"group_by": "{línea}/*"}})
    assert found == parse_config(None, ["trim.strategy=grow", "trim.eta=2.6", "input.group_by={línea}/*"])


def test_paths_and_numbers_of_numpy_are_taken_as_they_are(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"features": {"weights": tmp_path / "w: #1.pth"}, "trim": {"eta": np.float32(2.5)}}
    found = config_from(sections)
    assert found.features.weights == str(tmp_path / "w: #1.pth")
    assert found.trim.eta == 2.5


def test_text_that_means_something_in_yaml_stays_text() -> None:
    for text in ("{a}: [b", "- x", "null", "3", "#", "a\nb: c"):
        assert config_from({"features": {"weights": text}}).features.weights == text


def test_the_callers_dictionaries_are_left_alone() -> None:
    sections: dict[str, dict[str, Any] | None] = {"trim": {"eta": 2.6}, "input": None}
    config_from(sections)
    assert sections == {"trim": {"eta": 2.6}, "input": None}


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        pytest.param({"trim": "grow"}, "trim = 'grow' is not a section", id="no dictionary"),
        pytest.param({"trim": ["eta"]}, "trim = .* is not a section", id="a list"),
        pytest.param({"trim": {"etta": 2}}, r"'trim\.etta'. Did you mean 'trim\.eta'", id="unknown option"),
        pytest.param({"trimm": {"eta": 2}}, "'trimm'", id="unknown section"),
        pytest.param({"trim": {"eta": "much"}}, r"trim\.eta = 'much'", id="wrong type"),
        pytest.param({"trim": {"min_clean_fraction": 2}}, r"trim\.min_clean_fraction = 2", id="out of range"),
    ],
)
def test_what_is_wrong_is_an_error_that_names_it(sections: Mapping[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config_from(sections)


def test_a_section_with_credentials_is_not_repeated() -> None:
    section: Any = {"storage": "https://user:secret-password@store"}
    with pytest.raises(ConfigError) as caught:
        config_from(section)
    assert "secret-password" not in str(caught.value)

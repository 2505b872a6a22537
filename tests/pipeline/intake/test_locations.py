"""Locations mean the same to workers and to later readers, wherever those stand."""

from pathlib import Path

import pytest

from pipeline.intake.locations import absolute_source, with_absolute_weights
from schemas.config import Config
from schemas.errors import ConfigError
from tests.support.archives import tiny_config

REMOTE = ["s3://factory/line 1", "memory://factory/line 1"]
WITH_PASSWORD = "https://user:secret-password@example.com/archive"


def weights_of(config: Config) -> str:
    return with_absolute_weights(config).features.weights


def test_a_relative_source_is_absolute_wherever_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = absolute_source("line 1/../line 2")
    assert source == str(tmp_path / "line 2")
    monkeypatch.chdir("/")
    assert absolute_source(source) == source


@pytest.mark.parametrize("url", REMOTE)
def test_a_url_stays_but_for_slashes_at_its_end(url: str) -> None:
    assert absolute_source(url) == absolute_source(f"{url}//") == url


def test_relative_weights_are_absolute_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config("features.weights=weights.pth")
    found = with_absolute_weights(config)
    assert found.features.weights == str(tmp_path / "weights.pth")
    assert config.features.weights == "weights.pth"
    unchanged = {"features": {"weights"}}
    assert found.model_dump(exclude=unchanged) == config.model_dump(exclude=unchanged)


@pytest.mark.parametrize("weights", ["imagenet", "random", "s3://factory/weights.pth"])
def test_keywords_and_urls_of_weights_stay(weights: str) -> None:
    assert weights_of(tiny_config(f"features.weights={weights}")) == weights


def test_credentials_are_refused_without_repeating_them() -> None:
    for locate in (absolute_source, lambda url: weights_of(tiny_config(f"features.weights={url}"))):
        with pytest.raises(ConfigError, match="credentials") as caught:
            locate(WITH_PASSWORD)
        assert "secret-password" not in str(caught.value)

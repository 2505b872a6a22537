"""Locations of the user made absolute, because workers and later readers have other working directories."""

from schemas.config import Config, is_reserved_weights
from schemas.credentials import refuse_credentials
from workers.storage.directory import is_url, split_location


def absolute_source(source: str) -> str:
    """Return a source as an absolute path or URL.

    Raises
    ------
    ConfigError
        When a URL carries credentials.
    """
    return refuse_credentials(source, "the source").rstrip("/") if is_url(source) else split_location(source)[1]


def with_absolute_weights(config: Config) -> Config:
    """Return the configuration with a local path of weights made absolute.

    Raises
    ------
    ConfigError
        When a URL carries credentials.
    """
    weights = refuse_credentials(config.features.weights, "features.weights")
    if is_reserved_weights(weights) or is_url(weights):
        return config
    features = config.features.model_copy(update={"weights": split_location(weights)[1]})
    return config.model_copy(update={"features": features})

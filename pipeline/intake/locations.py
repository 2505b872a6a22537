"""Locations as the user wrote them, made absolute: workers and later readers stand elsewhere."""

from schemas.config import Config, is_reserved_weights
from schemas.credentials import refuse_credentials
from workers.storage.directory import is_url, split_location


def absolute_source(source: str) -> str:
    """Return a source as an absolute path or URL, so that it means the same everywhere.

    Raises
    ------
    ConfigError
        When a URL carries credentials.
    """
    return refuse_credentials(source, "the source").rstrip("/") if is_url(source) else split_location(source)[1]


def with_absolute_weights(config: Config) -> Config:
    """Return the configuration with a local weights path made absolute, so that it means the same everywhere.

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

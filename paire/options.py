"""Options as Python callers write them: one dictionary for each section."""

import json
from collections.abc import Mapping
from typing import Any

from schemas.config import Config, parse_config
from schemas.credentials import redacted
from schemas.errors import ConfigError


def config_from(sections: Mapping[str, Mapping[str, Any] | None]) -> Config:
    """Build a configuration from dictionaries, like ``{"trim": {"strategy": "grow"}}``.

    Raises
    ------
    ConfigError
        If a section is not a dictionary, or one of its options is unknown, of the wrong type or out of range.
    """
    for name, options in sections.items():
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(
                f"{name} = {redacted(repr(options))} is not a section of options. Give a dictionary for each section, "
                "like trim={'eta': 2.6}."
            )
    plain = {name: dict(options or {}) for name, options in sections.items()}
    # JSON is YAML, and parse_config explains what is wrong. str: for paths and the numbers of NumPy.
    return parse_config(json.dumps(plain, default=str, ensure_ascii=False), origin="the options")

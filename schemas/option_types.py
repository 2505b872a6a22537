"""The types of options that a text on the command line stands for: lists, colours, and what may be left unset."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PositiveFloat

from schemas.credentials import has_credentials


def split_commas(value: object) -> object:
    """Return the parts of ``a,b,c``, none of an empty text, and anything else as it is."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",")] if value.strip() else []


def _none_if_unset(value: object) -> object:
    """Let ``null``, ``none`` and an empty value on the command line mean 'not set'."""
    return None if isinstance(value, str) and value.lower() in {"", "null", "none"} else value


def _split_numbers(value: object) -> object:
    """Let ``--set features.mean=0.5,0.5,0.5`` mean three numbers, and an empty value 'not set'."""
    return split_commas(_none_if_unset(value))


def _three(value: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if value is not None and len(value) != 3:
        raise ValueError("expected three numbers, for red, green and blue")
    return value


def _web_address(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", value):
        raise ValueError("expected an address like https://s3.example.com:9000")
    if value is not None and has_credentials(value):
        raise ValueError("give credentials in the environment or with storage.profile, never in the address")
    return value


WebAddress = Annotated[str | None, BeforeValidator(_none_if_unset), AfterValidator(_web_address)]
OptionalText = Annotated[str | None, BeforeValidator(_none_if_unset)]
OptionalCount = Annotated[int | None, BeforeValidator(_none_if_unset)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
Colour = Annotated[tuple[float, ...] | None, BeforeValidator(_split_numbers), AfterValidator(_three)]
ColourScale = Annotated[tuple[PositiveFloat, ...] | None, BeforeValidator(_split_numbers), AfterValidator(_three)]

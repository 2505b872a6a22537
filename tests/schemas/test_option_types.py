"""The types of options: what a text stands for, what may be unset, and what is refused."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.option_types import Colour, ColourScale, CommaList, OptionalCount, OptionalText, WebAddress, split_commas


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (CommaList, "a, b", ("a", "b")),
        (CommaList, "", ()),
        (OptionalCount, "3", 3),
        (OptionalCount, "none", None),
        (OptionalText, "", None),
        (OptionalText, "text", "text"),
        (Colour, "0.5,0, 1", (0.5, 0.0, 1.0)),
        (Colour, "null", None),
        (ColourScale, "1,2,3", (1.0, 2.0, 3.0)),
        (WebAddress, "http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        (WebAddress, "", None),
    ],
)
def test_a_text_stands_for_a_value(kind: Any, text: str, value: object) -> None:
    assert TypeAdapter(kind).validate_python(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (Colour, "1,2", "three numbers"),
        (Colour, "1,2,3,4", "three numbers"),
        (Colour, "a,b,c", "valid number"),
        (ColourScale, "1,0,1", "greater than 0"),
        (OptionalCount, "many", "valid integer"),
        (WebAddress, "s3.example.com", "an address like"),
        (WebAddress, "https://me:secret@example.com", "credentials"),
    ],
)
def test_a_wrong_text_is_refused(kind: Any, text: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TypeAdapter(kind).validate_python(text)


def test_what_is_no_text_stays_as_it_is() -> None:
    assert split_commas(["a,b"]) == ["a,b"]

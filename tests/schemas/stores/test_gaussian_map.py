"""The checksums of a published map: any change of what scores follow from changes them, and nothing else does."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schemas.stores.gaussian_map import CHECKSUM, attributes_checksum, checksum

ATTRIBUTES = st.dictionaries(st.text(max_size=8), st.integers() | st.floats(allow_nan=False) | st.text(), max_size=5)


def test_checksums_are_those_of_zlib() -> None:
    # The check value of CRC-32: files of other versions must stay readable.
    assert checksum([b"123456789"]) == 0xCBF43926
    assert checksum([]) == 0


@given(content=st.binary(max_size=200), cut=st.integers(0, 200))
def test_a_checksum_does_not_depend_on_how_the_content_is_cut(content: bytes, cut: int) -> None:
    assert checksum([content[:cut], content[cut:]]) == checksum([content])


@given(content=st.binary(min_size=1, max_size=200), data=st.data())
def test_any_flipped_bit_changes_the_checksum(content: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    assert checksum([bytes(flipped)]) != checksum([content])


def test_arrays_count_with_all_their_bytes() -> None:
    values = np.arange(6.0).reshape(2, 3)
    assert checksum([values]) == checksum([values[0], values[1]]) == checksum([values.tobytes()])
    assert checksum([-np.zeros(1)]) != checksum([np.zeros(1)])


@given(attributes=ATTRIBUTES)
def test_the_order_of_attributes_and_their_own_checksum_do_not_count(attributes: dict[str, Any]) -> None:
    expected = attributes_checksum(attributes)
    assert attributes_checksum(dict(reversed(attributes.items()))) == expected
    assert attributes_checksum({**attributes, CHECKSUM: expected}) == expected


@given(attributes=ATTRIBUTES, name=st.text(max_size=8), value=st.integers())
def test_every_other_attribute_counts(attributes: dict[str, Any], name: str, value: int) -> None:
    assume(name != CHECKSUM)
    assume(name not in attributes or repr(attributes[name]) != repr(value))
    assert attributes_checksum({**attributes, name: value}) != attributes_checksum(attributes)


@pytest.mark.parametrize("other", ["1", 1.0, True, [1], None])
def test_the_type_of_an_attribute_counts(other: object) -> None:
    assert attributes_checksum({"smoothing": other}) != attributes_checksum({"smoothing": 1})

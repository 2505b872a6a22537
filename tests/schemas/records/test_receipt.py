"""Receipts of blocks: read back as written, or not at all."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.records.image import ImageOutcome
from schemas.records.receipt import BlockReceipt

SIZES = st.none() | st.integers(0, 2**40)
OUTCOMES = st.lists(st.builds(ImageOutcome, st.integers(0, 10**9), st.text(), SIZES, SIZES, SIZES, st.text()))
FEATURES = np.arange(24, dtype=np.float16).reshape(2, 3, 2, 2)
RECEIPT = BlockReceipt.of([ImageOutcome(4, "ab", 10, 30, 20), ImageOutcome(5, reason="empty \udcff")], FEATURES)


@given(outcomes=OUTCOMES, features=arrays(np.float16, (3, 2)))
def test_a_receipt_is_read_back_as_written_and_agrees_with_its_features(
    outcomes: list[ImageOutcome], features: np.ndarray
) -> None:
    receipt = BlockReceipt.of(outcomes, features)
    again = BlockReceipt.from_bytes(receipt.to_bytes())
    assert again == receipt
    assert again.agrees_with(features)


def test_features_with_one_other_value_or_none_do_not_agree() -> None:
    assert RECEIPT.agrees_with(FEATURES.copy())
    other = FEATURES.copy()
    other[1, 2, 0, 1] = np.nextafter(other[1, 2, 0, 1], np.float16(np.inf))
    assert not RECEIPT.agrees_with(other)
    assert not RECEIPT.agrees_with(np.zeros_like(FEATURES))


def test_an_altered_outcome_does_not_agree() -> None:
    altered = RECEIPT.to_bytes().replace(b'"width": 30', b'"width": 31')
    assert not BlockReceipt.from_bytes(altered).agrees_with(FEATURES)


@given(cut=st.integers(0, len(RECEIPT.to_bytes()) - 3))
def test_a_torn_receipt_is_none(cut: int) -> None:
    with pytest.raises(ValueError, match="not a receipt"):
        BlockReceipt.from_bytes(RECEIPT.to_bytes()[:cut])


@given(
    content=st.binary()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["outcomes", "checksum", "row", "x"]), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_other_content_is_no_receipt_or_agrees_with_nothing(content: bytes) -> None:
    try:
        receipt = BlockReceipt.from_bytes(content)
    except ValueError:
        return
    assert not receipt.agrees_with(FEATURES)

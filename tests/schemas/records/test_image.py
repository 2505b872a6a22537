"""What is known of one image."""

from schemas.records.image import ImageOutcome


def test_an_image_is_readable_exactly_when_there_is_no_reason_against_it() -> None:
    assert ImageOutcome(0, "sha", 10, 4, 3).is_readable
    assert not ImageOutcome(0, "sha", 10, reason="truncated").is_readable

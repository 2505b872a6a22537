"""Fixtures that all tests share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """Return the folder of real images and weights beside the checkout; skips the test where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real images and weights in {SHARED.name}/ beside the checkout")
    return SHARED

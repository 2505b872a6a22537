"""Fixtures that all tests share."""

from pathlib import Path

import pytest
from hypothesis import settings

# A law that does not hold fails within a few examples, here or in the next run: each run draws others. Without a
# deadline, because on a shared machine it is the other work that misses it.
settings.register_profile("paire", max_examples=50, deadline=None)
settings.load_profile("paire")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real images and weights beside the checkout; skips the test where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real images and weights in {SHARED.name}/ beside the checkout")
    return SHARED

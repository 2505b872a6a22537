"""Sample ids and storage names: stable, different for different names, safe on every store."""

import hashlib
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.names import DEFAULT_GROUP, sample_id, storage_name

AWKWARD = [
    "line 1/camera 2/part.png",
    "Ünïcode/图像.png",
    "new\nline.png",
    "quote'\".png",
    "..",
    ".",
    "",
    "/",
    "a/b",
    "a-b",
    "A-B",
    "a b",
    "~",
    "x~2d711642",
    "c:\\windows",
    "a" * 500,
    "zarr.json",
    "\x00",
    "-",
]


@pytest.mark.parametrize(
    ("file_name", "pinned"),
    [
        ("line1/cam2/part_0001.png", "cce11b2599956b54edd8"),
        ("Ünïcode/图像 1.png", "891e031cff02b8e6d847"),
        ("", "6fa1d8fcfd719046d762"),
    ],
)
def test_sample_ids_never_change(file_name: str, pinned: str) -> None:
    # Manifests of old runs join with new ones by these ids: they must not change with any release.
    assert sample_id(file_name) == pinned


@given(st.text(max_size=50), st.text(max_size=50))
def test_different_files_have_different_ids(one: str, other: str) -> None:
    assume(one != other)
    assert sample_id(one) != sample_id(other)


@given(st.text())
def test_a_sample_id_is_20_hex_digits(file_name: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{20}", sample_id(file_name))


@pytest.mark.parametrize("name", [DEFAULT_GROUP, "bottle", "line1", "a_b-c", "0", "a" * 63])
def test_a_plain_name_is_its_own_storage_name(name: str) -> None:
    assert storage_name(name) == name


@pytest.mark.parametrize(
    ("name", "readable"), [("Line 1/Camera 2", "line-1-camera-2"), ("图像", ""), ("a\n", "a"), ("x" * 80, "x" * 40)]
)
def test_another_name_is_stored_as_a_readable_part_and_the_beginning_of_its_sha256(name: str, readable: str) -> None:
    stored, _, digits = storage_name(name).partition("~")
    assert stored == readable
    assert len(digits) >= 8
    assert hashlib.sha256(name.encode()).hexdigest().startswith(digits)


def assert_safe(stored: str) -> None:
    assert re.fullmatch(r"[a-z0-9_.~-]{1,63}", stored)
    # What Zarr refuses or keeps for itself as the name of a node.
    assert not re.fullmatch(r"\.+", stored)
    assert not stored.startswith("__")
    assert stored != "zarr.json"


@pytest.mark.parametrize("name", AWKWARD)
def test_an_awkward_name_is_stored_under_a_safe_one(name: str) -> None:
    assert_safe(storage_name(name))


def test_awkward_names_are_stored_under_different_names() -> None:
    assert len({storage_name(name) for name in AWKWARD}) == len(AWKWARD)


@given(st.text())
@settings(max_examples=50)
def test_any_name_is_stored_under_a_safe_one(name: str) -> None:
    assert_safe(storage_name(name))


@given(st.text(max_size=80), st.text(max_size=80))
@settings(max_examples=50)
def test_different_names_are_stored_under_different_names(one: str, other: str) -> None:
    assume(one != other)
    assert storage_name(one) != storage_name(other)


@given(st.text())
def test_no_name_is_stored_as_what_another_is_stored_under(name: str) -> None:
    assume(storage_name(name) != name)
    assert storage_name(storage_name(name)) != storage_name(name)


@given(st.text("aA1 /.-_", min_size=1, max_size=6), st.text("aA1 /.-_", min_size=1, max_size=6))
@settings(max_examples=100)
def test_names_that_differ_in_case_or_punctuation_only_are_stored_under_different_names(one: str, other: str) -> None:
    assume(one != other)
    # Different also on file systems that ignore case.
    assert storage_name(one).lower() != storage_name(other).lower()


def test_two_hundred_thousand_images_of_a_deep_archive_are_stored_under_different_names() -> None:
    # Each image's heat map is a file of this name; the readable part is the same for all of them.
    names = (f"plant-north/line-07/camera-02/2024-05-01/part-{number:07d}.png" for number in range(200_000))
    assert len({storage_name(name) for name in names}) == 200_000

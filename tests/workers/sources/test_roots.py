"""Where images may lie: by parts of paths, with links followed, whatever the protocol."""

import os
import posixpath
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError
from workers.sources.listing import NO_FILE
from workers.sources.roots import LINK_OUTSIDE, OUTSIDE, Roots

INSIDE = {
    "s3://bucket/archive": [
        "s3://bucket/archive/a.png",
        "s3a://bucket/archive/sub/a..b.png",
        "S3://bucket/archive//a.png",
        "s3://bucket/archive/50%2e.png",
    ],
    "s3://bucket/": ["s3://bucket/anything/a.png"],
    "https://host/images": ["https://host/images/a.png", "https://host/images/a%20b.png?size=2"],
    "memory://archive": ["memory://archive/a.png", "memory:///archive/a.png"],
}
ELSEWHERE = {
    "s3://bucket/archive": [
        "s3://bucket/archive2/a.png",
        "s3://bucket/a.png",
        "s3://bucket2/archive/a.png",
        "s3://bucket/archive/../a.png",
        "s3://bucket/other/../archive/a.png",
        "s3://bucket/Archive/a.png",
        "s3://bucket/",
        "gs://bucket/archive/a.png",
        "/bucket/archive/a.png",
        "file:///etc/passwd",
        "simplecache::s3://bucket/archive/a.png",
    ],
    "https://host/images": [
        "https://host/images/../secret",
        "https://host/images/%2e%2e/secret",
        "https://host/images/..%2fsecret",
        "https://host/images/..\\secret",
        "https://host/imagesecret",
        "https://host.example.com/images/a.png",
        "https://host:8443/images/a.png",
        "https://host?/images/a.png",
        "https://host#/images/a.png",
        "http://host/images/a.png",
        "http://169.254.169.254/latest/meta-data/",
    ],
    "/archive": ["/etc/passwd", "/archive2/a.png", "s3://archive/a.png", "file:///archive/../etc/passwd"],
}


@pytest.mark.parametrize(("root", "location"), [(root, one) for root, many in INSIDE.items() for one in many])
def test_what_lies_below_a_url_is_inside(root: str, location: str) -> None:
    assert Roots(root).departure(location) == ""
    assert Roots("/nowhere", [root]).departure(location) == ""


@pytest.mark.parametrize(("root", "location"), [(root, one) for root, many in ELSEWHERE.items() for one in many])
def test_whatever_is_written_differently_from_the_root_is_outside(root: str, location: str) -> None:
    assert Roots(root).departure(location) == OUTSIDE
    assert Roots(root, ["any"]).departure(location) == ""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return ``archive``, with ``elsewhere`` beside it."""
    for name in ("archive/a.png", "archive/sub/b.png", "archive2/c.png", "elsewhere/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "archive"


def test_files_below_a_folder_are_inside_by_any_way(archive: Path) -> None:
    (archive.parent / "way").symlink_to(archive)
    (archive / "link.png").symlink_to("sub/b.png")
    for root in (archive, archive.parent / "way", f"{archive}/", f"file://{archive}"):
        roots = Roots(str(root))
        for path in (archive / "a.png", archive / "sub/b.png", archive / "link.png", archive.parent / "way/a.png"):
            assert roots.departure(str(path)) == roots.departure(f"file://{path}") == ""


def test_links_that_lead_out_are_outside_wherever_they_stand_in_a_path(archive: Path) -> None:
    (archive / "file.png").symlink_to("../elsewhere/d.png")
    (archive / "again.png").symlink_to("file.png")
    (archive / "broken.png").symlink_to("../elsewhere/nowhere.png")
    (archive / "folder").symlink_to("../elsewhere")
    roots = Roots(str(archive))
    for name in ("file.png", "again.png", "broken.png"):
        assert roots.departure(f"{archive}/{name}") == LINK_OUTSIDE
    assert roots.departure(f"{archive}/folder/d.png") == OUTSIDE
    assert roots.departure(f"file://{archive}/folder/../archive2/c.png") == OUTSIDE
    assert Roots(str(archive), [str(archive.parent / "elsewhere")]).departure(f"{archive}/folder/d.png") == ""


def test_what_is_not_there_or_cannot_be_named_departs_from_nothing(archive: Path) -> None:
    (archive / "loop.png").symlink_to("loop.png")
    (archive / "broken.png").symlink_to("nowhere.png")
    roots = Roots(str(archive))
    unnamable = ("N\0UL.png", "N\0UL/a.png", "\ud800.png", "\ud800/a.png", "x" * 5000)
    for name in ("nowhere.png", "no/where.png", "loop.png", "broken.png", "sub", *unnamable):
        assert roots.departure(f"{archive}/{name}") == ""


def test_pipes_and_devices_are_no_files_even_where_everything_is_allowed(archive: Path) -> None:
    os.mkfifo(archive / "pipe.png")
    (archive / "zero.png").symlink_to("/dev/zero")
    assert Roots(str(archive)).departure(f"{archive}/pipe.png") == NO_FILE
    assert Roots(str(archive)).departure(f"{archive}/zero.png") == LINK_OUTSIDE
    for name in ("pipe.png", "zero.png"):
        assert Roots(str(archive), ["any"]).departure(f"{archive}/{name}") == NO_FILE


def test_the_links_of_a_folder_are_followed_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[str] = []
    realpath = os.path.realpath

    def noted(path: str) -> str:
        followed.append(path)
        return realpath(path)

    monkeypatch.setattr(os.path, "realpath", noted)
    roots = Roots(str(archive))
    for number in range(100):
        roots.departure(f"{archive}/{number}.png")
        roots.departure(f"{archive}/sub/{number}.png")
        roots.departure(f"s3://bucket/{number}.png")
    assert followed == [str(archive), str(archive), str(archive / "sub")]


@pytest.mark.parametrize("root", ["nowhere", "/etc/passwd", "nosuchprotocol://bucket"])
def test_a_root_that_is_none_is_a_configuration_error(root: str) -> None:
    with pytest.raises(ConfigError, match=rf"input\.roots: '{root}'"):
        Roots("/", [root])


@given(st.lists(st.sampled_from(["archive", "archive2", "a.png", "..", ".", "", "..."]), min_size=1, max_size=6))
def test_where_there_are_no_links_a_path_is_inside_if_its_folder_is_with_all_dots_resolved(parts: list[str]) -> None:
    location = "/".join(["/no/archive", *parts])
    folder = PurePosixPath(posixpath.dirname(posixpath.normpath(location)))
    assert (Roots("/no/archive").departure(location) == "") == folder.is_relative_to("/no/archive")

"""The published Gaussian map: what is written is what scores, and what cannot score says why."""

import json
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.config import FeaturesConfig, parse_config
from schemas.errors import GaussianMapError
from schemas.names import storage_name
from schemas.records.run import SUCCESS
from schemas.stores.features import FeatureGeometry
from tests.support.maps import ESTIMATOR, RIDGE, describe, finish, new_map, write_group
from tests.support.watched import chunks_read
from workers.gaussian.fit import Gaussian
from workers.gaussian.neighbours import neighbour_distances
from workers.map import reader as module
from workers.map.reader import GaussianMap, MapDescription
from workers.map.writer import chunk_rows, complete_map
from workers.storage.directory import Directory

GEOMETRY = FeatureGeometry(rows=2, columns=3, channels=8, grid_rows=5, grid_columns=6, pool_kernel=2, pool_stride=1)
GROUP = "Line 1/Kamera Ü"
THRESHOLDS = np.array([[1.5, np.inf, 2.5], [3.5, 4.5, np.inf]])


def samples(count: int, seed: int = 0) -> NDArray[np.float16]:
    """Return (count, rows, columns, channels) float16, read-only."""
    values = np.random.default_rng(seed).normal(size=GEOMETRY.array_shape(count)).astype(np.float16)
    values.flags.writeable = False
    return values


def in_memory(
    rows: list[tuple[Gaussian, ...]], features: NDArray[Any], references: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Return the distances (images, rows, columns) to Gaussians that were never written, and to references."""
    distances = np.stack(
        [
            np.stack(
                [gaussian.mahalanobis(features[:, row, column]) for column, gaussian in enumerate(gaussians)], axis=1
            )
            for row, gaussians in enumerate(rows)
        ],
        axis=1,
    )
    if references is not None:
        for row, column in np.ndindex(distances.shape[1:]):
            distances[:, row, column] *= neighbour_distances(features[:, row, column], references[:, row, column])
    return distances


def published(run: Directory, *groups: str, fitted: int = 6, references: int = 0) -> Directory:
    model = new_map(run, describe(GEOMETRY))
    for group in groups:
        write_group(model, group, GEOMETRY, samples(fitted), THRESHOLDS, references=references)
    finish(run)
    return model


def refusal(location: str | Path) -> str:
    with pytest.raises(GaussianMapError) as caught:
        GaussianMap.open(location)
    return str(caught.value)


@pytest.mark.parametrize("references", [0, 1, 3])
@pytest.mark.parametrize("fitted", [3, 6, 8, 9, 40], ids=["dual 3", "dual 6", "dual 8", "primal 9", "primal 40"])
def test_a_map_read_back_gives_exactly_the_distances_of_its_gaussians_and_to_its_references(
    tmp_path: Path, fitted: int, references: int
) -> None:
    run = Directory.at(tmp_path / "run")
    model = new_map(run, describe(GEOMETRY))
    rows = write_group(model, GROUP, GEOMETRY, samples(fitted), THRESHOLDS, references=references)
    finish(run)
    features = np.concatenate([samples(fitted), samples(20, seed=1)])
    features.flags.writeable = False
    opened = GaussianMap.open(model.url)
    assert opened.measures_neighbours(GROUP) == bool(references)
    distances = opened.distances(GROUP, features)
    assert distances.dtype == np.float64
    near = samples(fitted)[:references] if references else None
    np.testing.assert_array_equal(distances, in_memory(rows, features, near))


@pytest.mark.parametrize("together", [1, 2, 3, 5])
@pytest.mark.parametrize("references", [0, 4])
@pytest.mark.parametrize("fitted", [6, 9], ids=["dual", "primal"])
def test_rows_that_share_chunks_are_read_together_and_once(
    tmp_path: Path, together: int, references: int, fitted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry, run = replace(GEOMETRY, rows=5), Directory.at(tmp_path / "run")
    values = np.random.default_rng(0).normal(size=(fitted + 20, 5, GEOMETRY.columns, GEOMETRY.channels))
    values = values.astype(np.float16)
    model = new_map(run, describe(geometry))
    thresholds = np.ones((5, GEOMETRY.columns))
    shared = {"rows_together": together, "references": references}
    rows = write_group(model, GROUP, geometry, values[:fitted], thresholds, **shared)
    finish(run)
    read = chunks_read(monkeypatch)
    opened = GaussianMap.open(model.url)
    near = values[:references] if references else None
    np.testing.assert_array_equal(opened.distances(GROUP, values), in_memory(rows, values, near))
    arrays = (4 if fitted == 6 else 2) + bool(references)
    assert len(read) == len(set(read)) == arrays * -(-5 // together)
    np.testing.assert_array_equal(opened.thresholds(GROUP), thresholds)


@pytest.mark.parametrize("spoil", ["shape", "type", "group"])
def test_an_array_of_references_of_another_shape_or_type_does_not_score(tmp_path: Path, spoil: str) -> None:
    model = published(Directory.at(tmp_path), GROUP, references=4)
    node = model.zarr_group(storage_name(GROUP), "r+")
    if spoil == "group":
        node.create_group("reference", overwrite=True)
    else:
        shape = (2, 3, 4 if spoil == "type" else 5, 8)
        node.create_array(
            "reference", shape=shape, dtype="float64" if spoil == "type" else "float32", overwrite=True, fill_value=0.0
        )
    with pytest.raises(GaussianMapError, match="row 0 of group"):
        GaussianMap.open(model.url).distances(GROUP, samples(2))


def test_rows_of_small_groups_share_chunks_up_to_a_size() -> None:
    wide = FeatureGeometry(14, 14, 1792, 64, 64, 10, 4)
    assert chunk_rows(wide, measured=20, fitted=12) == 7  # of 2.2 MB each
    assert chunk_rows(wide, measured=64, fitted=64) == 1
    assert chunk_rows(replace(wide, channels=448), measured=20, fitted=20) == 14
    assert chunk_rows(replace(wide, channels=8), measured=65, fitted=9) == 1  # tasks share the rows of a large group


def test_a_damaged_row_is_not_scored_by_whatever_shares_its_chunk(tmp_path: Path) -> None:
    run = Directory.at(tmp_path / "run")
    model = new_map(run, describe(GEOMETRY))
    write_group(model, GROUP, GEOMETRY, samples(6), THRESHOLDS, rows_together=2)
    finish(run)
    (chunk,) = Path(model.url).glob("*/mean/c/0/0/0")
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(GaussianMapError, match="rows 0 to 1"):
        GaussianMap.open(model.url).distances(GROUP, samples(3))


def test_gaussians_of_lower_rank_than_their_samples_are_read_back_whole(tmp_path: Path) -> None:
    # Duplicates leave fewer directions than the array has room for; the rest is zero and adds nothing.
    run = Directory.at(tmp_path)
    model = new_map(run, describe(GEOMETRY))
    fitted = samples(7)[[0, 0, 1, 1, 2, 3, 3]]
    rows = write_group(model, GROUP, GEOMETRY, fitted, THRESHOLDS)
    finish(run)
    features = samples(20, seed=1)
    np.testing.assert_allclose(
        GaussianMap.open(model.url).distances(GROUP, features), in_memory(rows, features), rtol=1e-12
    )


@pytest.mark.parametrize("references", [0, 4])
@pytest.mark.parametrize(("fitted", "form"), [(6, "dual"), (8, "dual"), (9, "primal")])
def test_the_arrays_are_enough_to_score_with_numpy_alone(
    tmp_path: Path, fitted: int, form: str, references: int
) -> None:
    model = published(Directory.at(tmp_path), GROUP, fitted=fitted, references=references)
    root = model.zarr_group("")
    (_, node), *others = root.groups()
    assert not others
    assert node.attrs["form"] == form
    arrays: dict[str, NDArray[Any]] = {name: np.asarray(array) for name, array in node.arrays()}
    types = dict.fromkeys(arrays, np.dtype(np.float64))
    assert ("reference" in arrays) == bool(references)
    assert {name: array.dtype for name, array in arrays.items()} == types | (
        {"reference": np.dtype(np.float32)} if references else {}
    )
    features = samples(5, seed=2).astype(np.float64)
    expected = GaussianMap.open(model.url).distances(GROUP, features)
    assert root.attrs["estimator"] == ESTIMATOR
    for row, column in np.ndindex(2, 3):
        offset = features[:, row, column] - arrays["mean"][row, column]
        factor = arrays["factor"][row, column]
        if form == "dual":
            along = offset @ factor.T
            squares = (along**2 / (arrays["variance"][row, column] + RIDGE)).sum(axis=1)
            squares += ((offset - along @ factor) ** 2).sum(axis=1) / RIDGE
        else:
            squares = (offset @ np.linalg.inv(factor @ factor.T) * offset).sum(axis=1)
        distances = np.sqrt(squares)
        if references:
            near = arrays["reference"][row, column]
            distances *= np.sort(np.linalg.norm(features[:, row, column, np.newaxis] - near, axis=2), axis=1)[:, 1]
        np.testing.assert_allclose(distances, expected[:, row, column], rtol=1e-6)


def test_an_open_map_says_what_it_was_fitted_on(tmp_path: Path) -> None:
    features = parse_config(
        None, ("features.backbone=resnet18", "features.device=cpu", "features.batch_size=3")
    ).features
    run = Directory.at(tmp_path)
    model = new_map(run, describe(GEOMETRY, features))
    finish(run)
    opened = GaussianMap.open(model.url)
    assert opened.url == model.url
    assert opened.groups == ()
    assert opened.description == describe(GEOMETRY, features.model_copy(update={"device": "auto"}))
    assert opened.description.estimator == ESTIMATOR


def test_a_description_survives_json() -> None:
    description = describe(GEOMETRY)
    assert MapDescription.from_attributes(json.loads(json.dumps(description.to_attributes()))) == description


def test_groups_are_sorted_and_keep_their_names(tmp_path: Path) -> None:
    names = ("b", "A b", "a/b", "", "图")
    assert GaussianMap.open(published(Directory.at(tmp_path), *names).url).groups == tuple(sorted(names))


def test_each_group_has_its_own_gaussians_and_thresholds(tmp_path: Path) -> None:
    run = Directory.at(tmp_path)
    model = new_map(run, describe(GEOMETRY))
    one = write_group(model, "one", GEOMETRY, samples(6, seed=1), THRESHOLDS)
    two = write_group(model, "two", GEOMETRY, samples(30, seed=2), THRESHOLDS + 1)
    finish(run)
    opened, features = GaussianMap.open(model.url), samples(4, seed=3)
    for _ in range(2):  # the second time from memory
        np.testing.assert_array_equal(opened.distances("one", features), in_memory(one, features))
        np.testing.assert_array_equal(opened.distances("two", features), in_memory(two, features))
    np.testing.assert_array_equal(opened.thresholds("one"), THRESHOLDS)
    np.testing.assert_array_equal(opened.thresholds("two"), THRESHOLDS + 1)


@pytest.mark.parametrize("references", [0, 4])
def test_a_map_too_large_for_memory_is_streamed_to_the_same_distances(
    tmp_path: Path, references: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, features = published(Directory.at(tmp_path), GROUP, references=references), samples(5, seed=2)
    expected = GaussianMap.open(model.url).distances(GROUP, features)
    monkeypatch.setattr(module, "CACHED_BYTES", 0)
    np.testing.assert_array_equal(GaussianMap.open(model.url).distances(GROUP, features), expected)


@pytest.mark.parametrize("fitted", [6, 30])
def test_no_images_have_no_distances(tmp_path: Path, fitted: int) -> None:
    opened = GaussianMap.open(published(Directory.at(tmp_path), GROUP, fitted=fitted).url)
    assert opened.distances(GROUP, samples(0)).shape == (0, 2, 3)


def test_creating_a_map_replaces_one_that_is_there(tmp_path: Path) -> None:
    run = Directory.at(tmp_path)
    published(run, "old")
    assert GaussianMap.open(published(run, "new").url).groups == ("new",)


def test_creating_a_group_replaces_one_that_is_there(tmp_path: Path) -> None:
    run = Directory.at(tmp_path)
    model = new_map(run, describe(GEOMETRY))
    write_group(model, GROUP, GEOMETRY, samples(30), THRESHOLDS)
    rows = write_group(model, GROUP, GEOMETRY, samples(4), THRESHOLDS)
    finish(run)
    features = samples(5, seed=2)
    np.testing.assert_array_equal(GaussianMap.open(model.url).distances(GROUP, features), in_memory(rows, features))


def test_a_map_is_opened_by_path_string_and_url(tmp_path: Path) -> None:
    model = published(Directory.at(tmp_path), GROUP)
    for location in (model.url, Path(model.url), f"file://{model.url}", f"{model.url}/"):
        assert GaussianMap.open(location).groups == (GROUP,)


def test_a_map_in_an_object_store_is_opened() -> None:
    run = Directory.at(f"memory://{uuid.uuid4().hex}/run")
    features = samples(5, seed=2)
    rows = write_group(new_map(run, describe(GEOMETRY)), GROUP, GEOMETRY, samples(6), THRESHOLDS)
    finish(run)
    np.testing.assert_array_equal(
        GaussianMap.open(f"{run.url}/model").distances(GROUP, features), in_memory(rows, features)
    )
    run.remove("")


def test_no_map_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nothing")
    assert f"{tmp_path / 'nothing'} is not a Gaussian map (" in message
    assert "'model' directory of a finished run" in message


def test_the_run_directory_instead_of_its_model_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    published(Directory.at(tmp_path / "run"), GROUP)
    assert "'model' directory of a finished run" in refusal(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"text", b"{}", b'{"zarr_format": 3, "node_type": "array"}'])
def test_something_else_in_the_maps_place_is_an_error(tmp_path: Path, content: bytes) -> None:
    Directory.at(tmp_path / "run").write("model/zarr.json", content)
    Directory.at(tmp_path / "run").write(SUCCESS, b"")
    assert "Gaussian map" in refusal(tmp_path / "run" / "model")


def test_a_file_in_the_maps_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"text")
    assert "Gaussian map" in refusal(tmp_path / "model")


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket/model", "uninstalled://bucket/model"])
def test_a_protocol_that_cannot_be_used_is_an_error(url: str) -> None:
    fsspec.register_implementation("uninstalled", "no_such_package.FS", clobber=True, errtxt="Install no_such_package")
    assert url in refusal(url)


def test_the_map_of_an_unfinished_run_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    model = new_map(Directory.at(tmp_path), describe(GEOMETRY))
    write_group(model, GROUP, GEOMETRY, samples(6), THRESHOLDS)
    complete_map(model)
    message = refusal(model.url)
    assert "not finished or not trustworthy (no _SUCCESS beside it)" in message
    assert "Run the same 'paire clean' command again" in message
    opened = GaussianMap.open(model.url, published_only=False)  # for those who look into such a run
    assert opened.groups == (GROUP,)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"format_version": 2},
        {"format_version": None},
        {"geometry": {"rows": 1}},
        {"geometry": None},
        {"features": {"colour": "red"}},
        {"features": {"image_size": "large"}},
    ],
    ids=str,
)
def test_a_map_of_a_foreign_format_is_an_error_that_says_what_was_expected(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    model = published(Directory.at(tmp_path), GROUP)
    model.zarr_group("", "r+").attrs.update(change)
    assert "expected paire-gaussian-map version 3" in refusal(model.url)


def test_a_map_that_was_not_completed_is_an_error(tmp_path: Path) -> None:
    model = new_map(Directory.at(tmp_path), describe(GEOMETRY))
    write_group(model, GROUP, GEOMETRY, samples(6), THRESHOLDS)
    Directory.at(tmp_path).write(SUCCESS, b"")
    assert "its attributes in the Gaussian map" in refusal(model.url)


@pytest.mark.parametrize("name", ["smoothing", "references", "fitted", "form", "checksums", "group"])
def test_an_altered_attribute_of_a_group_is_an_error(tmp_path: Path, name: str) -> None:
    model = published(Directory.at(tmp_path), GROUP)
    model.zarr_group(storage_name(GROUP), "r+").attrs[name] = 3
    assert "its groups in the Gaussian map" in refusal(model.url)


def test_an_altered_attribute_of_the_map_is_an_error(tmp_path: Path) -> None:
    model = published(Directory.at(tmp_path), GROUP)
    model.zarr_group("", "r+").attrs["sixteen_bit_white"] = 4095
    assert "its attributes in the Gaussian map" in refusal(model.url)


def test_a_lost_group_is_an_error_and_not_a_map_of_the_others(tmp_path: Path) -> None:
    model = published(Directory.at(tmp_path), "a", "b")
    model.remove(storage_name("b"))
    assert "its groups in the Gaussian map" in refusal(model.url)


@pytest.mark.parametrize("references", [0, 4])
@pytest.mark.parametrize("fitted", [6, 30], ids=["dual", "primal"])
def test_no_altered_or_missing_chunk_scores(tmp_path: Path, fitted: int, references: int) -> None:
    model = published(Directory.at(tmp_path), GROUP, fitted=fitted, references=references)
    chunks = sorted(path for path in Path(model.url).rglob("c/**/*") if path.is_file())
    near = {"reference"} if references else set()
    assert {path.parts[len(Path(model.url).parts) + 1] for path in chunks} >= {"mean", "factor", "thresholds"} | near
    for path in chunks:
        content = path.read_bytes()
        altered = bytearray(content)
        altered[-1] ^= 1
        for damaged in (bytes(altered), content[:-8], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            opened = GaussianMap.open(model.url)
            with pytest.raises(GaussianMapError, match="a file is damaged, missing, or from another map"):
                opened.distances(GROUP, samples(2)) + opened.thresholds(GROUP)
            path.write_bytes(content)
    GaussianMap.open(model.url).distances(GROUP, samples(2))


def test_a_row_of_another_map_does_not_score(tmp_path: Path) -> None:
    one, other = (Directory.at(tmp_path / name) for name in ("one", "other"))
    model = published(one, GROUP)
    write_group(new_map(other, describe(GEOMETRY)), GROUP, GEOMETRY, samples(6, seed=9), THRESHOLDS)
    finish(other)
    shutil.copytree(other.url, one.url, dirs_exist_ok=True, ignore=lambda _, names: {"zarr.json"} & set(names))
    with pytest.raises(GaussianMapError, match=r"row 0 of group .* from another map"):
        GaussianMap.open(model.url).distances(GROUP, samples(2))


@pytest.mark.parametrize("missing", ["format", "run_id", "features", "weights_digest", "geometry", "estimator"])
def test_a_map_that_lacks_an_attribute_is_an_error(tmp_path: Path, missing: str) -> None:
    model = published(Directory.at(tmp_path), GROUP)
    group = model.zarr_group("", "r+")
    attributes = group.attrs.asdict()
    del attributes[missing]
    group.attrs.put(attributes)
    assert "not a Gaussian map that this version can read" in refusal(model.url)


def test_the_only_group_is_meant_when_none_is_named(tmp_path: Path) -> None:
    assert GaussianMap.open(published(Directory.at(tmp_path), GROUP).url).require_group(None) == GROUP


@pytest.mark.parametrize(
    ("groups", "asked", "problem"),
    [
        (("a", "b"), None, "has several groups. Groups: 'a', 'b'"),
        (("a", "b"), "c", "has no group 'c'. Groups: 'a', 'b'"),
        (("a",), "A", "has no group 'A'. Groups: 'a'"),
        ((), "a", "has no group 'a'. Groups: none"),
    ],
)
def test_a_group_that_is_not_there_is_an_error_that_lists_those_that_are(
    tmp_path: Path, groups: tuple[str, ...], asked: str | None, problem: str
) -> None:
    opened = GaussianMap.open(published(Directory.at(tmp_path), *groups).url)
    with pytest.raises(GaussianMapError) as caught:
        opened.require_group(asked)
    assert problem in str(caught.value)


def test_a_map_without_groups_does_not_claim_to_have_several(tmp_path: Path) -> None:
    opened = GaussianMap.open(published(Directory.at(tmp_path)).url)
    with pytest.raises(GaussianMapError) as caught:
        opened.require_group(None)
    assert "several groups" not in str(caught.value)


def test_named_groups_are_found_among_several(tmp_path: Path) -> None:
    opened = GaussianMap.open(published(Directory.at(tmp_path), "a", GROUP).url)
    assert opened.require_group(GROUP) == GROUP


def test_default_features_are_those_of_the_configuration() -> None:
    assert describe(GEOMETRY).features == FeaturesConfig()


def test_a_finished_group_of_an_unfinished_map_can_be_opened_alone(tmp_path: Path) -> None:
    model = new_map(Directory.at(tmp_path / "run"), describe(GEOMETRY))
    for group in (GROUP, "other"):
        write_group(model, group, GEOMETRY, samples(6), THRESHOLDS)
    opened = GaussianMap.of_group(model, GROUP)
    assert opened.groups == (GROUP,)
    found = opened.distances(GROUP, samples(3, seed=1))
    np.testing.assert_array_equal(opened.thresholds(GROUP), THRESHOLDS)
    complete_map(model)
    finished = GaussianMap.open(model.url, published_only=False)
    np.testing.assert_array_equal(found, finished.distances(GROUP, samples(3, seed=1)))
    with pytest.raises(GaussianMapError, match="group 'none'"):
        GaussianMap.of_group(model, "none")

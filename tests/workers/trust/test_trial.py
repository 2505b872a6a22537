"""One task of a trust test: images read again, planted, extracted and scored, whatever is wrong with some of them."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from schemas.config import Config
from tests.support.archives import part_pixels, png, tiny_config
from tests.support.maps import describe, finish, new_map, write_group
from workers.features.extractor import PatchExtractor, shared_extractor
from workers.map.reader import GaussianMap
from workers.map.scorer import ImageScorer
from workers.storage.directory import Directory
from workers.trust.planting import BLOB, SCRATCH, Defect
from workers.trust.trial import LeftOutError, Subject, Trials, read_ground, run_trials, seeded_generator

CONFIG = tiny_config()
FITTED = 12
# More of them than one batch has.
DEFECTS = tuple(
    Defect(kind, size, contrast) for kind in (SCRATCH, BLOB) for size in (0.1, 0.3) for contrast in (0.001, 0.2, 0.8)
)


class Bench(NamedTuple):
    """A map fitted on some parts, and images of others."""

    gaussian_map: GaussianMap
    extractor: PatchExtractor
    subjects: tuple[Subject, ...]

    def run(self, *subjects: Subject, seed: int = 0, config: Config = CONFIG) -> Trials:
        return run_trials(subjects, DEFECTS, "parts", self.gaussian_map, self.extractor, config, seed=seed)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("trial")
    extractor = shared_extractor(CONFIG.features)
    pixels = np.stack([part_pixels(seed) for seed in range(FITTED)]).astype(np.float32) / np.float32(255)
    samples = extractor.extract(pixels)
    run = Directory.at(folder / "run")
    model = new_map(run, describe(extractor.geometry, CONFIG.features, extractor.weights_digest))
    thresholds = np.full(samples.shape[1:3], 100.0)
    write_group(model, "parts", extractor.geometry, samples, thresholds)
    finish(run)
    subjects = []
    for number in range(4):
        path, content = folder / f"{number}.png", png(part_pixels(900 + number, size=96))
        path.write_bytes(content)
        subjects.append(Subject(f"id {number}", str(path), hashlib.sha256(content).hexdigest()))
    return Bench(GaussianMap.open(model.url), extractor, tuple(subjects))


def test_the_untouched_margin_is_that_of_the_scorer(bench: Bench) -> None:
    trials = bench.run(*bench.subjects)
    scores = ImageScorer(bench.gaussian_map).score([subject.path for subject in bench.subjects])
    np.testing.assert_allclose(trials.untouched, scores.margin, rtol=1e-4)
    assert trials.reasons == ("",) * 4


def test_the_planted_margin_is_that_of_the_image_with_the_defect_in_it(bench: Bench) -> None:
    subject = bench.subjects[0]
    trials = bench.run(subject)
    planting, _ = read_ground(subject, CONFIG).plant(subject, DEFECTS[-1], 0)
    planted = planting.on(part_pixels(900, size=96).astype(np.float32) / np.float32(255))
    scores = ImageScorer(bench.gaussian_map).score([np.round(planted * 255).astype(np.uint8)])
    # The image was rounded to eight bits, the trial was not.
    assert trials.planted[0, -1] == pytest.approx(scores.margin[0], rel=0.05)
    assert trials.contrast[0, -1] == planting.contrast


def test_an_invisible_defect_changes_hardly_anything_and_a_glaring_one_a_lot(bench: Bench) -> None:
    trials = bench.run(*bench.subjects)
    invisible = [defect.contrast == 0.001 for defect in DEFECTS]
    glaring = [defect.contrast == 0.8 and defect.size == 0.3 for defect in DEFECTS]
    untouched = trials.untouched[:, np.newaxis]
    np.testing.assert_allclose(trials.planted[:, invisible], np.broadcast_to(untouched, (4, 4)), rtol=0.1)
    assert (trials.planted[:, glaring] > 1.5 * untouched).all()


def test_a_trial_does_not_depend_on_which_images_share_its_task(bench: Bench) -> None:
    together, alone = bench.run(*bench.subjects), [bench.run(subject) for subject in bench.subjects]
    parted = Trials.concatenate(alone)
    # BLAS adds up in an order that depends on how many images there are: the last bit of a distance may differ.
    np.testing.assert_allclose(together.planted, parted.planted, rtol=1e-13)
    np.testing.assert_allclose(together.untouched, parted.untouched, rtol=1e-13)
    np.testing.assert_array_equal(together.contrast, parted.contrast)
    assert together.reasons == parted.reasons


def test_another_seed_plants_elsewhere(bench: Bench) -> None:
    first, second = bench.run(bench.subjects[0]), bench.run(bench.subjects[0], seed=1)
    np.testing.assert_array_equal(first.untouched, second.untouched)
    assert (first.planted != second.planted).any()


def test_a_changed_a_vanished_and_a_broken_image_are_left_out_with_a_reason(bench: Bench, tmp_path: Path) -> None:
    changed = bench.subjects[0]._replace(content_sha256="0" * 64)
    gone = bench.subjects[1]._replace(path=str(tmp_path / "gone.png"))
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    torn = Subject("torn", str(tmp_path / "torn.png"), hashlib.sha256(b"\x89PNG").hexdigest())
    trials = bench.run(changed, gone, bench.subjects[2], torn)
    whole = bench.run(bench.subjects[2])
    assert ["has changed" in trials.reasons[0], "FileNotFoundError" in trials.reasons[1], trials.reasons[2]] == [
        True,
        True,
        "",
    ]
    assert "PNG" in trials.reasons[3]
    np.testing.assert_array_equal(np.isnan(trials.untouched), [True, True, False, True])
    assert np.isnan(trials.planted[[0, 1, 3]]).all()
    np.testing.assert_array_equal(trials.planted[2], whole.planted[0])


def test_a_task_of_nothing_but_vanished_images_is_not_an_error(bench: Bench, tmp_path: Path) -> None:
    trials = bench.run(Subject("gone", str(tmp_path / "gone.png"), "0" * 64))
    assert np.isnan(trials.untouched).all()
    assert trials.planted.shape == (1, len(DEFECTS))


def test_a_sixteen_bit_image_is_planted_at_its_own_depth(tmp_path: Path) -> None:
    # A 12-bit camera without its white set: 16 grey levels of eight bits, whose rounding would be seen everywhere.
    grey = (np.random.default_rng(0).integers(1500, 2500, (80, 80))).astype(np.uint16)
    content = png(grey)
    (tmp_path / "deep.png").write_bytes(content)
    subject = Subject("deep", str(tmp_path / "deep.png"), hashlib.sha256(content).hexdigest())
    ground = read_ground(subject, CONFIG)
    planting, view = ground.plant(subject, Defect(BLOB, 0.1, 0.2), 0)
    assert ground.scene.span == pytest.approx(1000 / 65535, rel=0.05)
    assert planting.contrast == pytest.approx(0.2, rel=0.01)
    assert np.abs(view - ground.view).max() < 0.02
    assert (view == ground.view).mean() > 0.9


def test_reading_says_what_is_wrong(bench: Bench) -> None:
    with pytest.raises(LeftOutError, match="has changed since the run read it"):
        read_ground(bench.subjects[0]._replace(content_sha256="f" * 64), CONFIG)


def test_a_generator_depends_on_every_name_and_on_nothing_else() -> None:
    first = seeded_generator(0, "a", 0.01).random(3).tolist()
    assert seeded_generator(0, "a", 0.01).random(3).tolist() == first
    for others in ((1, "a", 0.01), (0, "b", 0.01), (0, "a", 0.02)):
        assert seeded_generator(*others).random(3).tolist() != first

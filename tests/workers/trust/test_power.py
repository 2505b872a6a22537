"""What a map sees of strong defects: how images are chosen, tried and counted, whatever is wrong with some of them."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from schemas.config import Config
from schemas.errors import GaussianMapError, StorageError
from schemas.records.image import ImageOutcome, ImageRef
from tests.support.archives import part_pixels, png, tiny_config
from tests.support.maps import describe, new_map, write_group
from workers.features.extractor import shared_extractor
from workers.storage.directory import Directory
from workers.trust import power as module
from workers.trust.planting import BLOB, KINDS, SCRATCH, Defect
from workers.trust.power import DEFECTS, SIZES, Plot, Power, add_up, choose_plots, try_plots
from workers.trust.trial import Trials

CONFIG = tiny_config()
IMAGES = 10


class Bench(NamedTuple):
    """A map that is still being written, and images that it was fitted on."""

    model: Directory
    plots: list[Plot]
    digest: str

    def run(self, *plots: Plot, config: Config = CONFIG) -> Trials:
        return try_plots(plots, "parts", self.model, config, self.digest)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder, extractor, paths, digests = tmp_path_factory.mktemp("power"), shared_extractor(CONFIG.features), [], []
    for number in range(IMAGES):
        path, content = folder / f"{number}.png", png(part_pixels(number))
        path.write_bytes(content)
        paths.append(str(path))
        digests.append(hashlib.sha256(content).hexdigest())
    pixels = np.stack([part_pixels(seed) for seed in range(IMAGES)]).astype(np.float32) / np.float32(255)
    samples = extractor.extract(pixels)
    model = new_map(Directory.at(folder / "run"), describe(extractor.geometry, CONFIG.features, "w" * 64))
    write_group(model, "parts", extractor.geometry, samples, np.full(samples.shape[1:3], 100.0))
    outcomes = [ImageOutcome(row, digest, 10, 64, 64) for row, digest in enumerate(digests)]
    plots = choose_plots(np.ones(IMAGES, bool), outcomes, paths, IMAGES)
    return Bench(model, plots, extractor.weights_digest)


# --- which images get which defect


def test_kept_images_are_chosen_by_their_content_whatever_their_rows() -> None:
    outcomes = [ImageOutcome(row, digest) for row, digest in enumerate("dbcae")]
    clean = np.array([True, True, False, True, True])
    plots = choose_plots(clean, outcomes, list("DBCAE"), 3)
    assert [plot.image for plot in plots] == [ImageRef(3, "A"), ImageRef(1, "B"), ImageRef(0, "D")]
    assert [plot.content_sha256 for plot in plots] == ["a", "b", "d"]
    assert [plot.defect for plot in plots] == list(DEFECTS[:3])
    assert len(choose_plots(clean, outcomes, list("DBCAE"), 9)) == 4


def test_eight_images_get_each_kind_at_each_size_and_the_ninth_begins_again() -> None:
    outcomes = [ImageOutcome(row, f"{row:02d}") for row in range(9)]
    plots = choose_plots(np.ones(9, bool), outcomes, [""] * 9, 9)
    assert {(plot.defect.kind, plot.defect.size) for plot in plots[:8]} == {(k, s) for k in KINDS for s in SIZES}
    assert plots[8].defect == plots[0].defect


# --- trying them


def test_fitted_images_are_kept_and_strong_defects_in_them_seen(bench: Bench) -> None:
    trials = bench.run(*bench.plots)
    assert trials.reasons == ("",) * IMAGES
    assert (trials.untouched < 1).all()
    power = Power.of(bench.plots, trials)
    assert power.seen.of + power.faint == IMAGES
    assert power.seen.count >= 0.8 * power.seen.of
    assert power.note == ""


def test_the_same_image_gives_the_same_margins_in_whichever_task(bench: Bench) -> None:
    together, again = bench.run(*bench.plots), bench.run(*bench.plots)
    np.testing.assert_array_equal(together.planted, again.planted)
    alone = bench.run(bench.plots[3])
    np.testing.assert_allclose(alone.planted[0], together.planted[3], rtol=1e-3)
    np.testing.assert_array_equal(alone.contrast[0], together.contrast[3])
    assert (together.contrast[:, 0] > together.contrast[:, 1]).all()


def test_images_that_are_gone_changed_or_broken_are_left_out_with_a_reason(bench: Bench, tmp_path: Path) -> None:
    changed, broken = tmp_path / "changed.png", tmp_path / "broken.png"
    changed.write_bytes(png(part_pixels(77)))
    broken.write_bytes(b"no image")
    good = bench.plots[0]
    plots = [
        good,
        good._replace(image=ImageRef(1, str(tmp_path / "gone.png"))),
        good._replace(image=ImageRef(2, str(changed))),
        good._replace(image=ImageRef(3, str(broken)), content_sha256=hashlib.sha256(b"no image").hexdigest()),
    ]
    trials = bench.run(*plots)
    assert trials.reasons[0] == ""
    assert trials.reasons[1] == "can no longer be read: cannot be read: no such file"
    assert trials.reasons[2] == "has changed since the run read it (content_sha256 differs)"
    assert trials.reasons[3].startswith("can no longer be read: ")
    assert np.isnan(trials.planted[1:]).all()
    np.testing.assert_allclose(trials.planted[0], bench.run(good).planted[0])
    power = Power.of(plots, trials)
    assert (power.seen.of, power.left_out) == (1, 3)
    assert power.note == f"an image of the sample {trials.reasons[1]}"


def test_a_store_that_is_away_leaves_its_images_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StorageError("s3://bucket does not answer.")

    monkeypatch.setattr(module, "read_image", away)
    assert bench.run(bench.plots[0]).reasons == ("can no longer be read: s3://bucket does not answer.",)


def test_without_an_image_no_backbone_is_built(bench: Bench, tmp_path: Path) -> None:
    gone = bench.plots[0]._replace(image=ImageRef(0, str(tmp_path / "gone.png")))
    config = tiny_config("features.weights=/nowhere/weights.pth")
    assert bench.run(gone, config=config).reasons[0].startswith("can no longer be read")


def test_weights_that_are_gone_leave_all_images_out(bench: Bench) -> None:
    trials = bench.run(*bench.plots[:2], config=tiny_config("features.weights=/nowhere/weights.pth"))
    assert all(reason.startswith("cannot be extracted again: ") for reason in trials.reasons)
    power = Power.of(bench.plots[:2], trials)
    assert (power.seen.of, power.left_out) == (0, 2)


def test_a_damaged_map_is_an_error(bench: Bench) -> None:
    with pytest.raises(GaussianMapError, match="group 'others'"):
        try_plots(bench.plots[:1], "others", bench.model, CONFIG, bench.digest)


# --- counting


def counted(*outcomes: tuple[Defect, float, float, float]) -> Power:
    """Return the power of trials: the defect, the margin without it, the margin with it, the contrast reached.

    Medium defects have a margin of two thirds of that, and two fifths of the contrast.
    """
    plots = [Plot(ImageRef(row, ""), "", defect) for row, (defect, *_) in enumerate(outcomes)]
    untouched, planted, contrast = (np.array([each[place] for each in outcomes]) for place in (1, 2, 3))
    both = np.outer(planted, [1.0, 2 / 3]), np.outer(contrast, [1.0, 0.4])
    return Power.of(plots, Trials(untouched, *both, ("",) * len(outcomes)))


SMALL, LARGE = Defect(SCRATCH, 0.08, 0.5), Defect(BLOB, 0.15, 0.5)


def test_a_defect_counts_if_it_is_strong_in_an_image_that_the_map_keeps() -> None:
    power = counted(
        (SMALL, 0.5, 0.99, 0.5),
        (SMALL, 0.5, 1.0, 0.5),
        (LARGE, 0.5, 3.0, 0.5),
        (LARGE, 1.0, 3.0, 0.5),  # rejected without a defect
        (LARGE, 0.5, 0.6, 0.39),  # faint
    )
    assert power.counts == ((SCRATCH, 0.08, 2, 1), (BLOB, 0.15, 1, 1))
    assert (power.rejected, power.faint, power.left_out) == (1, 1, 0)
    found = power.to_json()
    assert (found["planted"], found["seen"], found["smallest_seen"]) == (3, 2, 0.08)
    assert found["by_kind"] == {SCRATCH: {"planted": 2, "seen": 1}, BLOB: {"planted": 1, "seen": 1}}
    assert found["by_size"] == {"0.08": {"planted": 2, "seen": 1}, "0.15": {"planted": 1, "seen": 1}}
    assert found["medium"] == {"planted": 3, "seen": 1}
    assert (found["rejected_untouched"], found["too_faint"], found["left_out"]) == (1, 1, 0)
    assert 0.2 < found["low"] < found["high"] < 0.95


def test_no_size_is_seen_if_most_of_each_is_missed() -> None:
    assert counted((SMALL, 0.5, 0.6, 0.5), (LARGE, 0.5, 0.6, 0.5)).smallest_seen is None
    assert counted((SMALL, 0.5, 0.6, 0.5), (LARGE, 0.5, 1.6, 0.5)).smallest_seen == 0.15


def test_nothing_planted_says_nothing() -> None:
    nothing = Power(note="why").to_json()
    assert (nothing["planted"], nothing["low"], nothing["high"], nothing["note"]) == (0, 0.0, 1.0, "why")
    assert add_up([]).of == 0


def test_groups_add_up() -> None:
    one, two = counted((SMALL, 0.5, 1.5, 0.5)), counted((LARGE, 0.5, 0.6, 0.5), (SMALL, 0.5, 1.2, 0.5))
    together = add_up([one, two])
    assert (together.count, together.of) == (2, 3)

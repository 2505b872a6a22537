"""The whole job on real photographs with real weights: what the method is for, at a size that tests can bear."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.commands.clean import CleanResult, clean
from pipeline.commands.recut import RecutResult, recut
from pipeline.commands.score import score
from schemas.config import parse_config
from schemas.errors import UntrustworthyError

DEFECTS = ("broken_large", "broken_small", "contamination")
CLUSTER = (
    "cluster.workers=1",
    "cluster.threads_per_worker=2",
    "cluster.processes=false",
)

# The paper's rule keeps a tenth of so small an archive, which the breakdown guard rightly refuses.
ACCEPT = "guard.accept_untrustworthy=true"

# No slope ratio reaches this tau, so that nothing is trimmed and the map is fitted on everything.
NO_TRIMMING = "trim.tau=1e12"

PAIRE, GROW = "trim.strategy=paire", "trim.strategy=grow"

# The lists lie in the tests' own folders, the images beside the checkout.
ELSEWHERE = ("input.roots=any",)


@dataclass(frozen=True)
class Bottles:
    """Real images of the bottle archive; as in the paper's protocol, the planted ones are tested again."""

    good: Sequence[Path]
    planted: Sequence[Path]
    test_good: Sequence[Path]
    test_defective: Sequence[Path]


@pytest.fixture(scope="module")
def bottles(shared: Path) -> Bottles:
    folder = shared / "data" / "mvtec_bottle"
    by_kind = [sorted((folder / "test" / kind).glob("*.png")) for kind in DEFECTS]
    found = Bottles(
        good=sorted((folder / "train" / "good").glob("*.png"))[:60],
        planted=[path for paths in by_kind for path in paths[:2]],
        test_good=sorted((folder / "test" / "good").glob("*.png"))[:12],
        test_defective=[path for paths in by_kind for path in paths[:4]],
    )
    counts = [len(paths) for paths in (found.good, found.planted, found.test_good, found.test_defective)]
    assert counts == [60, 6, 12, 12]
    return found


def index(path: Path, images: Sequence[Path]) -> str:
    pd.DataFrame({"image_path": [str(image) for image in images]}).to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def features(shared: Path) -> tuple[str, ...]:
    """Return the backbone of the paper's kind for which real weights are at hand."""
    return (
        "features.backbone=squeezenet1_1",
        "features.nodes=features.4,features.7,features.12",
        f"features.weights={shared / 'weights' / 'squeezenet1_1-imagenet.pth'}",
    )


@pytest.fixture(scope="module")
def dirty(features: tuple[str, ...], bottles: Bottles, tmp_path_factory: pytest.TempPathFactory) -> CleanResult:
    """Return a run over good bottles with six defective ones among them, by the paper's rule."""
    folder = tmp_path_factory.mktemp("dirty")
    archive = index(folder / "archive.csv", [*bottles.good, *bottles.planted])
    return clean(archive, str(folder / "run"), parse_config(None, (*features, *CLUSTER, *ELSEWHERE, PAIRE, ACCEPT)))


def auroc(run: CleanResult | RecutResult, source: str, defective: Sequence[Path], out: Path) -> float:
    """Return the image AUROC of a run's map on new images."""
    scores = score(f"{run.run}/model", source, str(out), parse_config(None, (*CLUSTER, *ELSEWHERE)))
    truth = scores["image_path"].isin([str(path) for path in defective])
    return float(roc_auc_score(truth, scores["anomaly_score"].astype(float)))


def test_planted_defects_are_found_and_the_map_is_better_for_it(
    dirty: CleanResult, bottles: Bottles, tmp_path: Path
) -> None:
    manifest = pd.read_parquet(Path(dirty.run) / "manifest.parquet")
    total = dirty.ledger["total"]
    assert len(manifest) == total["inputs"] == 66
    assert sum(count for decision, count in total.items() if decision != "inputs") == 66
    planted = manifest[manifest["image_path"].isin([str(path) for path in bottles.planted])]
    assert planted["label"].tolist() == ["abnormal"] * 6
    assert np.isfinite(manifest["anomaly_score"]).all()
    assert total["clean"] >= 7

    untrimmed = recut(dirty.run, parse_config(None, (PAIRE, NO_TRIMMING, ACCEPT)))
    assert untrimmed.ledger["total"]["clean"] + untrimmed.ledger["total"]["duplicate"] == 66
    new = index(tmp_path / "new.csv", [*bottles.test_good, *bottles.test_defective])
    with_trimming = auroc(dirty, new, bottles.test_defective, tmp_path / "trimmed scores")
    without = auroc(untrimmed, new, bottles.test_defective, tmp_path / "untrimmed scores")
    assert with_trimming >= without


def test_a_real_archive_with_defects_is_trusted(dirty: CleanResult) -> None:
    entry = recut(dirty.run, parse_config(None, [GROW])).ledger["groups"]["all"]
    assert entry["findings"] == []
    assert entry["contamination"]["lower"] <= 6 / 66 <= entry["contamination"]["upper"]


def test_one_mixed_with_another_product_is_not(
    shared: Path, features: tuple[str, ...], bottles: Bottles, tmp_path: Path
) -> None:
    plates = sorted((shared / "data" / "kolektor_sdd" / "images").glob("*.jpg"))[:20]
    assert len(plates) == 20
    archive = index(tmp_path / "mixed.csv", [*bottles.good[:40], *plates])
    with pytest.raises(UntrustworthyError, match="two kinds"):
        clean(archive, str(tmp_path / "mixed"), parse_config(None, (*features, *CLUSTER, *ELSEWHERE, GROW)))

"""How `paire clean` does on dirty training sets of an MVTec-style category with real weights.

For each noise ratio and seed, defective test images replace good training images (paper, section 4.1, overlap
protocol), the set is cleaned by the real command's code path, and the test set is scored under the published map, and
under Gaussians fitted on everything (no trimming) and on the true normals (oracle) with the strategy's estimator.

    python -m tests.studies.bottle ../shared/data/mvtec_bottle --weights ../shared/weights/squeezenet1_1-imagenet.pth
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pipeline.run import clean
from schemas.config import Config, parse_config
from schemas.manifest import CLEAN
from workers.extract import ImageRef, extract_block
from workers.extractor import shared_extractor
from workers.gaussian import fit_dual
from workers.gaussian_map import GaussianMap

Features = NDArray[Any]


def main() -> None:
    """Run the study and print it as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path, help="folder with train/good and test/<defect>")
    parser.add_argument("--weights", required=True, help="squeezenet1_1 state dict")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategy", default="paire")
    arguments = parser.parse_args()
    config = parse_config(
        None,
        [
            "features.backbone=squeezenet1_1",
            "features.nodes=features.4,features.7,features.12",
            f"features.weights={arguments.weights}",
            f"trim.strategy={arguments.strategy}",
            "cluster.workers=1",
            "cluster.processes=false",
        ],
    )
    print("| noise | seed | N | defects | kept | defects kept | passes | AUROC | AUROC untrimmed | AUROC oracle |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in study(arguments.category, config, arguments.noise, range(arguments.seeds)):
        print("| " + " | ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row) + " |")


def study(category: Path, config: Config, ratios: Sequence[float], seeds: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Yield one row of the table for each ratio and seed."""
    good = sorted((category / "train" / "good").glob("*.png"))
    test = sorted((category / "test").glob("*/*.png"))
    is_defective = np.array([path.parent.name != "good" for path in test])
    defective = [path for path, flag in zip(test, is_defective, strict=True) if flag]
    features = dict(zip([*good, *test], _extract([*good, *test], config), strict=True))
    test_features = np.stack([features[path] for path in test])

    for ratio in ratios:
        for seed in seeds:
            rng = np.random.default_rng(seed)
            count = round(ratio * len(good))
            planted = [defective[index] for index in rng.choice(len(defective), count, replace=False)]
            normal = [good[index] for index in rng.choice(len(good), len(good) - count, replace=False)]
            with tempfile.TemporaryDirectory() as folder:
                index = Path(folder) / "index.csv"
                paths = [str(path.resolve()) for path in [*normal, *planted]]
                pd.DataFrame({"image_path": paths}).to_csv(index, index=False)
                result = clean(str(index), str(Path(folder) / "run"), config)
                manifest = pd.read_parquet(Path(folder) / "run" / "manifest.parquet")
                kept = set(manifest.loc[manifest["decision"] == CLEAN, "image_path"])
                distances = GaussianMap.open(Path(folder) / "run" / "model").distances("all", test_features)
            yield (
                f"{ratio:.0%}",
                seed,
                len(paths),
                count,
                len(kept),
                len(kept & {str(path.resolve()) for path in planted}),
                result.ledger["groups"]["all"]["iterations"],
                _auroc(is_defective, distances),
                _auroc(is_defective, _fitted_on([*normal, *planted], features, test_features, config)),
                _auroc(is_defective, _fitted_on(normal, features, test_features, config)),
            )


def _extract(paths: Sequence[Path], config: Config) -> Features:
    refs = [ImageRef(row, str(path.resolve())) for row, path in enumerate(paths)]
    extractor = shared_extractor(config.features)
    block, outcomes = extract_block(refs, extractor, inputs=config.input, features=config.features, readers=2)
    unreadable = [outcome for outcome in outcomes if not outcome.is_readable]
    if unreadable:
        raise SystemExit(f"{paths[unreadable[0].row]}: {unreadable[0].reason}")
    return block


def _fitted_on(
    paths: Sequence[Path], features: dict[Path, Features], test: Features, config: Config
) -> NDArray[np.float64]:
    """Return the test images' distances (images, rows, columns) to Gaussians fitted on some images."""
    samples = np.stack([features[path] for path in paths])
    distances = np.empty(test.shape[:3])
    for row, column in np.ndindex(test.shape[1:3]):
        fitted = fit_dual(samples[:, row, column], config.gaussian, config.estimator())
        distances[:, row, column] = fitted.gaussian.mahalanobis(test[:, row, column])
    return distances


def _auroc(is_defective: NDArray[np.bool_], distances: NDArray[np.float64]) -> float:
    return float(roc_auc_score(is_defective, distances.max(axis=(1, 2))))


if __name__ == "__main__":
    main()

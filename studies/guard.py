"""Test the contamination estimate and the breakdown guard, on planted scores and on real images.

`coverage`: scores with a planted share of bad images, under Gumbel's law and under another law, with clean sets that
hold all good images or their better half. The table says how often the 95 % interval covers, how wide it is, and how
often the guard stops.

`cases`: groups made from MVTec AD's bottle and KolektorSDD, good groups and groups that no strategy can clean, cleaned
by the strategy `grow`.

    python -m studies.guard coverage
    python -m studies.guard cases ../shared/data --weights ../shared/weights/squeezenet1_1-imagenet.pth
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from schemas.config import parse_config
from studies.cleaning.gram import Gram, products_of
from studies.cleaning.guard import examine_archive
from studies.cleaning.passes import Archive
from workers.features.extractor import PatchExtractor
from workers.guard.contamination import estimate_contamination
from workers.guard.findings import near_half
from workers.verdict.near_duplicates import lattice, sketch

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Group = tuple[list[Image.Image], int]  # images, the last of which are bad

SIDE = 320


def main() -> None:
    """Print one of the two tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    planted = parts.add_parser("coverage")
    planted.add_argument("--repeats", type=int, default=100)
    real = parts.add_parser("cases")
    real.add_argument("data", type=Path, help="folder with mvtec_bottle and kolektor_sdd")
    real.add_argument("--weights", required=True, help="squeezenet1_1 state dict")
    real.add_argument("--only", default="", help="cases whose name begins with this")
    arguments = parser.parse_args()
    if arguments.part == "coverage":
        _print_table(
            ("law", "bad scores", "clean set", "N", "share", "covered", "width", "mean estimate", "stops"),
            coverage(arguments.repeats),
        )
    else:
        _print_table(("case", "N", "good kept", "bad kept", "truth", "estimate", "guard"), cases(arguments))


def _print_table(header: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row) + " |")


def coverage(repeats: int) -> Iterator[tuple[Any, ...]]:
    """Yield one row for each law, kind of clean set, number of images and planted share."""
    laws: dict[str, Callable[[np.random.Generator, int], Array]] = {
        "Gumbel": lambda rng, count: rng.gumbel(0.0, 1.0, count),
        # Correlated positions: their maximum is closer to the normal law than to Gumbel's.
        "normal maximum": lambda rng, count: 4 * (rng.normal(size=(count, 40)) + rng.normal(size=(count, 1))).max(1),
    }
    bad_scores = {"far": (4.0, 12.0), "overlapping": (1.5, 8.0)}
    settings = itertools.product(laws, bad_scores, ("all good", "better half"), (50, 200, 2000, 20_000))
    for law, kind, clean_set, count in settings:
        for share in (0.0, 0.1, 0.3, 0.45):
            bad = round(share * count)
            found = []
            for seed in range(repeats if count <= 2000 else max(1, repeats // 5)):
                rng = np.random.default_rng(seed)
                good = laws[law](rng, count - bad)
                # Bad scores lie this many scales above the median of the good scores, whose quartiles give the scale.
                median, quartile = np.quantile(good, [0.5, 0.25])
                scores = np.concatenate(
                    [good, median + (median - quartile) / 0.69 * rng.uniform(*bad_scores[kind], bad)]
                )
                clean = np.arange(count) < count - bad
                if clean_set == "better half":
                    clean &= scores < median
                found.append(estimate_contamination(scores, clean))
            yield (
                law,
                kind,
                clean_set,
                count,
                share,
                float(np.mean([one.lower <= bad / count <= one.upper for one in found])),
                float(np.mean([one.upper - one.lower for one in found])),
                float(np.mean([one.share for one in found])),
                float(np.mean([finding is not None and finding.stops for finding in map(near_half, found)])),
            )


def cases(arguments: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Yield one row for each case: what was cleaned, the estimate, and the guard's findings."""
    config = parse_config(
        None,
        [
            "features.backbone=squeezenet1_1",
            "features.nodes=features.4,features.7,features.12",
            f"features.weights={arguments.weights}",
            "trim.strategy=grow",
        ],
    )
    extractor = PatchExtractor(config.features)
    for name, make in _groups(arguments.data).items():
        if not name.startswith(arguments.only):
            continue
        images, bad = make()
        values = np.concatenate([extractor.extract(_pixels(images[at : at + 32])) for at in range(0, len(images), 32)])
        is_good = np.arange(len(images)) < len(images) - bad
        archive = archive_of(values)
        cleaning = archive.clean(config)
        examination, clean = examine_archive(archive, cleaning, config), cleaning.trimming.clean
        contamination, findings = examination.contamination, examination.findings
        assert contamination is not None, f"{name}: hardly anything is clean"
        yield (
            name,
            len(images),
            float(clean[is_good].mean()),
            int(clean[~is_good].sum()),
            bad / len(images),
            f"{contamination.share:.3f} ({contamination.lower:.3f} to {contamination.upper:.3f})",
            " ".join(f"{'STOP' if one.stops else 'warning'} {one.condition}: {one.sentence}" for one in findings)
            or "silent",
        )


def archive_of(values: NDArray[Any]) -> Archive:
    """Return the archive of features (images, rows, columns, channels)."""
    images, rows, columns, channels = values.shape
    products = np.empty((rows * columns, images, images))
    products_of(values.reshape(images, -1, channels), products)
    return Archive(Gram(products, channels), np.arange(images), (rows, columns), sketch(values[:, lattice(rows)]))


def _groups(data: Path) -> dict[str, Callable[[], Group]]:
    """Return the cases by name; each makes its images when it is called."""
    category = data / "mvtec_bottle"
    bottles = [_open(path) for path in sorted((category / "train" / "good").glob("*.png"))]
    broken = [_open(path) for path in sorted((category / "test").glob("*/*.png")) if path.parent.name != "good"]
    labels = pd.read_csv(data / "kolektor_sdd" / "labels.csv")
    plates, cracked = (
        [_open(data / "kolektor_sdd" / path) for path in labels.loc[labels["label_index"] == label, "image_path"]]
        for label in (0, 1)
    )

    def dirty(good: list[Image.Image], bad: list[Image.Image], count: int, share: float, seed: int = 0) -> Group:
        rng, planted = np.random.default_rng(seed), round(share * count)
        return _choose(rng, good, count - planted) + _choose(rng, bad, planted), planted

    def changed(images: list[Image.Image], change: Callable[[Image.Image, np.random.Generator], Image.Image]) -> Group:
        rng = np.random.default_rng(0)
        return [change(image, rng) for image in images], 0

    def shifted(pixels: int) -> Group:
        return changed(bottles, lambda image, rng: _shift(image, rng, pixels))

    lamps = np.linspace(0.7, 1.2, 200)
    made: dict[str, Callable[[], Group]] = {}
    for share, seed in itertools.product((0.0, 0.1, 0.2, 0.3), (0, 1)):
        made[f"good: bottle, {share:.0%} defects, seed {seed}"] = partial(dirty, bottles, broken, 209, share, seed)
    for share in (0.0, 0.05, 0.1, 0.15):
        made[f"good: plates, {share:.0%} defects"] = partial(dirty, plates, cracked, 200, share)
    made["good: bottle, shifted by 6 pixels"] = partial(shifted, 6)
    made["good: bottle, light from 70 to 120 %"] = lambda: (_dim(bottles[:200], lamps), 0)
    made["good: plates, light from 70 to 120 %"] = lambda: (_dim(plates[:200], lamps), 0)
    made["good: crops of a texture"] = lambda: (_textures(200), 0)
    for share, count in ((0.4, 150), (0.45, 140), (0.5, 126), (0.6, 105)):
        made[f"bad: bottle, {share:.0%} defects"] = partial(dirty, bottles, broken, count, share)
    for share in (0.5, 0.2, 0.05):
        made[f"bad: bottle with {share:.0%} plates"] = partial(dirty, bottles, plates, 200, share)
    made["bad: plates turned freely"] = lambda: changed(
        plates[:200], lambda image, rng: _turn(image, rng.uniform(0, 360))
    )
    made["bad: plates in quarter turns"] = lambda: changed(
        plates[:200], lambda image, rng: _turn(image, 90.0 * rng.integers(4))
    )
    made["bad: bottle, shifted by 60 pixels"] = partial(shifted, 60)
    for count in (5, 12, 18, 30, 50):
        made[f"bad: {count} bottles"] = partial(dirty, bottles, broken, count, 0.0)
    return made


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").resize((SIDE, SIDE))


def _choose(rng: np.random.Generator, images: list[Image.Image], count: int) -> list[Image.Image]:
    return [images[index] for index in rng.choice(len(images), count, replace=False)]


def _pixels(images: list[Image.Image]) -> NDArray[np.float32]:
    resized = [image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image, np.float32) / 255 for image in resized])


def _turn(image: Image.Image, degrees: float) -> Image.Image:
    margin = SIDE // 2
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    turned = Image.fromarray(padded).rotate(degrees, Image.Resampling.BILINEAR)
    return turned.crop((margin, margin, margin + SIDE, margin + SIDE))


def _shift(image: Image.Image, rng: np.random.Generator, pixels: int) -> Image.Image:
    padded = np.pad(np.asarray(image), ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
    row, column = rng.integers(0, 2 * pixels + 1, 2)
    return Image.fromarray(padded[row : row + SIDE, column : column + SIDE])


def _dim(images: list[Image.Image], gains: Array) -> list[Image.Image]:
    return [
        Image.fromarray(np.clip(np.asarray(image, np.float32) * gain, 0, 255).astype(np.uint8))
        for image, gain in zip(images, gains, strict=True)
    ]


def _textures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sheet = np.clip(rng.normal(120, 30, (2000, 2000)), 0, 255).astype(np.uint8)
    corners = rng.integers(0, 2000 - SIDE, (count, 2))
    return [Image.fromarray(sheet[row : row + SIDE, column : column + SIDE]) for row, column in corners]


if __name__ == "__main__":
    main()

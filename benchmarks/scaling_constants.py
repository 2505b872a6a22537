"""The constants of ``docs/scaling.md``: measured on this machine with the job's own kernels, or assumed.

Rates are of one core, so that a worker of c cores has c times as much: kernels compute one position on each of them.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.images import write_images
from benchmarks.results import machine
from pipeline.cluster.cluster import CORES_PER_WORKER, open_cluster
from pipeline.cluster.tasks import TaskWindow
from pipeline.costs.footprint import Layout, PassKind, fit_flop, measure_flop, pass_flop
from schemas.config import ClusterConfig, FeaturesConfig, GaussianConfig
from workers.compute import set_compute_threads
from workers.features.extractor import SLICE_IMAGES, PatchExtractor
from workers.gaussian.fit import Fit, fit_dual, fit_primal
from workers.gaussian.moments import accumulate, merge
from workers.gaussian.products import inner_products, measure
from workers.images.decode import decode_image

# Rounds of each measurement. The shortest counts, as other work on the machine disturbs the rest.
ROUNDS = 3

# Images of a group whose passes go by inner products, and of its clean set.
DUAL, DUAL_FITTED = 1000, 550

# Images of one task beyond the dual form, where the rate no longer depends on it.
SEGMENT = 512

# No-op tasks that say what a task costs by itself.
EMPTY_TASKS = 300


@dataclass(frozen=True)
class Backbone:
    """The channels and the speed of a backbone.

    Attributes
    ----------
    channels
        D.
    images_per_second
        Images that one core decodes and extracts.
    products, passes, publish, accumulate, measure
        Operations per second of one core in the kernels, by the formulas of `pipeline.costs.footprint`.
    merge, factor
        Seconds of one core for merging two moments of a position, and for its Gaussian.
    """

    name: str
    channels: int
    images_per_second: float
    products: float
    passes: float
    publish: float
    accumulate: float
    measure: float
    merge: float
    factor: float


@dataclass(frozen=True)
class Constants:
    """All constants.

    Attributes
    ----------
    machine
        The machine that they were measured on.
    submit_seconds
        The cost of a task for the driver and the scheduler.
    image_bytes
        Bytes of one image in the archive: MVTec AD's bottle.
    network_bytes_per_second
        Assumed for each worker, in each direction: 10 Gbit/s.
    get_per_second, put_per_second
        Assumed: requests that an object store serves for one prefix (Amazon S3's documentation).
    cores
        Cores of a worker.
    """

    machine: dict[str, Any]
    backbones: tuple[Backbone, ...]
    submit_seconds: float
    image_bytes: int = 112_000
    network_bytes_per_second: float = 1.25e9
    get_per_second: float = 5500.0
    put_per_second: float = 3500.0
    cores: int = CORES_PER_WORKER

    def write(self, path: Path) -> None:
        """Write the constants to a file."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Constants":
        """Read the constants from a file."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "backbones": tuple(Backbone(**one) for one in data["backbones"])})


def measure_constants() -> Constants:
    """Measure the constants on this machine, in two minutes."""
    squeezenet = FeaturesConfig(
        backbone="squeezenet1_1", nodes=("features.4", "features.7", "features.12"), weights="random"
    )
    set_compute_threads(1)
    backbones = (_backbone(FeaturesConfig(weights="random")), _backbone(squeezenet))
    return Constants(machine(), backbones, _submit_seconds())


def _backbone(features: FeaturesConfig) -> Backbone:
    """Measure one backbone, with random weights, which do not change the time."""
    extractor = PatchExtractor(features.model_copy(update={"device": "cpu"}))
    geometry, D = extractor.geometry, extractor.geometry.channels
    random = np.random.default_rng(0)
    samples = random.normal(size=(SEGMENT, D)).astype(np.float16)
    few = random.normal(size=(min(DUAL, D), D)).astype(np.float16)
    products, fitted = inner_products(few), np.arange(min(DUAL_FITTED, len(few) - 1))
    fit = Fit(GaussianConfig(), "oas")
    layout = Layout(dataclasses.replace(geometry, rows=1, columns=1), 2, SEGMENT)
    part = accumulate(samples[:, np.newaxis])
    gaussian = fit_primal(merge(part, part), fit.config, "oas")[0].gaussian
    # fit_flop has the update, the merges of two chunks and the factor.
    accumulate_flop = fit_flop(D, SEGMENT) if D < SEGMENT else float(SEGMENT) * D**2
    return Backbone(
        name=features.backbone,
        channels=D,
        images_per_second=1.0 / _seconds_per_image(extractor, features.image_size),
        products=len(few) ** 2 * D / shortest(lambda: inner_products(few)),
        passes=pass_flop(layout, len(few), len(fitted), PassKind())
        / shortest(lambda: measure(products, D, fitted, np.arange(len(few)), fit)),
        publish=fit_flop(D, len(fitted)) / shortest(lambda: fit_dual(few[fitted], fit.config, "oas")),
        accumulate=accumulate_flop / shortest(lambda: accumulate(samples[:, np.newaxis])),
        measure=measure_flop(D, SEGMENT, D + 1) / shortest(lambda: gaussian.mahalanobis(samples)),
        merge=shortest(lambda: merge(part, part)),
        factor=shortest(lambda: fit_primal(merge(part, part), fit.config, "oas")),
    )


def shortest(work: Callable[[], object]) -> float:
    """Return the seconds of the shortest of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _seconds_per_image(extractor: PatchExtractor, size: int) -> float:
    """Return the seconds that one core takes to decode an image and to extract its features."""
    with tempfile.TemporaryDirectory() as folder:
        content = write_images(Path(folder), 1, 900, "PNG")[0].read_bytes()
    pixels = np.random.default_rng(0).random((SLICE_IMAGES, size, size, 3), np.float32)
    decoding = shortest(lambda: decode_image(content, image_size=size, max_pixels=10**8))
    return decoding + shortest(lambda: extractor.extract(pixels)) / SLICE_IMAGES


def _submit_seconds() -> float:
    """Return the seconds of a task that computes nothing, with one worker process."""
    with open_cluster(ClusterConfig(workers=1, threads_per_worker=1)) as cluster:

        def submit() -> None:
            window = TaskWindow(cluster.client, cluster.workers)
            window.gather([window.submit(_nothing, number) for number in range(EMPTY_TASKS)])

        return shortest(submit) / EMPTY_TASKS


def _nothing(number: int) -> int:
    return number

"""``python -m benchmarks.scaling [measure] [check] [tables]``: make the tables of ``docs/scaling.md``.

``measure`` measures this machine's constants, ``check`` compares one pass on a small cluster with its simulation, and
``tables`` writes the tables and the plot from the stored results of both.
"""

import argparse
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.results import machine
from benchmarks.scaling_constants import Backbone, Constants, measure_constants
from benchmarks.scaling_model import (
    Phase,
    extraction,
    judging,
    large_costs,
    large_pass,
    layout_of,
    total,
)
from benchmarks.simulation import PassCosts, pass_schedule, simulate
from pipeline.cli.plan_table import duration, size
from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.cluster.tasks import Here, TaskWindow
from pipeline.costs.footprint import (
    Layout,
    PassKind,
    distance_bytes,
    extraction_requests,
    feature_bytes,
    moments_bytes,
    pass_requests,
    pass_tasks,
    products_bytes,
)
from pipeline.costs.working_memory import judging_memory
from pipeline.judging.group import Group
from pipeline.judging.statistics import GroupStatistics
from schemas.config import Config, parse_config
from schemas.stores.features import FeatureGeometry
from workers.compute import set_compute_threads
from workers.storage.directory import Directory

mpl.use("Agg")
import matplotlib.pyplot as plt

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
KEPT = PAGE.with_suffix("")
CONSTANTS, CHECKS, PLOT = KEPT / "constants.json", KEPT / "checks.json", KEPT / "hours.png"

SIZES = tuple(10**exponent for exponent in range(4, 9))
WORKERS = (1, 4, 16, 64, 256)
GROUP = 1000

# Images of the check: a group beyond the dual form, over which a small cluster makes a pass in seconds.
CHECKED = FeatureGeometry(rows=6, columns=8, channels=448, grid_rows=24, grid_columns=16, pool_kernel=4, pool_stride=4)
CHECKED_IMAGES, CHECKED_SEGMENT, CHECKED_WORKERS, CHECKED_ROUNDS = 4096, 512, 2, 3


def main() -> None:
    """Run the named steps, or all of them."""
    steps: dict[str, Callable[[], None]] = {"measure": _measure, "check": _check, "tables": _tables}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("steps", nargs="*", choices=[*steps, []], help="default: all")
    KEPT.mkdir(exist_ok=True)
    for step in parser.parse_args().steps or list(steps):
        steps[step]()


def _measure() -> None:
    measure_constants().write(CONSTANTS)


def _check() -> None:
    """Run a pass on a cluster of two processes, and simulate it with the measured times of its tasks."""
    # Every process imports this module and all that it imports.
    cluster_settings = (f"cluster.workers={CHECKED_WORKERS}", "cluster.threads_per_worker=1", "cluster.timeout_s=300")
    config = parse_config(None, (f"gaussian.segment_images={CHECKED_SEGMENT}", *cluster_settings))
    layout = Layout.of(CHECKED, config)
    constants = Constants.read(CONSTANTS)
    with tempfile.TemporaryDirectory() as folder:
        directory = Directory.at(folder)
        values = np.random.default_rng(0).normal(size=CHECKED.array_shape(CHECKED_IMAGES)).astype(np.float16)
        (directory / "features").zarr_group("", "w").create_array(
            "all", data=values, chunks=CHECKED.chunk_shape(CHECKED_IMAGES), compressors=None
        )
        (directory / "distances").zarr_group("", "w")
        with open_cluster(config.cluster) as cluster:
            rounds = [_round(cluster, directory, config, layout, constants) for _ in range(CHECKED_ROUNDS + 1)][1:]
    found = {
        "tasks": rounds[0]["tasks"],
        "tasks simulated": rounds[0]["simulated tasks"],
        "tasks by the formula": pass_tasks(layout, CHECKED_IMAGES, CHECKED_IMAGES, PassKind()),
        "seconds": [round(one["real"], 2) for one in rounds],
        "simulated over real": [round(one["simulated"] / one["real"], 2) for one in rounds],
        "machine": machine(),
    }
    CHECKS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _round(
    cluster: Cluster, directory: Directory, config: Config, layout: Layout, constants: Constants
) -> dict[str, float]:
    """Run the pass here, timing its tasks, and on the cluster; return both times and the numbers of tasks."""
    everything = np.ones(CHECKED_IMAGES, bool)
    group = Group("all", everything, directory / "features", CHECKED, config)

    def run(where: Cluster | None) -> float:
        with GroupStatistics(where, group, directory / "distances", Reporter()) as statistics:
            started = time.perf_counter()
            statistics.run_pass(everything, 1)
            return time.perf_counter() - started

    set_compute_threads(1)
    taken = _timed_tasks(lambda: run(None))
    costs = PassCosts(
        accumulate=taken["accumulate_segment"],
        merge=taken["merge_rows"],
        fit=taken["fit_row_whitening"],
        measure=taken["measure_segment"],
        judge=taken["judge_row"],
    )
    schedule = pass_schedule(layout, CHECKED_IMAGES, CHECKED_IMAGES, costs)
    submitted = _counted_tasks(lambda: run(cluster))
    simulated = simulate(schedule, cluster.workers, submit_seconds=constants.submit_seconds)
    return {
        "real": submitted.pop("seconds"),
        "tasks": submitted.pop("tasks"),
        "simulated": simulated.seconds,
        "simulated tasks": len(schedule),
    }


def _timed_tasks(work: Callable[[], object]) -> dict[str, float]:
    """Return the mean seconds of each kind of task, computed in this process."""
    seconds: dict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    submit = Here.submit

    def timed(self: Here, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        started = time.perf_counter()
        done = submit(self, function, *args, **kwargs)
        seconds[function.__name__] += time.perf_counter() - started
        counts[function.__name__] += 1
        return done

    Here.submit = timed  # type: ignore[method-assign]
    try:
        work()
    finally:
        Here.submit = submit  # type: ignore[method-assign]
    return {name: total_seconds / counts[name] for name, total_seconds in seconds.items()}


def _counted_tasks(work: Callable[[], float]) -> dict[str, float]:
    """Return how many tasks some work submits to a cluster, and its seconds."""
    count, submit = 0, TaskWindow.submit

    def counting(self: TaskWindow, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        nonlocal count
        count += 1
        return submit(self, function, *args, **kwargs)

    TaskWindow.submit = counting  # type: ignore[method-assign]
    try:
        seconds = work()
    finally:
        TaskWindow.submit = submit  # type: ignore[method-assign]
    return {"tasks": count, "seconds": seconds}


def _tables() -> None:
    """Write the tables between their markers, and the plot."""
    constants = Constants.read(CONSTANTS)
    checks = json.loads(CHECKS.read_text(encoding="utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), constants, checks), encoding="utf-8")
    _plot(constants)


def with_tables(text: str, constants: Constants, checks: dict[str, Any]) -> str:
    """Return the page with every table between its markers written again."""
    tables = {
        "constants": _constants_table(constants),
        "volumes": _volumes_table(constants),
        "hours": _hours_table(constants),
        "check": _check_table(constants, checks),
    }
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{PAGE.name} has no markers {start} ... {end}")
        text = pattern.sub(lambda _, block=f"{start}\n{table}\n{end}": block, text)  # type: ignore[misc]
    return text


def scenarios() -> list[tuple[str, Callable[[int], tuple[int, int]]]]:
    """Return ways to group N images: a name, the images of a group and the number of groups."""
    return [(f"groups of {GROUP}", lambda images: (GROUP, images // GROUP)), ("one group", lambda images: (images, 1))]


def run_time(images: int, grouped: tuple[int, int], workers: int, backbone: Backbone, constants: Constants) -> Phase:
    """Return how long a run takes, and what most of it waits for."""
    return total([extraction(images, workers, backbone, constants), *judging(*grouped, workers, backbone, constants)])


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _constants_table(constants: Constants) -> str:
    head = ["constant", *(f"`{one.name}`, D = {one.channels}" for one in constants.backbones)]
    giga = 1e9
    rows = [
        ["images/s, decoded and extracted", *(f"{one.images_per_second:.2f}" for one in constants.backbones)],
        *(
            [f"{words}, GFLOP/s", *(f"{getattr(one, name) / giga:.1f}" for one in constants.backbones)]
            for name, words in (
                ("products", f"inner products of {GROUP} images"),
                ("passes", "a pass over them"),
                ("publish", "their published fit"),
                ("accumulate", "moments"),
                ("measure", "distances beyond the dual form"),
            )
        ),
        ["merging two moments, ms", *(f"{1e3 * one.merge:.0f}" for one in constants.backbones)],
        ["factor, ms", *(f"{1e3 * one.factor:.0f}" for one in constants.backbones)],
    ]
    on = ", ".join(f"{key} {value}" for key, value in constants.machine.items() if value is not None)
    tail = (
        f"Of one core, measured on: {on}. A task costs driver and scheduler {1e3 * constants.submit_seconds:.1f} ms. "
        f"Assumed: workers of {constants.cores} cores and {constants.network_bytes_per_second * 8 / giga:.0f} Gbit/s, "
        f"images of {size(constants.image_bytes)} (MVTec AD's bottle), an object store that takes "
        f"{constants.get_per_second:.0f} GET/s and {constants.put_per_second:.0f} PUT/s."
    )
    return f"{_markdown(head, rows)}\n\n{tail}"


def _volumes_table(constants: Constants) -> str:
    head = [
        "D",
        "N",
        "grouping",
        "features",
        "distances",
        "scratch",
        "memory of a worker",
        "tasks of a pass",
        "GET of a pass",
        "PUT of extraction",
    ]
    rows = []
    for backbone in constants.backbones:
        layout = layout_of(backbone)
        for images in SIZES:
            for name, group in scenarios():
                each, groups = group(images)
                requests = pass_requests(layout, each, each, PassKind())
                scratch = products_bytes(layout, each) + moments_bytes(layout, each)
                rows.append(
                    [
                        str(backbone.channels),
                        _power(images),
                        name,
                        size(groups * feature_bytes(layout, each)),
                        size(groups * distance_bytes(layout, each)),
                        size(scratch) if scratch else "-",
                        size(judging_memory(layout, each, each, threads=constants.cores)),
                        f"{groups * pass_tasks(layout, each, each, PassKind()):,}",
                        f"{groups * requests.get:,}",
                        f"{groups * extraction_requests(layout, each).put:,}",
                    ]
                )
    return _markdown(head, rows)


def _hours_table(constants: Constants) -> str:
    head = ["D", "N", "grouping", *(f"{workers} workers" if workers > 1 else "1 worker" for workers in WORKERS)]
    rows = []
    for backbone in constants.backbones:
        for images in SIZES:
            for name, group in scenarios():
                cells = [run_time(images, group(images), workers, backbone, constants) for workers in WORKERS]
                rows.append(
                    [
                        str(backbone.channels),
                        _power(images),
                        name,
                        *(f"{duration(cell.seconds)}, {cell.waits_for}" for cell in cells),
                    ]
                )
    return _markdown(head, rows)


def _check_table(constants: Constants, checks: dict[str, Any]) -> str:
    """Return rows of closed formula over simulation for large passes, and of simulation over a real cluster."""
    backbone = constants.backbones[0]
    head = ["one group of", *(f"{workers} workers" if workers > 1 else "1 worker" for workers in WORKERS)]
    rows = []
    for images in (10**4, 10**5, 10**6):
        ratios = []
        for workers in WORKERS:
            costs = large_costs(images, workers, backbone, constants)
            schedule = pass_schedule(layout_of(backbone), images, images, costs)
            found = simulate(schedule, workers, submit_seconds=constants.submit_seconds)
            ratios.append(f"{large_pass(images, workers, backbone, constants).seconds / found.seconds:.2f}")
        rows.append([_power(images), *ratios])
    on = ", ".join(f"{key} {value}" for key, value in checks["machine"].items() if value is not None)
    ratios_real = ", ".join(f"{ratio:.2f}" for ratio in checks["simulated over real"])
    tail = (
        f"One pass over {CHECKED_IMAGES} images of {CHECKED.rows} x {CHECKED.columns} positions of {CHECKED.channels} "
        f"channels on a cluster of {CHECKED_WORKERS} processes: {checks['tasks']} tasks submitted, "
        f"{checks['tasks simulated']} simulated, {checks['tasks by the formula']} by the formula; simulated over real "
        f"time in {len(checks['simulated over real'])} rounds: {ratios_real} ({on})."
    )
    return f"{_markdown(head, rows)}\n\n{tail}"


def _power(images: int) -> str:
    return f"10^{len(str(images)) - 1}"


def _plot(constants: Constants) -> None:
    """Draw hours against workers, one panel for each grouping; the marker says what most of the time waits for."""
    backbone = constants.backbones[0]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    workers = [2**power for power in range(9)]
    markers = dict(zip(_causes(constants, workers), "os^Dv*X", strict=False))
    colours = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(SIZES)))
    for axis, (name, group) in zip(axes, scenarios(), strict=True):
        for images, colour in zip(SIZES, colours, strict=True):
            times = [run_time(images, group(images), count, backbone, constants) for count in workers]
            hours = [one.seconds / 3600 for one in times]
            axis.plot(workers, hours, color=colour, linewidth=1.2)
            axis.text(workers[-1] * 1.15, hours[-1], f"$10^{{{len(str(images)) - 1}}}$", color=colour, va="center")
            for count, hour, one in zip(workers, hours, times, strict=True):
                axis.plot(count, hour, markers[one.waits_for], color=colour, markersize=5)
        axis.set(xscale="log", yscale="log", title=name, xlabel=f"workers of {constants.cores} cores")
        axis.set_xticks(workers, [str(count) for count in workers])
        axis.minorticks_off()
        axis.set_xlim(workers[0] / 1.4, workers[-1] * 2.2)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"hours, {backbone.name}, D = {backbone.channels}")
    for cause, marker in markers.items():
        axes[1].plot([], [], marker, color="grey", label=cause)
    figure.legend(title="most of the time waits for", ncols=len(markers), loc="outside lower center")
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)


def _causes(constants: Constants, workers: list[int]) -> list[str]:
    """Return everything that the plotted runs wait for, in the order of appearance."""
    backbone = constants.backbones[0]
    causes = [
        run_time(images, group(images), count, backbone, constants).waits_for
        for _, group in scenarios()
        for images in SIZES
        for count in workers
    ]
    return list(dict.fromkeys(causes))


if __name__ == "__main__":
    main()

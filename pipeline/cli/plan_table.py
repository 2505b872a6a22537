"""A plan as a table for people, with its assumptions in sentences below."""

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.commands.plan.plan import Plan
from pipeline.costs.working_memory import USABLE_MEMORY
from pipeline.run_directory.log import one_line

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_STEP = 1000

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
# Shorter durations are shown in hours, as people give those of jobs.
_HOURS_UP_TO = 3 * _DAY


def tabulate(plan: Plan) -> Table:
    """Return a plan for people."""
    table = Table("plan", "", title=Text(one_line(plan.source)), title_justify="left", box=SIMPLE_HEAD)
    for name, value in _rows(plan):
        table.add_row(name, Text(value))
    table.caption, table.caption_justify = Text("\n".join(sentences(plan))), "left"
    return table


def sentences(plan: Plan) -> list[str]:
    """Return the assumptions of a plan, and what stands in the way of the run."""
    passes, said = plan.passes, []
    if passes.fewest < passes.most:
        said.append(
            f"Assumed: {passes.usual} passes over each group, the usual number; most archives take {passes.fewest} to "
            f"{passes.most}."
        )
    if plan.range_s is not None and plan.seconds is not None:
        fewest, most = (duration(seconds) for seconds in plan.range_s)
        said.append(f"The total then lies between {fewest} and {most}, on workers like this machine's.")
    memory = plan.memory
    if memory["enough"] is False:
        said.append(
            f"Too little memory: a worker would need {size(memory['needed'])} and may use {USABLE_MEMORY:.0%} of "
            f"{size(memory['limit'])}. Use fewer workers, or larger ones, with --set cluster.workers=1."
        )
    elif memory["enough"]:
        said.append(f"The workers have the memory: {size(memory['limit'])} each.")
    if not plan.sample:
        said.append("No image was tried, so times and unreadable images are unknown. Give --sample 64 to measure both.")
    return said


def size(count: float) -> str:
    """Return a number of bytes with a decimal unit."""
    unit = 0
    while count >= _STEP and unit < len(_UNITS) - 1:
        count, unit = count / _STEP, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Return a duration in the unit that people would use."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.1f} min"
    return f"{seconds / _HOUR:.1f} h" if seconds < _HOURS_UP_TO else f"{seconds / _DAY:.1f} days"


def _rows(plan: Plan) -> list[tuple[str, str]]:
    groups, stored = plan.groups, plan.bytes
    rows = [
        ("inputs", f"{plan.inputs}, {plan.images} to read"),
        (
            "groups",
            f"{groups['number']}, of {groups['smallest']} to {groups['largest']} images, median {groups['median']:g}",
        ),
    ]
    if plan.unreadable is not None and plan.unreadable.value is not None:
        share = plan.unreadable
        rows.append(
            (
                "unreadable",
                f"{share.count} of {share.of} tried, {share.value:.1%} ({share.low:.1%} to {share.high:.1%})",
            )
        )
    if plan.archive_bytes is not None:
        rows.append(("archive", size(plan.archive_bytes)))
    rows += [
        ("features", size(stored["features"])),
        ("distances", size(stored["distances"])),
        ("map", f"at most {size(stored['map'])}"),
        ("scratch", f"up to {size(stored['scratch'])}, while a group is judged"),
        ("memory", f"{size(plan.memory['needed'])} for each worker"),
        ("tasks", ", ".join(f"{name} {count}" for name, count in plan.tasks.items() if count)),
        ("requests", f"{plan.requests['get']} GET, {plan.requests['put']} PUT of chunks, in an object store"),
    ]
    if plan.requests["archive_get"]:
        rows.append(("", f"{plan.requests['archive_get']} GET of images"))
    if plan.seconds is not None:
        seconds = plan.seconds
        rows += [
            ("workers", f"{plan.workers}, of {plan.threads} threads"),
            ("start", duration(seconds.start)),
            ("extract", duration(seconds.extract)),
            ("passes", duration(seconds.passes)),
            ("publish, examine", duration(seconds.rest)),
            ("small groups", duration(seconds.small_groups)),
            ("power", duration(seconds.power)),
            ("total", duration(seconds.total)),
        ]
    return rows

"""The report of the study: tables of its results, written between markers, which keep the text around them."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import pandas as pd

from pipeline.judging.strategies.base import AMBIGUOUS
from studies.cleaning.dirty_sets import NO_OVERLAP, OVERLAP
from studies.cleaning.methods import (
    ESTIMATORS,
    ETA,
    FALSE_REJECT,
    GROW,
    NONE,
    ORACLE,
    PAIRE,
    STRATEGIES,
    TRIM_ONCE,
    Method,
    estimator,
    with_estimator,
)
from studies.cleaning.plots import is_swept, sweep

START, END = "<!-- study -->", "<!-- /study -->"
TITLE: Final = "# Study: clean sets and what they are worth"

# With fewer anomalous test images, the area under the ROC curve says little.
TEST_ANOMALIES_NEEDED = 10

# What users want of every dirty set: purity, kept share, and how far the AUROC may fall below the oracle's.
PURITY_WANTED, KEPT_WANTED, AUROC_LOSS_ALLOWED = 0.995, 0.95, 0.005

_DIGITS: Final = {"purity": 4, "kept_share": 3, "auroc": 4, "auroc_smoothed": 4, "kept": 1}

Column = tuple[str, Method, str]  # heading, method, column of the results


def with_report(text: str, generated: str) -> str:
    """Replace the text between the markers of a document, or start a new document."""
    block = f"{START}\n{generated.strip()}\n{END}"
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text)
    return f"{text.strip() or TITLE}\n\n{block}\n"


def write_report(rows: pd.DataFrame, *, archives: Sequence[str], swept_archive: str, made: str) -> str:
    """Return the generated part.

    Parameters
    ----------
    archives
        In order of appearance.
    swept_archive
        The archive of the sweeps.
    made
        How, when and where the results were made.
    """
    rows = rows.assign(
        **{
            name: rows[name].where(rows["test_anomalies"] >= TEST_ANOMALIES_NEEDED)
            for name in ("auroc", "auroc_smoothed")
        }
    )
    sections = [made, _reading(rows), _goals(rows, archives)]
    for archive in archives:
        part = rows[rows["archive"] == archive]
        sections += [f"## {archive}", _sets(part), f"![{archive}: purity, kept share, AUROC](study/{archive}.png)"]
        for protocol in (OVERLAP, NO_OVERLAP):
            sections += _archive_tables(part[part["protocol"] == protocol], f"{archive}, {protocol}")
    overlapping = rows[(rows["archive"] == swept_archive) & (rows["protocol"] == OVERLAP)]
    sections += _ablations(overlapping, swept_archive)
    return "\n\n".join(section for section in sections if section)


def _reading(rows: pd.DataFrame) -> str:
    seeds = rows["seed"].nunique()
    return (
        f"Cells are the mean over the seeds ({seeds} of them) and, in brackets, the worst. Dirty sets are those of "
        "`paire dirty`: *overlap* leaves the planted anomalies in the test set, as the paper does; *no overlap* takes "
        "them out of it; at 0% the two are one set, in the tables of *overlap*. "
        "Byte-identical copies take no part. Purity: share of true normals among the kept images. Kept "
        "share: share of the true normals that are kept. AUROC: of the largest distance of each test image, under the "
        "published map; *smoothed* averages over neighbouring positions first, as `grow` does. Oracle: "
        f"fitted on the true normals. AUROC is not given where fewer than {TEST_ANOMALIES_NEEDED} anomalies are tested."
    )


def _goals(rows: pd.DataFrame, archives: Sequence[str]) -> str:
    """Return on how many dirty sets each strategy met the aims, and on how many it warned that it might not."""
    header = [
        "strategy",
        "archive",
        "dirty sets",
        f"purity >= {PURITY_WANTED}",
        f"kept share >= {KEPT_WANTED}",
        f"AUROC >= oracle's - {AUROC_LOSS_ALLOWED}",
        "all three",
        "no clear boundary",
        "floor applied",
    ]
    lines = []
    for name in STRATEGIES:
        for archive in archives:
            own = _of(rows[rows["archive"] == archive], Method(name)).set_index(["protocol", "noise", "seed"])
            oracle = _of(rows[rows["archive"] == archive], with_estimator(ORACLE, estimator(name)))
            best = oracle.set_index(["protocol", "noise", "seed"])["auroc"].reindex(own.index)
            is_met = [
                own["purity"] >= PURITY_WANTED,
                own["kept_share"] >= KEPT_WANTED,
                own["auroc"] >= best - AUROC_LOSS_ALLOWED,
            ]
            unclear = (own["stop_reason"] == AMBIGUOUS, own["floor_applied"])
            counts = [int(one.sum()) for one in (*is_met, is_met[0] & is_met[1] & is_met[2], *unclear)]
            lines.append([f"`{name}`", archive, str(len(own)), *map(str, counts)])
    return "## How many dirty sets come out as wanted\n\n" + _table(header, lines)


def _sets(rows: pd.DataFrame) -> str:
    """Return the sizes of the dirty sets and of their test sets."""
    own, lines = _of(rows, Method(NONE)), []
    for protocol in (OVERLAP, NO_OVERLAP):
        for noise, part in own[own["protocol"] == protocol].groupby("noise"):
            names = ("images", "anomalies", "test_normals", "test_anomalies")
            lines.append([protocol, f"{noise:.0%}", *(_range(part[name]) for name in names)])
    header = ["protocol", "noise", "training images", "anomalies in it", "normal test images", "anomalous test images"]
    return _table(header, lines)


def _archive_tables(rows: pd.DataFrame, title: str) -> list[str]:
    if rows.empty:
        return []
    plain = [(f"`{name}`", Method(name)) for name in STRATEGIES]
    tables = [
        f"### {title}",
        "Purity:\n\n" + _by_noise(rows, [(*one, "purity") for one in plain]),
        "Kept share:\n\n" + _by_noise(rows, [(*one, "kept_share") for one in plain]),
    ]
    for one in ESTIMATORS:
        names = [name for name in STRATEGIES if estimator(name) == one and name != NONE]
        fitted = [
            (NONE, with_estimator(NONE, one)),
            *((n, Method(n)) for n in names),
            (ORACLE, with_estimator(ORACLE, one)),
        ]
        columns: list[Column] = [(f"`{name}`", method, "auroc") for name, method in fitted]
        if GROW in names:
            columns += [(f"`{name}` smoothed", method, "auroc_smoothed") for name, method in fitted]
        tables.append(f"AUROC with the estimator `{one}`:\n\n" + _by_noise(rows, columns))
    return tables


def _ablations(rows: pd.DataFrame, archive: str) -> list[str]:
    plain = rows[rows["setting"] == ""]
    modules: list[Column] = [
        (f"`{name}` {heading}", Method(name), quantity)
        for quantity, heading in (("auroc", "AUROC"), ("kept", "kept images"))
        for name in (NONE, TRIM_ONCE, PAIRE)
    ]
    sections = [
        f"## Ablations: {archive}, overlap",
        "![modules, number of clean samples, sweeps](study/ablations.png)",
        "Modules of the paper's method (its Figures 13 and 14):\n\n" + _by_noise(plain, modules),
    ]
    if not is_swept(rows).any():
        return sections
    return [
        *sections,
        "eta (its Figure 15):\n\n" + _by_value(sweep(rows, PAIRE, ETA), "`trim.eta`"),
        "The counterpart of `grow`:\n\n" + _by_value(sweep(rows, GROW, FALSE_REJECT), "`trim.target_false_reject`"),
        "Kept images and purity after each pass, all seeds; the large marks are the ends:",
        "![purity against the number of kept images, pass by pass](study/passes.png)",
    ]


def _by_noise(rows: pd.DataFrame, columns: Sequence[Column]) -> str:
    lines = []
    for noise, part in rows.groupby("noise"):
        cells = [_cell(_of(part, method)[quantity], quantity) for _, method, quantity in columns]
        lines.append([f"{noise:.0%}", *cells])
    return _table(["noise", *(heading for heading, _, _ in columns)], lines)


def _by_value(rows: pd.DataFrame, name: str) -> str:
    """Return purity, kept share and AUROC for each value of a swept option, at each noise of the sweep."""
    swept = rows[rows["noise"].isin(set(rows.loc[rows["setting"] != "", "noise"]))]
    quantities = ("purity", "kept_share", "auroc")
    lines = [
        [f"{value:g}", f"{noise:.0%}", *(_cell(part[quantity], quantity) for quantity in quantities)]
        for (value, noise), part in swept.groupby(["value", "noise"])
    ]
    return _table([name, "noise", "purity", "kept share", "AUROC"], lines)


def _cell(values: pd.Series, quantity: str) -> str:
    """Return the mean and the worst value: the smallest, for every quantity here."""
    known = values.dropna()
    digits = _DIGITS[quantity]
    return f"{known.mean():.{digits}f} ({known.min():.{digits}f})" if len(known) else "not given"


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def _of(rows: pd.DataFrame, method: Method) -> pd.DataFrame:
    return rows[(rows["method"] == method.name) & (rows["setting"] == method.setting)]


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(
        [
            "| " + " | ".join(header) + " |",
            "|" + "---|" * len(header),
            *("| " + " | ".join(line) + " |" for line in lines),
        ]
    )

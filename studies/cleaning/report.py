"""The report of the study: where it fails, first; then all sets. Prose around the markers stays as it is."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from studies.cleaning.choice import leave_one_out
from studies.cleaning.dirty_sets import NO_OVERLAP, OVERLAP
from studies.cleaning.judge import ORACLE_PURITY, PURE
from studies.cleaning.methods import NONE, Sweep

START, END = "<!-- study -->", "<!-- /study -->"
TITLE: Final = "# Study: clean sets and what they are worth"

# With fewer anomalous test images, the area under the ROC curve says little.
TEST_ANOMALIES_NEEDED = 10

# Failures shown one by one.
SHOWN = 20

_DIGITS: Final = {"purity": 4, "kept_share": 3, "auroc": 4}


def with_report(text: str, generated: str) -> str:
    """Replace the text between the markers of a document, or start a new document."""
    block = f"{START}\n{generated.strip()}\n{END}"
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: block, text)
    return f"{text.strip() or TITLE}\n\n{block}\n"


@dataclass(frozen=True)
class Report:
    """The tables of a study.

    Attributes
    ----------
    rows
        The results.
    archives, backbones, strategies
        In order of appearance.
    sweeps
        The swept constants.
    """

    rows: pd.DataFrame
    archives: Sequence[str]
    backbones: Sequence[str]
    strategies: Sequence[str]
    sweeps: Sequence[Sweep]

    @property
    def plain(self) -> pd.DataFrame:
        """The rows without swept options, with an AUROC only where enough anomalies are tested."""
        rows = self.rows[self.rows["setting"] == ""]
        return rows.assign(auroc=rows["auroc"].where(rows["test_anomalies"] >= TEST_ANOMALIES_NEEDED))

    @property
    def judged(self) -> pd.DataFrame:
        """The plain rows of the strategies, each training set once."""
        plain = self.plain
        return plain[(plain["method"] != NONE) & (plain["protocol"] == NO_OVERLAP)]

    def write(self, made: str) -> str:
        """Return the generated part; ``made`` says how, when and where the results were made."""
        sections = [made, self._reading(), *self._failures(), *self._coverage(), *self._choices()]
        for archive in self.archives:
            sections += self._archive(archive)
        return "\n\n".join(section for section in sections if section)

    def _reading(self) -> str:
        return (
            f"Cells are the mean over the seeds ({self.rows['seed'].nunique()} of them) and, in brackets, the worst. "
            "Dirty sets are those of `paire dirty`: *no overlap* takes planted anomalies out of the test set; "
            "*overlap* leaves them there, as the paper does; at 0% the two are one set, in the tables of *no overlap*. "
            "Byte-identical copies take no part. Purity: share of true normals among the kept images. Kept share: "
            "share of the true normals that are kept. AUROC: of the largest distance of each test image, under the "
            f"published map; not given where fewer than {TEST_ANOMALIES_NEEDED} anomalies are tested. Oracle: a map "
            "with the same estimator, fitted on the true normals. Oracle's cut: the largest share of the true normals "
            f"that a threshold on the oracle's own ranking keeps at purity {ORACLE_PURITY}, training images measured "
            "without themselves. "
            f"*Failed*: purity below {PURE}. *Silent*: failed, and the product says nothing: no stop, no "
            "finding of the guard, no warning."
        )

    def _failures(self) -> list[str]:
        judged = self.judged
        failed = judged[judged["failed"]].sort_values(["silent", "purity"], ascending=[False, True], kind="stable")
        sections = [
            "## Where it fails",
            "Over all sets and noises, no overlap:",
            _table(
                ["strategy", "backbone", *_VERDICTS],
                [
                    [f"`{method}`", backbone, *_verdicts(_of(judged, method=method, backbone=backbone))]
                    for method in self.strategies
                    for backbone in self.backbones
                ],
            ),
            "Silent failures, of failures, of dirty sets; all backbones together:",
            _table(
                ["set", *(f"`{method}`" for method in self.strategies)],
                [
                    [archive, *(_silence(_of(judged, archive=archive, method=method)) for method in self.strategies)]
                    for archive in self.archives
                ],
            ),
            _table(
                ["noise", *(f"`{method}`" for method in self.strategies)],
                [
                    [f"{noise:.0%}", *(_silence(_of(part, method=method)) for method in self.strategies)]
                    for noise, part in judged.groupby("noise")
                ],
            ),
        ]
        if failed.empty:
            return [*sections, f"No clean set has a purity below {PURE}."]
        shown = [_failure(row) for _, row in failed.head(SHOWN).iterrows()]
        return [
            *sections,
            f"The worst of {len(failed)} failures, silent ones first:",
            _table(_FAILURE, shown),
            "The worst of each set:",
            _table(
                _FAILURE,
                [
                    _failure(part.sort_values("purity").iloc[0])
                    for archive in self.archives
                    if not (part := _of(failed, archive=archive)).empty
                ],
            ),
        ]

    def _coverage(self) -> list[str]:
        """Return how often the interval of the contamination covers the truth, and how wide it is."""
        judged = self.judged.dropna(subset=["lower"])
        lines = [
            [archive, *(_interval(_of(judged, archive=archive, method=method)) for method in self.strategies)]
            for archive in self.archives
        ]
        lines.append(["all", *(_interval(_of(judged, method=method)) for method in self.strategies)])
        return [
            "## Coverage of the contamination interval",
            "Share of the dirty sets whose 95 % interval covers the true share of anomalies (mean width; mean error of "
            "the estimate):",
            _table(["set", *(f"`{method}`" for method in self.strategies)], lines),
        ]

    def _choices(self) -> list[str]:
        """Return for each swept constant the value that all sets but one choose, and what it does on that one."""
        sections = []
        for sweep in self.sweeps:
            choices = list(leave_one_out(self.rows, sweep, self.archives))
            if choices:
                lines = [
                    [one.left_out, one.chosen, *map(_outcome, (one.own, one.default, one.best)), one.best_value]
                    for one in choices
                ]
                header = ["left out", "chosen", "its result", "of the default", "of the best there", "which is"]
                title = f"`{sweep.option}` of `{sweep.strategy}`, default {sweep.value_of('')}:"
                sections += [title, _table(header, lines)]
        if not sections:
            return []
        reading = (
            "Each value was chosen on the sets that share no image with the one that is left out: fewest silent "
            "failures, then fewest failures, then the largest kept share. Cells: silent failures, failures, kept "
            "share. No overlap, one seed, the first backbone."
        )
        return ["## Leave one set out", reading, *sections]

    def _archive(self, archive: str) -> list[str]:
        part = _of(self.plain, archive=archive)
        sections = [f"## {archive}", _sizes(part), f"![{archive}: purity, kept share, AUROC](study/{archive}.png)"]
        for protocol in (NO_OVERLAP, OVERLAP):
            own = _of(part, protocol=protocol)
            if own.empty:
                continue
            sections += [
                f"### {archive}, {protocol}",
                "Purity:\n\n" + self._by_noise(own, "purity", ""),
                "Kept share, of the oracle's cut:\n\n" + self._by_noise(own, "kept_share", "oracle_cut"),
                "AUROC, of the oracle's:\n\n" + self._by_noise(own, "auroc", "oracle_auroc", with_none=True),
            ]
        return sections

    def _by_noise(self, rows: pd.DataFrame, quantity: str, oracle: str, *, with_none: bool = False) -> str:
        methods = [*([NONE] if with_none else []), *self.strategies]
        lines = [
            [backbone, f"{noise:.0%}", *(_cell(_of(part, method=method), quantity, oracle) for method in methods)]
            for backbone in self.backbones
            for noise, part in _of(rows, backbone=backbone).groupby("noise")
        ]
        return _table(["backbone", "noise", *(f"`{method}`" for method in methods)], lines)


_FAILURE = ("set", "backbone", "noise", "seed", "strategy", "purity", "bad kept", "kept share", "AUROC", "said")
_VERDICTS = ("dirty sets", "failed", "silent", "failed, only warned", "failed, stopped", "pure, but stopped")


def _verdicts(rows: pd.DataFrame) -> list[str]:
    failed, stops, silent = rows["failed"].astype(bool), rows["stops"].astype(bool), rows["silent"].astype(bool)
    counts = (len(rows), failed.sum(), silent.sum(), (failed & ~stops & ~silent).sum(), (failed & stops).sum())
    return [*map(str, counts), str((~failed & stops).sum())]


def _silence(rows: pd.DataFrame) -> str:
    return f"{rows['silent'].sum()} of {rows['failed'].sum()} of {len(rows)}"


def _failure(row: pd.Series) -> list[str]:
    said = str(row["said"]) or "**nothing**"
    return [
        *(str(row["archive"]), str(row["backbone"]), f"{row['noise']:.0%}", str(row["seed"]), f"`{row['method']}`"),
        *(f"{row['purity']:.3f}", f"{row['kept_anomalies']} of {row['anomalies']}", f"{row['kept_share']:.2f}"),
        *("not given" if pd.isna(row["auroc"]) else f"{row['auroc']:.3f} of {row['oracle_auroc']:.3f}", said),
    ]


def _interval(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "no estimate"
    width = (rows["upper"] - rows["lower"]).mean()
    error = (rows["contamination"] - rows["anomalies"] / rows["images"]).mean()
    return f"{rows['covered'].mean():.2f} ({width:.2f}; {error:+.2f})"


def _outcome(outcome: tuple[int, int, float]) -> str:
    silent, failed, kept = outcome
    return f"{silent}, {failed}, {kept:.3f}"


def _sizes(rows: pd.DataFrame) -> str:
    """Return the sizes of the dirty sets and of their test sets."""
    own, lines = _of(rows, method=NONE), []
    for protocol in (NO_OVERLAP, OVERLAP):
        for noise, part in _of(own, protocol=protocol).groupby("noise"):
            names = ("images", "anomalies", "test_normals", "test_anomalies")
            lines.append([protocol, f"{noise:.0%}", *(_range(part[name]) for name in names)])
    header = ["protocol", "noise", "training images", "anomalies in it", "normal test images", "anomalous test images"]
    return _table(header, lines)


def _cell(rows: pd.DataFrame, quantity: str, oracle: str) -> str:
    """Return the mean and the worst value, the smallest, and the oracle's mean."""
    known, digits = rows.dropna(subset=[quantity]), _DIGITS[quantity]
    if known.empty:
        return "not given"
    cell = f"{known[quantity].mean():.{digits}f} ({known[quantity].min():.{digits}f})"
    return f"{cell} of {known[oracle].mean():.{digits}f}" if oracle else cell


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def _of(rows: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    return rows


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(
        [
            "| " + " | ".join(header) + " |",
            "|" + "---|" * len(header),
            *("| " + " | ".join(line) + " |" for line in lines),
        ]
    )
